"""How many samples a second a training takes, and how near `strategy: auto` comes to the best chosen by hand."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lvdm.training.checkpoints import Progress
from lvdm.training.choice import GIB, divisors, free_memory
from lvdm.training.module import training_module
from lvdm.training.run import build_run, build_trainer
from lvdm.training.settings import RunSettings, Settings, TrainingSettings
from lvdm.training.settling import decide
from lvdm.training.trials import Way, ways

WARM_UP, MEASURED = 2, 3  # optimiser steps
SLACK = 1.3  # what reserved more memory than a limit by less than this may still run under it, with its blocks freed


@dataclass(frozen=True)
class Throughput:
    """Samples a second of a training's steps, and the most memory that PyTorch reserved meanwhile (0 on a CPU)."""

    samples_per_s: float
    peak_gib: float


class Pace(Callback):
    """Times MEASURED optimiser steps after WARM_UP that are not counted."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start: float | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step not in (WARM_UP, WARM_UP + MEASURED):
            return
        if training_module(pl_module).device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._start is None:  # the first micro-batch with this count: the step has just ended
            self._start = now
        elif trainer.global_step == WARM_UP + MEASURED and not self.seconds:
            self.seconds = now - self._start


def measure_throughput(config: dict[str, Any], settings: TrainingSettings) -> Throughput | None:
    """Train some steps as `train(config)` would with these settings, without writing anything.

    None where the GPU's memory, as far as PyTorch may have it, is not enough. What was used is free again afterwards,
    but for what an error holds that is raised.
    """
    run = Settings.read(config).run
    settings = replace(settings, steps=WARM_UP + MEASURED)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds = _fit(config, run, settings)
    peak = torch.cuda.max_memory_reserved() / GIB if torch.cuda.is_available() else 0.0
    free_memory()
    return None if seconds is None else Throughput(MEASURED * settings.batch_size / seconds, peak)


def _fit(config: dict[str, Any], run: RunSettings, settings: TrainingSettings) -> float | None:
    """Seconds of the steps that are measured; None where the memory was not enough.

    Error, module and callbacks (Lightning gives them the module) end here, so that all memory can be freed afterwards.
    """
    try:
        options, module, data = build_run(config, run, settings)
        pace = Pace()
        build_trainer(settings, options, logger=False, callbacks=[pace]).fit(module, datamodule=data)
    except torch.OutOfMemoryError:
        return None
    return pace.seconds


def by_hand(settings: TrainingSettings) -> list[TrainingSettings]:
    """What someone could try on one device: each size of micro-batches, with activations kept and recomputed."""
    plain = replace(settings, strategy="single", devices=1, nodes=1, compile=False, cuda_graphs=False)
    return [
        replace(plain, gradient_checkpointing=recompute, gradient_accumulation_steps=count)
        for recompute in (False, True)
        for count in divisors(settings.batch_size)[::-1]
    ]


def compare_strategies(config: dict[str, Any], limits: Sequence[float]) -> Iterator[dict[str, Any]]:
    """What `strategy: auto` chooses where PyTorch may reserve so many GiB of the card, beside the best by hand.

    By hand: each division of a step (`by_hand`), then each way of launching the fastest of them (`ways`).
    A record for each limit, the largest first. `of_best`: the choice's samples a second over those of the fastest that
    runs under that limit. `tried`: all that were measured and run, the fastest first. What was measured with more
    memory, and reserved less than the limit, is not measured again. A limit above the card's memory is the card.
    Without a GPU nothing limits, and only one micro-batch size is tried.
    """
    sections = Settings.read(config)
    run, settings = sections.run, sections.training
    cuda = torch.cuda.is_available() and settings.accelerator != "cpu"
    total = torch.cuda.get_device_properties(0).total_memory / GIB if cuda else 0.0
    known = _Known(config)
    divisions = by_hand(settings) if cuda else by_hand(settings)[:1]
    try:
        for limit in sorted(limits, reverse=True):
            if cuda:
                torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
            chosen, sentence = decide(
                config,
                replace(settings, strategy="auto"),
                lambda trial: build_run(config, run, trial)[1:],
                Progress(),
            )
            found = known.measure(divisions, limit)
            if found:
                best = max(found, key=lambda each: found[each].samples_per_s)
                graphs = None if settings.cuda_graphs else settings.cuda_graphs  # asked for, they may not fit the best
                open_ = replace(known.settings[best], compile=settings.compile, cuda_graphs=graphs)
                found |= known.measure([way.applied(open_) for way in ways(open_)], limit)
            mine = found.get(_in_words(chosen)) or known.measure([chosen], limit).get(_in_words(chosen))
            record: dict[str, Any] = {"limit_gib": limit, "card_gib": round(total, 1), "auto": _in_words(chosen)}
            record["estimate"] = sentence.partition("about ")[2] or sentence
            record["samples_per_s"] = "out of memory" if mine is None else round(mine.samples_per_s, 3)
            record["peak_gib"] = 0.0 if mine is None else round(mine.peak_gib, 2)
            if found:
                tried = sorted(found, key=lambda each: -found[each].samples_per_s)
                best_speed = found[tried[0]].samples_per_s
                record |= {"best": tried[0], "best_samples_per_s": round(best_speed, 3)}
                record["tried"] = "; ".join(
                    f"{each}: {found[each].samples_per_s:.2f}/s in {found[each].peak_gib:.1f} GiB" for each in tried
                )
                if mine is not None:
                    record["of_best"] = round(mine.samples_per_s / best_speed, 3)
            if known.failed:
                record["failed"] = "; ".join(f"{each}: {reason}" for each, reason in known.failed.items())
            yield record
    finally:
        if cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)


class _Known:
    """What was measured so far of one config's training, by the settings in words."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.settings: dict[str, TrainingSettings] = {}
        self.failed: dict[str, str] = {}  # what raised something else than a lack of memory
        self._speeds: dict[str, Throughput | None] = {}

    def measure(self, candidates: Sequence[TrainingSettings], limit: float) -> dict[str, Throughput]:
        """Those of the candidates that run within `limit` GiB, which PyTorch is held to."""
        found = {}
        for candidate in candidates:
            name = _in_words(candidate)
            self.settings[name], before = candidate, self._speeds.get(name)
            hopeless = name in self._speeds and (before is None or before.peak_gib > SLACK * limit)
            if before is None or before.peak_gib > limit:
                before = None if hopeless else self._try(name)
                self._speeds[name] = before
            if before is not None:
                found[name] = before
        return found

    def _try(self, name: str) -> Throughput | None:
        settings = self.settings[name]
        try:
            return measure_throughput(self.config, settings)
        except Exception as error:
            if not (settings.compile or settings.cuda_graphs):
                raise
            self.failed[name] = str(error).partition("\n")[0][:200]
        free_memory()  # of what the error held, or the next candidate would have less
        return None


def _in_words(settings: TrainingSettings) -> str:
    kept = "recomputed" if settings.gradient_checkpointing else "kept"
    count, each = settings.gradient_accumulation_steps, settings.micro_batch
    way = str(Way(bool(settings.compile), bool(settings.cuda_graphs)))
    division = f"{settings.strategy}, {f'{count} times ' if count > 1 else ''}{each}, activations {kept}"
    return division if way == "plain" else f"{division}, {way}"
