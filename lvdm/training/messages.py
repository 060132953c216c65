"""What a training says at its start and its end: what is trained on what, where its files are, and what comes next."""

import shlex
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info

from lvdm.data.datamodule import EndlessDataModule
from lvdm.training.module import TrainingModule, training_module
from lvdm.training.settings import LoggingSettings, TrainingSettings


class Messages(Callback):
    """Says on the first process what stands in this module's description. `data` says what it trains on."""

    def __init__(
        self, settings: TrainingSettings, reports: LoggingSettings, data: EndlessDataModule, folder: Path
    ) -> None:
        self.settings, self.reports, self.data, self.folder = settings, reports, data, folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, settings = training_module(pl_module), self.settings
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        several = f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
        trained, frozen = parameters(module)
        length = f"{settings.steps} steps of {settings.batch_size} samples"
        if settings.max_minutes is not None:
            length += f", at most {settings.max_minutes:g} minutes"
        rank_zero_info(f"training on {several} in {settings.precision}: {length}")
        rank_zero_info(f"parameters: {trained / 1e6:.2f} M trained, {frozen / 1e6:.2f} M frozen")
        if self.data.about:
            rank_zero_info(f"data: {self.data.about}")
        rank_zero_info(
            f"files: {self.folder} (metrics.csv, checkpoints{', previews' if settings.preview_every else ''})"
        )
        if self.reports.tensorboard:
            rank_zero_info(f"watch it with: tensorboard --logdir {shlex.quote(str(self.folder))}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if after := training_module(pl_module).after:
            rank_zero_info(after.replace("RUN", shlex.quote(str(self.folder))))


def parameters(module: TrainingModule) -> tuple[int, int]:
    """How many numbers are trained, and how many are only used; what both use counts as trained."""
    trained = {id(p): p.numel() for p in module.trained.parameters()}
    everything = {id(p): p.numel() for part in module.frozen for p in part.parameters()} | trained
    return sum(trained.values()), sum(everything.values()) - sum(trained.values())
