"""What happens around training steps: counting, checkpoints, stopping on a signal or a time limit, previews."""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_info

from lvdm.data.loader_processes import SIGNALS
from lvdm.training.checkpoints import Progress, write_checkpoint
from lvdm.training.metrics import Meter
from lvdm.training.module import TrainingModule, training_module
from lvdm.training.settings import TrainingSettings
from lvdm.video import contact_sheet, enlarged, side_by_side, write_video

AGREE_EVERY = 10  # steps between two moments in which several devices agree on whether to stop
PREVIEW_HEIGHT = 192  # of a panel at least, in pixels: labels are readable from there on
PREVIEW_NUMBERS = 2**62  # the samples of previews: numbers that no training reaches


class Counter(Callback):
    """Keeps `progress` up to date, and tells the module which share of the run is done. The first of the callbacks."""

    def __init__(self, settings: TrainingSettings, progress: Progress):
        self.settings, self.progress = settings, progress
        self._clock = 0.0
        self._begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clock = time.monotonic()
        training_module(pl_module).progress = self._share
        self._begun = False

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if not self._begun:
            # Lightning counts micro-batches over the whole run to know where a step ends. Of a run that goes on with
            # another number of them in a step that count is no use: a step always begins where a run does.
            done = trainer.fit_loop.epoch_loop.batch_progress.current
            done.reset()
            done.ready = 1  # the one that begins here
            self._begun = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.progress.step:  # an accumulated micro-batch
            return
        self.progress.step = trainer.global_step
        self.progress.samples += self.settings.batch_size
        if trainer.world_size == 1 or self.progress.step % AGREE_EVERY == 0:
            now = time.monotonic()
            seconds = self.progress.seconds + now - self._clock
            self._clock = now
            # The learning rate may follow the time, so all devices must see the same.
            self.progress.seconds = seconds if trainer.world_size == 1 else trainer.strategy.broadcast(seconds)

    def _share(self) -> float:
        share = self.progress.step / self.settings.steps
        if self.settings.max_minutes is not None:
            share = max(share, self.progress.seconds / (60 * self.settings.max_minutes))
        return share


class Checkpoints(Callback):
    """Writes checkpoints every so often, and a last one at the end, on a signal of SIGNALS, or when the time is up.

    A second signal is not caught any more, and one that was ignored before (SIGHUP, by nohup) stays so.
    `stopped_by` tells which signal ended the run, if one did.
    """

    def __init__(self, settings: TrainingSettings, progress: Progress, meter: Meter, folder: Path):
        self.settings, self.progress, self.meter, self.folder = settings, progress, meter, folder
        self.stopped_by: int | None = None
        self._step = progress.step
        self._handlers: dict[int, Any] = {}
        self._terminals: list[int] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # After Lightning's own handlers, which end the process before anything is saved.
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._request)
        self._terminals = [handle for handle in (1, 2) if os.isatty(handle)]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        step = self.progress.step
        if step == self._step:  # between two accumulated micro-batches there is nothing whole to save
            return
        self._step = step
        stop = self.stopped_by is not None
        if self.settings.max_minutes is not None:
            stop = stop or self.progress.seconds >= 60 * self.settings.max_minutes
        if trainer.world_size > 1:
            stop = step % AGREE_EVERY == 0 and trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop or step >= self.settings.steps or step % self.settings.checkpoint_every == 0:
            self.meter.check(trainer, training_module(pl_module))
            write_checkpoint(trainer, self.folder, self.progress, self.settings.keep)
        trainer.should_stop = trainer.should_stop or stop

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = number
        signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGHUP:  # nobody reads what is said to a terminal that was closed, and saying it fails
            silent = os.open(os.devnull, os.O_WRONLY)
            for handle in self._terminals:
                os.dup2(silent, handle)
            os.close(silent)
        rank_zero_info(f"{signal.Signals(number).name}: writing a checkpoint after this step, then stopping")


class Previews(Callback):
    """Every so often: the same few samples, generated from the same noise, as videos on disk and in the loggers."""

    def __init__(self, settings: TrainingSettings, progress: Progress, folder: Path, fps: float = 8):
        self.settings, self.progress, self.folder, self.fps = settings, progress, folder, fps
        self._shown = progress.step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        step = self.progress.step
        if step == self._shown or not self.settings.preview_every or step % self.settings.preview_every:
            return
        self._shown = step
        module = training_module(pl_module)
        batch = self._batch(trainer, module)
        with torch.no_grad(), module.showing(), module.autocast():
            videos = module.preview(batch)  # on every device: with ZeRO-3 each holds a part of the weights
        if trainer.is_global_zero:
            self._write(trainer, {label: pixels.cpu() for label, pixels in videos.items()}, step)

    def _batch(self, trainer: pl.Trainer, module: TrainingModule) -> dict[str, Any]:
        loader: Any = trainer.train_dataloader  # while it trains there is one
        numbers = [PREVIEW_NUMBERS + i for i in range(self.settings.previews)]
        fetch = getattr(loader.dataset, "__getitems__", lambda numbers: [loader.dataset[number] for number in numbers])
        batch = loader.collate_fn(fetch(numbers))
        return module.prepare(module.transfer_batch_to_device(batch, module.device, 0))

    def _write(self, trainer: pl.Trainer, videos: dict[str, torch.Tensor], step: int) -> None:
        for i, row in enumerate(zip(*videos.values())):
            path = self.folder / f"step_{step:08d}_{i}.mp4"
            shown = [enlarged(video, PREVIEW_HEIGHT) for video in row]
            write_video(path, side_by_side(shown, list(videos)), self.fps, overwrite=True)
            sheet = np.asarray(contact_sheet(shown, list(videos)))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):  # its videos would need another library; a sheet needs none
                    logger.experiment.add_image(f"preview/{i}", sheet, step, dataformats="HWC")
                elif isinstance(logger, WandbLogger):
                    logger.log_video(f"preview/{i}", [str(path)], step=step)
