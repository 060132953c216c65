"""The description of a whole model, `configs/models/*.yaml`, and the building of its parts from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lvdm import config as configs
from lvdm.diffusion.schedule import DiffusionConfig, NoiseSchedule
from lvdm.errors import ConfigError
from lvdm.models.backbone import BACKBONES, VideoBackbone, build_backbone
from lvdm.models.codec import LatentCodec
from lvdm.models.codec_families import AutoencoderConfig, LatentConfig, build_codec
from lvdm.models.image import ImageConfig, ImageEncoder, ImageResampler, ResamplerParams
from lvdm.models.text import TextConfig, TextEncoder
from lvdm.options import SamplerName
from lvdm.sizes import check_sizes

PARTS = ("unet", "codec", "text", "image")


@dataclass
class ImageConditionConfig:
    """What turns an image into context tokens; `resampler` has the published parameter names."""

    encoder: ImageConfig
    resampler: dict[str, Any]


@dataclass
class GenerationDefaults:
    """What the pipeline uses where a call says nothing: the settings of the published inference scripts.

    size: (height, width) in pixels. fps: the frame rate that the model is conditioned on, None where it has no such
    input. save_fps: at which rate its videos are meant to be played. sampler: a name in
    `lvdm.diffusion.samplers.SAMPLERS`. eta: DDIM's.
    """

    OLD_NAMES: ClassVar[dict[str, str]] = {"steps": "num_inference_steps", "guidance": "guidance_scale"}

    num_frames: int = 16
    size: tuple[int, int] = (256, 256)
    num_inference_steps: int = 50
    guidance_scale: float = 12.0
    sampler: SamplerName = "ddim"
    eta: float = 1.0
    fps: int | None = None
    save_fps: int = 8
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        check_sizes(self, "defaults")

    @property
    def height(self) -> int:
        """In pixels."""
        return self.size[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.size[1]


@dataclass
class ModelConfig:
    """A text-to-video or, with `image`, an image-to-video model. `unet` has the published parameter names.

    family: a name in `lvdm.models.backbone.BACKBONES`.
    """

    family: str
    unet: dict[str, Any]
    autoencoder: AutoencoderConfig
    text: TextConfig
    image: ImageConditionConfig | None = None
    latents: LatentConfig = field(default_factory=LatentConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)

    def __post_init__(self) -> None:
        BACKBONES[self.family]  # raises ConfigError where there is none

    @property
    def takes_image(self) -> bool:
        """Whether its videos begin with an image that is given."""
        return self.image is not None

    @classmethod
    def read(cls, mapping: Mapping[str, Any], where: str) -> "ModelConfig":
        """From the mapping of a config file, also of an earlier version. Raises ConfigError, naming it `where`."""
        if isinstance(mapping, Mapping) and isinstance(mapping.get("defaults"), Mapping):
            renamed = GenerationDefaults.OLD_NAMES
            defaults = configs.with_new_names(mapping["defaults"], renamed, f"defaults in {where}")
            mapping = {**mapping, "defaults": defaults}
        return configs.from_mapping(cls, mapping, where=where)


@dataclass
class Components:
    """The built parts of a model; a part that was not asked for, or that the model lacks, is None.

    The types of the first three say what they are when they are there: whoever builds a model in part asks for what he
    uses, and a pipeline refuses to be made without them.
    """

    schedule: NoiseSchedule
    diffusion: DiffusionConfig
    unet: VideoBackbone = None  # type: ignore[assignment]
    codec: LatentCodec = None  # type: ignore[assignment]
    text: TextEncoder = None  # type: ignore[assignment]
    image_encoder: ImageEncoder | None = None
    image_resampler: ImageResampler | None = None

    def modules(self) -> dict[str, nn.Module]:
        """The parts with weights, by the names that they have in a model folder."""
        parts: dict[str, nn.Module | None] = {
            "unet": self.unet,
            "autoencoder": None if self.codec is None else self.codec.autoencoder,
            "text_encoder": self.text,
            "image_encoder": self.image_encoder,
            "image_resampler": self.image_resampler,
        }
        return {name: module for name, module in parts.items() if module is not None}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move and cast every part in place."""
        parts: tuple[nn.Module | None, ...] = (
            self.unet,
            self.codec,
            self.text,
            self.image_encoder,
            self.image_resampler,
        )
        for module in parts:
            if module is not None:
                module.to(device=device, dtype=dtype)
        return self

    def eval(self) -> Self:
        """Put every part into inference mode, without gradients."""
        for module in self.modules().values():
            module.eval().requires_grad_(False)
        return self


def build_components(
    config: ModelConfig,
    parts: Sequence[str] = PARTS,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    init: Literal["random", "meta"] = "random",
) -> Components:
    """Build `parts` of a model.

    init "random": initialised for training from scratch, directly on `device` and in `dtype`, with torch's global seed.
    init "meta": parameters without memory, to be replaced by loaded ones (`load_state_dict(..., assign=True)`); what is
    no parameter lies on `device` already.
    Raises ConfigError for an unknown part or a parameter that its constructor does not know.
    """
    if unknown := set(parts) - set(PARTS):
        raise ConfigError(f"unknown model parts {sorted(unknown)}: choose from {', '.join(PARTS)}")
    build: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: build_backbone(config.family, config.unet, config.diffusion.prediction),
        "codec": lambda: build_codec(config.autoencoder, config.latents),
        "text": lambda: TextEncoder(config.text),
    }
    image = config.image
    if image is not None:
        build["image_encoder"] = lambda: ImageEncoder(image.encoder)
        resampler = configs.from_mapping(ResamplerParams, image.resampler, "image.resampler")
        build["image_resampler"] = lambda: ImageResampler(**asdict(resampler))
    device = torch.device(device or "cpu")
    built: dict[str, Any] = {}
    for name, construct in build.items():
        if name.split("_")[0] in parts:
            with _parameters_on("meta" if init == "meta" else device, dtype):
                module = construct()
            built[name] = module.to(dtype=dtype)
            for child in module.modules():
                for buffer_name, buffer in child.named_buffers(recurse=False):
                    setattr(child, buffer_name, buffer.to(device))
    if "unet" in built and "codec" in built:
        built["unet"].compression = built["codec"].compression
    return Components(config.diffusion.build_schedule(), config.diffusion, **built)


@contextmanager
def _parameters_on(device: torch.device | str, dtype: torch.dtype | None) -> Iterator[None]:
    """Whatever module is built inside has its parameters moved and cast before they are initialised.

    On meta, initialisation costs nothing; on a GPU in bfloat16, a full-size model takes a second and no spare memory.
    Buffers are left alone: their values are computed, not loaded, so they must exist.
    """

    def move(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        data = parameter.data
        moved = data.to(device, dtype)
        return parameter if moved is data else nn.Parameter(moved, parameter.requires_grad)  # a tied one stays itself

    handle = register_module_parameter_registration_hook(cast(Any, move))  # declared to return nothing
    try:
        with nullcontext() if device == "meta" else torch.device(device):
            yield
    finally:
        handle.remove()
