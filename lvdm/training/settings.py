"""What every training can be told: the `run`, `training` and `logging` sections of its config; quick to import."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from lvdm.config import check_at_least, from_mapping
from lvdm.errors import ConfigError

DEEPSPEED = ("deepspeed_zero2_offload", "deepspeed_zero2", "deepspeed_zero3")


@dataclass
class RunSettings:
    """Section `run`: which task is trained, and where its files go (`out`/`name`)."""

    name: str
    task: str
    out: str = "runs"
    seed: int = 0

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if any(part in ("", ".", "..") or len(part.encode(errors="replace")) > 200 for part in parts):
            raise ConfigError(f"run.name is {self.name[:80]!r}: it must be a name for a folder inside run.out")
        for name, value in (("name", self.name), ("out", self.out)):
            if not value or not value.isprintable():
                raise ConfigError(f"run.{name} is {value[:80]!r}: it must be a name for a folder")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"run.seed is {self.seed}: it must be a whole number from 0 to 2^63 - 1")


@dataclass
class TrainingSettings:
    """Section `training`. Lengths are optimiser steps; the optimiser's defaults are the paper's ("Training Details").

    `batch_size` counts the samples of one optimiser step over all devices and accumulated micro-batches, so that
    `devices` and `gradient_accumulation_steps` change the speed and the memory of a run but not what it learns.
    """

    RENAMED: ClassVar[dict[str, str]] = {
        "clip": "max_grad_norm",
        "accumulate": "gradient_accumulation_steps",
        "checkpointing": "gradient_checkpointing",
        "final_lr": "min_lr_ratio",
        "draws": "timesteps_per_sample",
    }

    steps: int
    batch_size: int
    lr: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.9])
    weight_decay: float = 0.03
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    min_lr_ratio: float = 0.0  # where the cosine ends, as a share of lr
    max_minutes: float | None = None  # time limit of the whole run, interruptions not counted
    max_grad_norm: float | None = 1.0  # largest gradient norm
    ema: float | None = None  # decay of the averaged weights; the exported files then hold the average

    strategy: Literal[  # auto: see lvdm.training.choice
        "auto", "single", "ddp", "deepspeed_zero2_offload", "deepspeed_zero2", "deepspeed_zero3"
    ] = "single"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    gradient_accumulation_steps: int = 1
    precision: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    # Recompute activations in the backward pass instead of storing them. null: only with deepspeed_zero2_offload, which
    # is for small cards, and where strategy auto finds no room for them; an object of this class holds the answer.
    gradient_checkpointing: bool | None = None
    attention: Literal["sdpa", "xformers", "reference"] = "sdpa"  # see lvdm.models.attention.set_backend
    # These two are off where they are null, but with strategy auto, which tries them: see lvdm.training.trials.
    compile: bool | None = None  # torch.compile the blocks of the networks, see lvdm.acceleration.regions
    cuda_graphs: bool | None = None  # launch the kernels of a step at once, see lvdm.training.graphs

    timesteps: Literal["uniform", "sqrt"] = "uniform"  # t = T u, or T sqrt(u), which prefers high noise
    timesteps_per_sample: int = 1  # with a noise each; the sample is read and encoded once for all of them
    motion_weight: float = 0.0  # in [0, 1]: see lvdm.training.weighting
    noise: Literal["sample", "device"] = "sample"  # who draws the noise: see lvdm.training.randomness
    caption_dropout: float = 0.0  # share of the captions that are emptied, for classifier-free guidance

    checkpoint_every: int = 1000
    keep: int = 2  # checkpoints kept, the newest ones
    preview_every: int | None = None
    previews: int = 2  # videos in a preview
    preview_steps: int = 25  # sampling steps of a preview
    stop_factor: float = 20.0  # the loss explodes when it exceeds its running average by this factor

    def __post_init__(self) -> None:
        if self.gradient_checkpointing is None:
            self.gradient_checkpointing = self.strategy == "deepspeed_zero2_offload"
        counts = (
            "steps",
            "batch_size",
            "devices",
            "nodes",
            "gradient_accumulation_steps",
            "timesteps_per_sample",
            "checkpoint_every",
            "keep",
        )
        if self.preview_every == 0:
            raise ConfigError("training.preview_every is 0: it must be at least 1, or null for no previews")
        check_at_least(self, 1, (*counts, "preview_every", "previews", "preview_steps", "stop_factor"), "training")
        check_at_least(
            self, 0, ("lr", "weight_decay", "warmup_steps", "min_lr_ratio", "max_minutes", "max_grad_norm"), "training"
        )
        for name in ("motion_weight", "caption_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"training.{name} = {getattr(self, name)} is a share: choose a number in [0, 1]")
        if self.ema is not None and not 0.0 <= self.ema < 1.0:
            raise ConfigError(
                f"training.ema = {self.ema} is a decay: choose a number in [0, 1), such as 0.999, or null"
            )
        if self.max_minutes == 0:
            raise ConfigError("training.max_minutes is 0: it must be above 0, or null for no limit")
        parts = self.devices * self.nodes * self.gradient_accumulation_steps
        if self.batch_size % parts:
            raise ConfigError(
                f"training.batch_size = {self.batch_size} cannot be split evenly over {self.devices} devices, "
                f"{self.nodes} nodes and {self.gradient_accumulation_steps} accumulated micro-batches: "
                f"choose a multiple of {parts}"
            )
        if self.strategy == "single" and self.devices * self.nodes > 1:
            raise ConfigError(
                f"training.strategy is single but training.devices x training.nodes = {self.devices * self.nodes}: "
                "use ddp or one of the deepspeed strategies"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"training.betas needs two numbers from 0 to below 1, got {self.betas}")
        if self.ema is not None and self.uses_deepspeed:
            raise ConfigError(
                f"training.ema does not work with training.strategy = {self.strategy}, which spreads the "
                "full-precision weights over devices: set training.ema to null or the strategy to single or ddp"
            )
        if self.cuda_graphs and (
            self.uses_deepspeed or self.gradient_checkpointing or self.gradient_accumulation_steps > 1
        ):
            raise ConfigError(
                "training.cuda_graphs works with the strategies single and ddp, without gradient checkpointing and "
                "with gradient_accumulation_steps = 1: change these or set training.cuda_graphs to false"
            )
        if self.compile and self.strategy == "deepspeed_zero3":
            raise ConfigError(
                "training.compile does not work with training.strategy = deepspeed_zero3, which gathers the weights of "
                "each layer as it is called: set training.compile to false or the strategy to deepspeed_zero2"
            )

    @property
    def uses_deepspeed(self) -> bool:
        """Whether the strategy is one of DeepSpeed's."""
        return self.strategy in DEEPSPEED

    @property
    def micro_batch(self) -> int:
        """Samples that one device takes at once."""
        return self.batch_size // (self.devices * self.nodes * self.gradient_accumulation_steps)


@dataclass
class LoggingSettings:
    """Section `logging`: a CSV file is always written, TensorBoard files unless switched off."""

    RENAMED: ClassVar[dict[str, str]] = {"gauges": "diagnostics"}

    every: int = 50  # steps between two lines; the loss is also checked then
    diagnostics: int | None = 100  # steps between two measurements of TrainingModule.diagnostics, null for none
    tensorboard: bool = True
    wandb: str | None = None  # name of a Weights & Biases project

    def __post_init__(self) -> None:
        check_at_least(self, 1, ("every", "diagnostics"), "logging")


@dataclass
class Settings:
    """The sections that the config of every task has."""

    run: RunSettings
    training: TrainingSettings
    logging: LoggingSettings = field(default_factory=LoggingSettings)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """From the config of a training, whose other sections its task reads. Raises ConfigError."""
        return cls(
            from_mapping(RunSettings, config.get("run", {}), where="run"),
            from_mapping(TrainingSettings, config.get("training", {}), where="training"),
            from_mapping(LoggingSettings, config.get("logging", {}), where="logging"),
        )
