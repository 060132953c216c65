"""What a denoising network offers to the rest of the library, and the registry of those that there are.

Pipelines, training and methods built on top know a network by `VideoBackbone` alone. A new one is a file
`lvdm/models/unet_NAME.py` that registers a builder in `BACKBONES`; see CONTRIBUTING.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from lvdm.diffusion.schedule import Prediction
from lvdm.errors import ConfigError
from lvdm.registry import Registry

Grid = tuple[int, int, int]
"""Frames, height and width, counted in latent cells or in tokens."""

TOKENS = "b t (h w) c"  # einops axes of tokens as methods on top see them: each frame's places in one row


@dataclass(frozen=True)
class Compression:
    """What one latent cell stands for: `space` pixels along height and along width, `time` frames.

    With time > 1 the autoencoder is causal: the first frame has a latent frame of its own, so t frames have
    1 + (t - 1) / time latent frames.
    """

    space: int
    time: int = 1

    def grid(self, frames: int, size: tuple[int, int]) -> Grid:
        """The latents' grid of a video of `frames` frames of `size` (height, width) pixels.

        Raises ConfigError for an empty video, or one that does not come out even.
        """
        height, width = size
        if height % self.space or width % self.space:
            raise ConfigError(
                f"size {height}x{width} (height x width) must consist of multiples of {self.space} pixels"
            )
        if min(height, width, frames) < 1:
            raise ConfigError(f"a video of {frames} frames of {height}x{width} (height x width) is empty: ask for more")
        if (frames - 1) % self.time:
            raise ConfigError(
                f"{frames} frames do not fit: this model takes 1 more than a multiple of {self.time} frames"
            )
        return 1 + (frames - 1) // self.time, height // self.space, width // self.space

    def next_frames(self, frames: int) -> int:
        """The least number of frames, at least `frames`, that the autoencoder takes."""
        return 1 + -(-(frames - 1) // self.time) * self.time

    def frames(self, latent_frames: int) -> int:
        """The frames of a video of so many latent frames."""
        return 1 + (latent_frames - 1) * self.time


@dataclass(frozen=True)
class TokenLayout:
    """Where a block's tokens are in what it returns.

    axes: their order, in einops' words. "b t (h w) c" is that of our UNets; others have spatial blocks with
    "(b t) (h w) c", temporal ones with "(b h w) t c", or one sequence, as video transformers do, "b (t h w) c", frame
    after frame. item: the tokens' index in a tuple that the block returns; None where it returns them alone.
    """

    axes: str = TOKENS
    item: int | None = None

    def read(self, output: Any, grid: Grid) -> Tensor:
        """The tokens (b, t, h*w, c) in a block's output; `grid` is theirs. Fails for another number of tokens."""
        tokens = output if self.item is None else output[self.item]
        t, h, w = grid
        return tokens if self.axes == TOKENS else rearrange(tokens, f"{self.axes} -> {TOKENS}", t=t, h=h, w=w)

    def write(self, output: Any, tokens: Tensor, grid: Grid) -> Any:
        """The block's output with tokens (b, t, h*w, c) in the place of its own."""
        t, h, w = grid
        if self.axes != TOKENS:
            tokens = rearrange(tokens, f"{TOKENS} -> {self.axes}", t=t, h=h, w=w)
        if self.item is None:
            return tokens
        return (*output[: self.item], tokens, *output[self.item + 1 :])


