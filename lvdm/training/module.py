"""What every training has in common, as a LightningModule: one optimiser, one loss for each sample, no host waits."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lvdm.acceleration import prepare
from lvdm.data.datamodule import EndlessDataModule
from lvdm.errors import ConfigError
from lvdm.models.ema import EMA
from lvdm.training.optim import build_optimizer, learning_rate
from lvdm.training.randomness import BatchRandomness
from lvdm.training.settings import TrainingSettings

Batch = dict[str, Any]
"""What a data module gives: see `lvdm.data.ClipDataset` for its keys."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class Record:
    """The losses of one micro-batch as the device has them: `losses` (b,), and `numbers`, which samples they are of."""

    step: int
    numbers: Tensor
    losses: Tensor


class TrainingModule(pl.LightningModule):
    """Base class of all trainings. A subclass gives `losses(batch) -> (b,)`, and may give `export` and `preview`.

    `trained` is what the optimiser sees, and the only thing that is registered: Lightning, DDP and DeepSpeed therefore
    move, reduce, shard and save nothing but the trained parameters. `frozen` modules are held beside it, moved to the
    device in the precision of the run when training starts; they may contain trained modules, whose parameters keep
    full precision.
    """

    # whether a diffusion model is trained: cuda_graphs, motion_weight, timesteps and timesteps_per_sample are for those
    diffuses: ClassVar[bool] = False
    drops_captions: ClassVar[bool] = False  # whether `training.caption_dropout` does something here
    phases: ClassVar[dict[str, str]] = {}  # method -> phase of a step that its time belongs to, see `profile`

    def __init__(self, settings: TrainingSettings, trained: Mapping[str, nn.Module], frozen: Iterable[nn.Module] = ()):
        super().__init__()
        if settings.cuda_graphs and not self.diffuses:
            raise ConfigError(
                "training.cuda_graphs does nothing for this task, which trains no diffusion model: set it to false"
            )
        if settings.caption_dropout and not self.drops_captions:
            raise ConfigError(
                "training.caption_dropout is for base models only, which learn their own unconditional branch with it: "
                "set it to 0"
            )
        if settings.motion_weight and not self.diffuses:
            raise ConfigError(
                "training.motion_weight does nothing for this task, which trains no diffusion model: set it to 0"
            )
        if not self.diffuses and (settings.timesteps != "uniform" or settings.timesteps_per_sample != 1):
            raise ConfigError(
                "training.timesteps and training.timesteps_per_sample do nothing for this task, which trains no "
                "diffusion model: leave them out"
            )
        if settings.preview_every and type(self).preview is TrainingModule.preview:
            raise ConfigError(
                "training.preview_every does nothing for this task, which shows no previews: set it to null"
            )
        self.settings = settings
        self.trained = nn.ModuleDict(trained)
        self._frozen = tuple(frozen)  # a tuple does not register its modules
        self.ema = EMA(self.trained, settings.ema) if settings.ema else None
        self.records: list[Record] = []
        self.after: str | None = None  # what to do with the run when it ends, a sentence with RUN for its folder
        self.progress: Callable[[], float] = lambda: 0.0  # share of the run that is done, set by the runner

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        """The modules that are used and not trained."""
        return self._frozen

    # -- for subclasses ---------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each sample, (b,), float32."""
        raise NotImplementedError

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write what others can load (an adapter, a pipeline) into a checkpoint's folder. Called on the first rank."""

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """Videos to look at: label -> pixels uint8 (b, t, h, w, c), the same number for every label. Empty: none."""
        return {}

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """Further numbers to log and draw now and then, of one device's batch: name -> scalar. Called without
        gradients."""
        return {}

    def judge_diagnostics(self, histories: Mapping[str, Sequence[tuple[int, float]]]) -> str | None:
        """A sentence of warning where the (step, value) pairs of the diagnostics so far look wrong, else None."""
        return None

    # -- what Lightning calls ---------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch = self.prepare(batch)
        with self.autocast():
            losses = self.losses(batch).float()
        self.records.append(Record(self.global_step, batch["number"], losses.detach()))
        return losses.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.trained.parameters(), self.settings, self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        device = self.trainer.strategy.root_device
        for module in self._frozen:
            place_frozen(module, device, DTYPES[self.settings.precision])
            if device.type == "cuda":
                prepare(module)
        self.trained.train()
        if self.ema is not None:
            self.ema.to(device)
        if self.settings.compile and self._data is not None:
            self._data.compiled = True  # it may prepare batches on the device, see `prepare`

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Any:
        """Everything but the integers that the host reads, which would make it wait for the device."""
        host = {name: batch[name] for name in ("number", "noise_seed")}
        return super().transfer_batch_to_device(batch, device, dataloader_idx) | host

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(int(batch["noise_seed"][0]))  # dropout too is a function of the samples
        rate = learning_rate(self.settings, self.global_step, self.progress())
        betas, weight_decay = tuple(self.settings.betas), self.settings.weight_decay
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:  # from a checkpoint they come with the settings of its own training
                group.update(lr=rate, betas=betas, weight_decay=weight_decay)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.trained)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"])

    # -- shared by subclasses ---------------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Batch:
        """Let the data module finish a batch on the device (render puppets, say), where it wants to."""
        return batch if self._data is None else self._data.prepare(batch)

    @property
    def _data(self) -> EndlessDataModule | None:
        """The data module of the training; None where Lightning was given loaders alone."""
        module: EndlessDataModule | None = self.trainer.datamodule  # type: ignore[attr-defined]  # set without being declared
        return module

    def autocast(self) -> torch.autocast | nullcontext[None]:
        """Mixed precision, done here and not by Lightning so that every strategy computes alike.

        Weights are not cached in half precision: a copy cached under no_grad would cut gradients off later.
        """
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.settings.precision], cache_enabled=False)

    def randomness(self, batch: Batch) -> BatchRandomness:
        """The random numbers of this batch, see `lvdm.training.randomness`."""
        return BatchRandomness(batch["noise_seed"].tolist(), self.device, self.settings.noise)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Inside, the trained modules are as they will be used: averaged weights if there is an average, no dropout.

        Nothing is compiled for what is done there now and then, with other batches than in training.
        """
        self.trained.eval()
        average = self.ema.applied(self.trained) if self.ema is not None else nullcontext()
        with average, torch.compiler.set_stance("force_eager"):
            yield
        self.trained.train()


def training_module(module: pl.LightningModule) -> TrainingModule:
    """The module that a callback is given, as what it is in all of our trainings."""
    return cast(TrainingModule, module)


def place_frozen(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a module to a device and its frozen parameters to a dtype; trained ones keep theirs, as buffers do."""
    module.eval()
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(device, dtype if parameter.is_floating_point() else None)
    module.to(device)
