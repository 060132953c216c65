"""What a run reports while it trains, and when it must stop: losses, speed, time left; loss that is not a number."""

import sys
import time
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from lvdm.errors import UserError
from lvdm.training.checkpoints import Progress
from lvdm.training.module import Record, TrainingModule, training_module
from lvdm.training.settings import LoggingSettings, TrainingSettings

WARM_UP_WINDOWS = 5  # windows before a rise of the loss counts as an explosion


class LossError(UserError):
    """The loss is not finite, or far above what it was."""


class Meter(Callback):
    """Every `logging.every` steps: fetch the losses since the last time, check them, log their mean, show progress.

    Between these moments nothing waits for the device. `check` is called before a checkpoint too, so that none is
    written after the loss went wrong.
    """

    def __init__(self, settings: TrainingSettings, logging: LoggingSettings, progress: Progress):
        self.settings, self.every, self.progress = settings, logging.every, progress
        self.average: float | None = None  # running mean of the windows' losses
        self.windows = 0
        self._sum, self._count = 0.0, 0
        self._bar: tqdm[Any] | None = None
        self._last = (time.monotonic(), progress.samples)
        self._logged_step = progress.step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = (time.monotonic(), self.progress.samples)
        if trainer.is_global_zero and sys.stderr.isatty():
            form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}"
            self._bar = tqdm(total=self.settings.steps, initial=self.progress.step, desc="training", bar_format=form)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        if step == self._logged_step or step % self.every:
            return
        self._logged_step = step
        self.check(trainer, training_module(pl_module))
        self._report(trainer, step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check(trainer, training_module(pl_module))
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()

    def check(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Fetch the losses that were not looked at yet. Raises LossError with the numbers of the samples at fault."""
        records, module.records = module.records, []
        losses = torch.cat([record.losses for record in records]).cpu() if records else torch.zeros(0)
        numbers = torch.cat([record.numbers for record in records]).tolist() if records else []
        limit = float("inf")
        if self.average is not None and self.windows >= WARM_UP_WINDOWS:
            limit = self.settings.stop_factor * self.average
        mean = float(losses.mean()) if len(losses) else 0.0
        bad = not torch.isfinite(losses).all() or mean > limit
        if trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
            raise LossError(self._explain(records, losses, numbers, limit))
        if len(losses):
            self.windows += 1
            self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
            self._sum, self._count = self._sum + float(losses.double().sum()), self._count + len(losses)

    def _explain(self, records: list[Record], losses: Tensor, numbers: list[int], limit: float) -> str:
        where = "on another device"
        if records:  # which count the steps before their own
            first, last = records[0].step + 1, records[-1].step + 1
            where = f"at step {first}" if first == last else f"between steps {first} and {last}"
        kept = (
            "the last checkpoint before it, if there is one, is kept: mend these samples, then --resume auto, or lower "
            "training.lr and go on under another run.name with --resume CHECKPOINT"
        )
        broken = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if broken:
            # Once weights are broken every later sample fails, so the first are the ones to look at.
            named = ", ".join(str(numbers[i]) for i in broken[:8])
            return f"the loss is not finite {where}, first at sample numbers {named}; {kept}"
        worst = ", ".join(str(numbers[i]) for i in losses.argsort(descending=True)[:8].tolist())
        return f"the loss rose above {limit:.3g} {where}, most at sample numbers {worst}; {kept}"

    def _report(self, trainer: pl.Trainer, step: int) -> None:
        totals = torch.tensor([self._sum, self._count], dtype=torch.float64, device=trainer.strategy.root_device)
        total, count = trainer.strategy.reduce(totals, reduce_op="sum").tolist()
        self._sum, self._count = 0.0, 0
        now, (then, samples) = time.monotonic(), self._last
        speed = (self.progress.samples - samples) / max(now - then, 1e-9)
        self._last = (now, self.progress.samples)
        loss, rate = total / count, trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {"loss": loss, "lr": rate, "samples": self.progress.samples, "samples_per_s": speed}
        if trainer.strategy.root_device.type == "cuda":  # of the first device, and of all that PyTorch holds there
            metrics["peak_gb"] = torch.cuda.max_memory_reserved() / 1e9
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step)
        text = f"loss {loss:.4f}, {speed:.1f} samples/s, {self._time_left(speed)} left"
        with suppress(OSError):  # a terminal that was closed is no reason to lose the run
            if self._bar is not None:
                self._bar.n = step
                self._bar.set_postfix_str(text)
            elif trainer.is_global_zero:
                print(f"step {step}/{self.settings.steps}: {text}", file=sys.stderr, flush=True)

    def _time_left(self, speed: float) -> str:
        seconds = (self.settings.steps - self.progress.step) * self.settings.batch_size / max(speed, 1e-9)
        if self.settings.max_minutes is not None:
            seconds = min(seconds, max(60 * self.settings.max_minutes - self.progress.seconds, 0.0))
        return tqdm.format_interval(seconds)