@dataclass(frozen=True)
class ExtensibleBlock:
    """A block whose output a method on top may add to, through a forward hook on `module`.

    name: the module's in its backbone, which adapter files know it by. width: channels of its tokens.
    stride: latent cells (frames, height, width) that one of its tokens stands for, so (1, 2, 2) on a UNet's second
    level and for patches of 2x2. layout: see TokenLayout.
    """

    name: str
    module: nn.Module
    width: int
    stride: Grid = (1, 1, 1)
    layout: TokenLayout = TokenLayout()

    def grid(self, latents: Grid) -> Grid:
        """The grid of its tokens for latents of a grid, whose rest counts as one more."""
        t, h, w = (-(-cells // stride) for cells, stride in zip(latents, self.stride, strict=True))
        return t, h, w


class VideoBackbone(nn.Module, ABC):
    """A network that predicts the noise (or the velocity) in a video's latents.

    family: its name in `BACKBONES`. latent_channels: of its latents. prediction: what its output means, see
    `lvdm.diffusion.schedule`; a property of the weights, which `build_backbone` sets.
    repeated_blocks: the classes that it consists of many times, which are worth compiling one by one.
    shares_branches: whether x, timesteps and fps may be those of one branch of guidance where the context is that of
      several, branch after branch: what comes before the context is first read is then computed once for all.
    compression: of the autoencoder that it works with, where it was built with one.
    """

    family: str
    latent_channels: int
    prediction: Prediction = "eps"
    repeated_blocks: tuple[type[nn.Module], ...] = ()
    shares_branches: bool = False
    compression: Compression | None = None

    @abstractmethod
    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, fps: Tensor | float | None = None) -> Tensor:
        """Latents x (b, c, t, h, w), timesteps (b,), context (b, tokens, d) -> the prediction, like x.

        timesteps: int64, or what `NoiseSchedule.told` says in its place.
        fps: frames per second, (b,) or one number; of no effect where the network has no such condition.
        """

    @abstractmethod
    def extensible_blocks(self) -> Sequence[ExtensibleBlock]:
        """The blocks that a method on top may extend, in order of computation; none if there is nothing of use."""

    @abstractmethod
    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ConfigError if latents of `shape` (b, c, t, h, w) are of no use to this network."""

    @abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass from now on, in place of storing them."""

    def adapter_sizes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Settings that this network asks of what is trained on top of it, where they are not the usual ones: of what
        makes features for its blocks, and of what reads them there. None by default."""
        return {}, {}

    def latent_shape(self, frames: int, size: tuple[int, int], compression: Compression) -> tuple[int, int, int, int]:
        """The shape (c, t, h, w) of the latents of a video of `frames` frames of `size` (height, width) pixels.

        Raises ConfigError for a video that the autoencoder or this network cannot take.
        """
        shape = (self.latent_channels, *compression.grid(frames, size))
        self.check_input((1, *shape))
        return shape

    @property
    def embeds_guidance(self) -> bool:
        """Whether it was distilled with guidance, so that it is told the scale and needs no unconditional branch."""
        return False

    def embed_guidance(self, scale: float | None) -> None:
        """Tell a network that embeds guidance the scale; None: as it was told at first, which it is trained on top of.

        Raises ConfigError for one that does not.
        """
        raise ConfigError("this model does not embed a guidance scale: give it an unconditional branch")

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in: that of its first floating-point parameter."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())


Frozen = list[tuple[nn.Parameter, bool]]


def freeze(module: nn.Module) -> Frozen:
    """Let no parameter of `module` ask for a gradient; returns what `thaw` needs to undo that."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    return before


def thaw(before: Frozen) -> None:
    """Let those parameters ask for a gradient again that did before `freeze`."""
    for parameter, trained in before:
        parameter.requires_grad_(trained)


class WrappedBackbone(VideoBackbone):
    """A backbone that holds another one, `backbone`, and is called like it: what methods on top of one derive from."""

    def __init__(self, backbone: VideoBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.family, self.prediction = backbone.family, backbone.prediction
        self.latent_channels, self.repeated_blocks = backbone.latent_channels, backbone.repeated_blocks

    @property
    def dtype(self) -> torch.dtype:
        """The held backbone's."""
        return self.backbone.dtype

    @property
    def shares_branches(self) -> bool:
        """The held backbone's, which may change while something acts on it."""
        return self.backbone.shares_branches

    @shares_branches.setter
    def shares_branches(self, shares: bool) -> None:
        self.backbone.shares_branches = shares

    @property
    def embeds_guidance(self) -> bool:
        return self.backbone.embeds_guidance

    def embed_guidance(self, scale: float | None) -> None:
        self.backbone.embed_guidance(scale)

    def adapter_sizes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.backbone.adapter_sizes()

    def extensible_blocks(self) -> Sequence[ExtensibleBlock]:
        return self.backbone.extensible_blocks()

    def check_input(self, shape: Sequence[int]) -> None:
        self.backbone.check_input(shape)

    def enable_gradient_checkpointing(self) -> None:
        self.backbone.enable_gradient_checkpointing()


BACKBONES: Registry[Callable[[Mapping[str, Any]], VideoBackbone]] = Registry(
    "backbone family", modules="lvdm.models.unet_"
)
"""Family -> builder from the parameters in a model config's section `unet`, with random weights."""


def build_backbone(family: str, params: Mapping[str, Any], prediction: Prediction = "eps") -> VideoBackbone:
    """A backbone of a family in `BACKBONES`, from its parameters.

    Raises ConfigError for an unknown family, an unknown, missing or ill-typed parameter (naming the nearest known), and
    a combination that cannot run.
    """
    backbone = BACKBONES[family](params)
    backbone.prediction = prediction
    return backbone
