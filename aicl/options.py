"""What a generation with references takes: the references, and one class of options for every way of asking."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lvdm import config as configs
from lvdm.errors import CheckpointError, ConfigError
from lvdm.options import GenerationOptions, Options, option
from lvdm.outside import check_text, is_hub_id

DEFAULT_MODEL = "checkpoints/puppets"
OF_ADAPTER = ("first_reference_until", "guidance_scale", "num_inference_steps")
"""Options of `SamplingOptions` of which an adapter may bring defaults, for videos with references."""


@dataclass(kw_only=True)
class SamplingOptions(GenerationOptions):
    """How a video is sampled with references; None is the model's own default.

    The options of the base model are those of `lvdm.options.GenerationOptions`.
    reference_guidance_scale: a number adds a third branch of guidance, e = e(none) + guidance_scale * (e(text) -
    e(none)) + reference_guidance_scale * (e(text, R) - e(text)); otherwise R belongs to the conditional branch.
    first_reference_until: the first of several references is read alone for this share of the noise levels, from the
    noisiest on: 0.75 is timesteps 999 to 250 of 1000. There the course of a motion is decided, and a mixture of two
    courses is neither. 0, the paper's way, reads all references always, whose order then does not matter.
    """

    RENAMED: ClassVar[dict[str, str]] = GenerationOptions.RENAMED | {
        "lead": "first_reference_until",
        "ref_guidance": "reference_guidance_scale",
        "reference_guidance": "reference_guidance_scale",
        "ref_fps": "reference_fps",
    }

    scale: float = option(
        1.0, "strength of the references; 0 is the base model (default: 1)", least=0, group="references"
    )
    reference_guidance_scale: float | None = option(
        None, "strength of the references apart from the text's", group="references", spellings=("ref-guidance",)
    )
    first_reference_until: float | None = option(
        None,
        "share of the noise levels, from the noisiest on, for which the first reference is read alone, such as 0.75",
        least=0,
        most=1,
        group="references",
    )
    reference_fps: float | None = option(
        None,
        "rate (1/s) at which reference videos are sampled (default: that of the model's videos)",
        above=0,
        group="references",
        spellings=("ref-fps",),
    )


@dataclass(kw_only=True)
class ModelOptions(Options):
    """Which model a command runs, and on what; at most one of model, base and config."""

    model: str | None = option(
        None, f"a folder with base model and adapter (default: {DEFAULT_MODEL})", group="model", metavar="FOLDER"
    )
    base: str | None = option(
        None,
        "a base model alone: its folder (ours, or one of diffusers), its name on the Hub, or a run that wrote one",
        group="model",
        metavar="FOLDER",
    )
    config: str | None = option(
        None, "a training config: its base model, and untrained layers without --adapter", group="model", metavar="FILE"
    )
    adapter: str | None = option(None, "an adapter file, or a training run that wrote one", group="model")
    device: str | None = option(None, "where to compute, such as cpu or cuda:1 (default: a GPU if any)", group="model")
    dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "of the weights (default: bfloat16 on a GPU, float32 on a CPU)", group="model"
    )
    quantization: Literal["none", "fp8"] = option(
        "none",
        "fp8: compute wide linear layers in 8 bits, on GPUs that can; videos differ (default: none)",
        group="model",
    )
    attention: Literal["sdpa", "xformers", "reference"] = option("sdpa", "what computes attention", group="model")
    compile: Literal["auto", "none", "graphs", "full"] = option(
        "auto",
        "on a GPU: replay the steps as CUDA graphs, or compile the UNet too (default: auto, by the number of steps)",
        group="model",
    )
    offload: bool = option(
        False, "keep on the GPU only what works there at the moment, few frames at once: less memory", group="model"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(option is not None for option in (self.model, self.base, self.config)) > 1:
            raise ConfigError("--model, --base and --config each name a model: give one of them")
        if self.base is None and self.config is None:
            self.model = self.model or DEFAULT_MODEL
        if self.device is not None and self.device.partition(":")[0] == "cpu":
            self.check_device("cpu")

    def check_device(self, kind: str) -> None:
        """Say what is for GPUs alone where the device is another, such as "cpu". Raises ConfigError."""
        if kind == "cuda":
            return
        if self.offload:
            raise ConfigError(
                f"--offload frees the memory of a GPU, and the model runs on a {kind.upper()}: leave it out"
            )
        if self.compile in ("graphs", "full"):
            raise ConfigError(
                f"--compile {self.compile} is for GPUs, and the model runs on a {kind.upper()}: leave it out"
            )

    def check_places(self) -> None:
        """Say at once that a file or folder is not there: what loads it takes seconds to import. Names of the Hub pass.

        Raises CheckpointError.
        """
        if self.config is not None and not configs.find(self.config).is_file():
            raise CheckpointError(f"there is no config {self.config}: name one with --config")
        if self.model == DEFAULT_MODEL and not os.path.lexists(DEFAULT_MODEL):
            raise CheckpointError(f"there is no model in {DEFAULT_MODEL}, the default: name one with --model or --base")
        for name in ("model", "base", "adapter"):
            path = getattr(self, name)
            if path is not None and not os.path.lexists(path) and (name == "adapter" or not is_hub_id(path)):
                raise CheckpointError(f"{path} does not exist: name another with --{name}")


@dataclass(eq=False)
class Reference:
    """A video that shows an action, and how it is read.

    video: a file or a folder of frames; pixels uint8 (t, h, w, 3) as a tensor or an array, or float in [0, 1], of that
    shape or (t, 3, h, w), as pipelines return them as "np" and "pt"; a list of PIL images or of frames; or motion
    features, as `AICLPipeline.encode_references` makes them, or their file. caption: what the video shows; None is the
    prompt. weight: from 0 up; only its ratio to the other references' matters, and 0 leaves it out. start, end: it is
    read from one share of the noise levels to another, counted from the noisiest on: 0 to 0.6 is where the course of a
    motion is decided, 0.6 to 1 where it is refined.
    """

    video: Any
    caption: str | None = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.video, str | os.PathLike):
            if not os.fspath(self.video):  # which a Path takes for the working folder
                raise ConfigError("the name of a reference is empty: give a file or a folder of frames")
            self.video = Path(self.video)
            check_text(str(self.video), "reference", ConfigError)
        if self.caption is not None:
            check_text(self.caption, "the caption of a reference", ConfigError)
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float):
            raise ConfigError(f"the weight of reference {self.name} must be a number, got {self.weight!r}")
        if not all(isinstance(each, int | float) and 0 <= each <= 1 for each in (self.start, self.end)):
            raise ConfigError(f"reference {self.name} is read from {self.start} to {self.end}: both are shares, 0 to 1")
        if self.start >= self.end:
            raise ConfigError(f"reference {self.name} is read from {self.start} to {self.end}: the end comes later")
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"the weight of reference {self.name} is {self.weight}: it must be from 0 up and finite")

    @classmethod
    def of(cls, value: Any, where: str = "reference") -> "Reference":
        """A reference from its shorthand: a video alone, "FILE@WEIGHT", "FILE@WEIGHT:START-END", or a mapping.

        A mapping has the fields of this class. Raises ConfigError for one that does not fit; `where` names it.
        """
        if isinstance(value, Reference):
            return value
        if isinstance(value, Mapping):
            if not isinstance(value.get("video", ""), str):
                raise ConfigError(f"{where}.video must be a file or a folder, got {value['video']!r}")
            return configs.from_mapping(cls, value, where=where)
        if isinstance(value, str):
            number = r"(\d+\.?\d*|\.\d+)"
            weighted = re.fullmatch(rf"(.+)@{number}(?::{number}-{number})?", value)
            if weighted and not os.path.lexists(value):
                start, end = (float(weighted[3]), float(weighted[4])) if weighted[3] else (0.0, 1.0)
                return cls(weighted[1], None, float(weighted[2]), start, end)
        return cls(value)

    @property
    def name(self) -> str:
        """What messages call it: its path, or what it is."""
        return str(self.video) if isinstance(self.video, Path) else f"of type {type(self.video).__name__}"
