"""How many samples a second a training takes, and how near `strategy: auto` comes to the best chosen by hand."""

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lvdm.training.choice import GIB, choose, divisors
from lvdm.training.module import training_module
from lvdm.training.run import build_run, build_trainer
from lvdm.training.settings import RunSettings, Settings, TrainingSettings

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

    None where the GPU's memory, as far as PyTorch may have it, is not enough. What was used is free again afterwards.
    """
    run = Settings.read(config).run
    settings = replace(settings, steps=WARM_UP + MEASURED)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    pace = Pace()
    try:
        _fit(config, run, settings, pace)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_reserved() / GIB
            torch.cuda.empty_cache()
    return Throughput(MEASURED * settings.batch_size / pace.seconds, peak if torch.cuda.is_available() else 0.0)


def _fit(config: dict[str, Any], run: RunSettings, settings: TrainingSettings, pace: Pace) -> None:
    """In a function of its own, so that nothing of it outlives an error."""
    options, module, data = build_run(config, run, settings)
    build_trainer(settings, options, logger=False, callbacks=[pace]).fit(module, datamodule=data)


def by_hand(settings: TrainingSettings) -> list[TrainingSettings]:
    """What someone could try on one device: each size of micro-batches, with activations kept and recomputed."""
    plain = replace(settings, strategy="single", devices=1, nodes=1, cuda_graphs=False)
    return [
        replace(plain, gradient_checkpointing=recompute, gradient_accumulation_steps=count)
        for recompute in (False, True)
        for count in divisors(settings.batch_size)[::-1]
    ]


def compare_strategies(config: dict[str, Any], limits: Sequence[float]) -> Iterator[dict[str, Any]]:
    """What `strategy: auto` chooses where PyTorch may reserve so many GiB of the card, beside the best `by_hand`.

    A record for each limit, the largest first. `of_best`: the choice's samples a second over those of the fastest that
    runs under that limit. `tried`: all that were measured and run, the fastest first. What was measured with more
    memory, and reserved less than the limit, is not measured again. A limit above the card's memory is the card.
    Without a GPU nothing limits, and only one micro-batch size is tried.
    """
    sections = Settings.read(config)
    run, settings = sections.run, sections.training
    cuda = torch.cuda.is_available() and settings.accelerator != "cpu"
    total = torch.cuda.get_device_properties(0).total_memory / GIB if cuda else 0.0
    known: dict[int, Throughput | None] = {}
    candidates = by_hand(settings) if cuda else by_hand(settings)[:1]
    try:
        for limit in sorted(limits, reverse=True):
            if cuda:
                torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
            chosen, sentence = choose(
                replace(settings, strategy="auto"), lambda trial: build_run(config, run, trial)[1:]
            )
            for i, candidate in enumerate(candidates):
                before = known.get(i)
                fits = before is not None and before.peak_gib <= limit
                hopeless = i in known and (before is None or before.peak_gib > SLACK * limit)
                if not fits:
                    known[i] = None if hopeless else measure_throughput(config, candidate)
            found = {i: speed for i, speed in known.items() if speed is not None}
            mine = next((known[i] for i, each in enumerate(candidates) if _same(each, chosen)), None)
            if mine is None:  # something that nobody would try by hand, such as the optimiser on the CPU
                mine = measure_throughput(config, chosen)
            record: dict[str, Any] = {"limit_gib": limit, "card_gib": round(total, 1), "auto": _in_words(chosen)}
            record["estimate"] = sentence.partition("about ")[2] or sentence
            record["samples_per_s"] = "out of memory" if mine is None else round(mine.samples_per_s, 3)
            record["peak_gib"] = 0.0 if mine is None else round(mine.peak_gib, 2)
            if found:
                best = max(found, key=lambda i: found[i].samples_per_s)
                record["best"], record["best_samples_per_s"] = (
                    _in_words(candidates[best]),
                    round(found[best].samples_per_s, 3),
                )
                tried = sorted(found, key=lambda i: -found[i].samples_per_s)
                record["tried"] = "; ".join(
                    f"{_in_words(candidates[i])}: {found[i].samples_per_s:.2f}/s in {found[i].peak_gib:.1f} GiB"
                    for i in tried
                )
                if mine is not None:
                    record["of_best"] = round(mine.samples_per_s / found[best].samples_per_s, 3)
            yield record
    finally:
        if cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)


def _same(one: TrainingSettings, other: TrainingSettings) -> bool:
    """Whether they divide a step alike."""
    names = ("strategy", "gradient_checkpointing", "gradient_accumulation_steps", "cuda_graphs", "devices")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _in_words(settings: TrainingSettings) -> str:
    kept = "recomputed" if settings.gradient_checkpointing else "kept"
    count, each = settings.gradient_accumulation_steps, settings.micro_batch
    return f"{settings.strategy}, {f'{count} times ' if count > 1 else ''}{each}, activations {kept}"
