"""The plan that both UNets follow: residual and attention layers down, in the middle and up, with skip connections."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from lvdm.diffusion.step_cache import InnerFeatures
from lvdm.errors import ConfigError
from lvdm.models.backbone import Compression, ExtensibleBlock, VideoBackbone
from lvdm.models.layers import (
    NORM_GROUPS,
    Downsample,
    GroupNorm,
    StageLayer,
    Upsample,
    conv,
    for_branches,
    timestep_embedding,
    zero_init,
)
from lvdm.models.resblocks import ACTIVATIONS, ResBlock
from lvdm.models.transformers import Transformer
from lvdm.sizes import MAX_SIZE, check_sizes


@dataclass(kw_only=True)
class UNetParams:
    """Parameters that both families publish, under their published names.

    attention_resolutions: downsampling factors, not sizes, at which there is attention; the middle always has it.
    num_heads, num_head_channels: one of them; the second wins where both are given, -1 is "not given".
    use_checkpoint: recompute activations in the backward pass (numbers stay the same).
    """

    in_channels: int
    out_channels: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: list[int]
    channel_mult: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    num_heads: int = -1
    num_head_channels: int = -1
    dropout: float = 0.0
    conv_resample: bool = True
    resblock_updown: bool = False
    use_scale_shift_norm: bool = False
    use_checkpoint: bool = False
    use_fp16: bool = False
    context_dim: int | None = None
    transformer_depth: int = 1
    temporal_length: int | None = None

    def __post_init__(self) -> None:
        check_sizes(
            self, "unet", free=("num_heads", "num_head_channels", "num_heads_upsample", "padding_t", "image_size")
        )
        if not all(heads == -1 or 1 <= heads <= MAX_SIZE for heads in (self.num_heads, self.num_head_channels)):
            raise ConfigError(f"unet: num_heads and num_head_channels must be -1, or between 1 and {MAX_SIZE}")
        if self.num_heads == -1 and self.num_head_channels == -1:
            raise ConfigError("unet: either num_heads or num_head_channels must be set")
        if self.use_fp16:
            raise ConfigError("unet: use_fp16 mixes input and weight types and fails; cast the module instead")
        if self.model_channels % NORM_GROUPS:
            raise ConfigError(f"unet: model_channels {self.model_channels} must be a multiple of {NORM_GROUPS}")
        if not self.channel_mult or self.channel_mult[0] != 1:
            raise ConfigError(
                f"unet: channel_mult must start with 1 for the output layer to fit, got {self.channel_mult}"
            )

    def heads(self, channels: int) -> tuple[int, int]:
        """(heads, channels of a head) of attention at this width; their product may be smaller than the width."""
        per_head = self.num_head_channels
        heads, head_dim = (
            (self.num_heads, channels // self.num_heads) if per_head == -1 else (channels // per_head, per_head)
        )
        if not (heads > 0 and head_dim > 0):
            raise ConfigError(f"unet: {channels} channels are too few for the given num_heads or num_head_channels")
        return heads, head_dim


class Stage(nn.ModuleList):
    """Layers in turn (`StageLayer`), each of which takes what it reads: the timestep, the context or features alone."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None, recompute: bool) -> Tensor:
        for layer in cast(Iterable[StageLayer], self):
            x = layer.step(x, emb[: len(x)], context, recompute)  # fewer rows while branches of guidance are alike
        return x


class VideoUNet(VideoBackbone):
    """The plan of a UNet, which subclasses complete by saying what their layers are made of."""

    shares_branches = True
    extensible_block: ClassVar[type[nn.Module]]  # the class of those among its blocks that can be extended
    _rows: ClassVar[int]  # dimensions that convolution blocks normalise apart, see GroupNorm

    def __init__(self, params: UNetParams, activation: str = "silu", frames: int = 1) -> None:
        """frames: how many frames spatial convolutions see."""
        super().__init__()
        self.params, self.latent_channels = params, params.in_channels
        p, width = params, params.model_channels
        self.emb_channels = 4 * width
        self.inner = InnerFeatures()  # which sampling may reuse
        self.activation = ACTIVATIONS[activation]()
        self.time_embed = self._embedding()
        self.input_blocks = nn.ModuleList([Stage([conv(p.in_channels, width, frames), *self._input_attention()])])

        skips, channels, last = [width], width, len(p.channel_mult) - 1
        for level, mult in enumerate(p.channel_mult):
            for _ in range(p.num_res_blocks):
                out = mult * width
                self.input_blocks.append(Stage([self._resblock(channels, out), *self._attention_at(level, out)]))
                channels = out
                skips.append(channels)
            if level < last:
                halve = (
                    self._resblock(channels, channels, resample="down")
                    if p.resblock_updown
                    else Downsample(channels, p.conv_resample, frames)
                )
                self.input_blocks.append(Stage([halve]))
                skips.append(channels)

        self.middle_block = Stage(
            [self._resblock(channels, channels), *self._attention(channels), self._resblock(channels, channels)]
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(p.channel_mult))):
            out = mult * width
            for i in range(p.num_res_blocks + 1):
                stage = Stage([self._resblock(channels + skips.pop(), out), *self._attention_at(level, out)])
                channels = out
                if level > 0 and i == p.num_res_blocks:
                    stage.append(
                        self._resblock(channels, channels, resample="up")
                        if p.resblock_updown
                        else Upsample(channels, p.conv_resample, frames)
                    )
                self.output_blocks.append(stage)

        norm = GroupNorm(width, rows=self._rows)
        self.out = nn.Sequential(norm, ACTIVATIONS[activation](), zero_init(conv(width, p.out_channels, frames)))

    @abstractmethod
    def _resblock(self, channels: int, out_channels: int, resample: str | None = None) -> ResBlock:
        """A residual block; `resample` makes it a resampling layer."""

    @abstractmethod
    def _attention(self, channels: int) -> Sequence[nn.Module]:
        """The attention layers that follow a residual block."""

    def _input_attention(self) -> Sequence[nn.Module]:
        """Attention layers right after the first convolution."""
        return ()

    def _attention_at(self, level: int, channels: int) -> Sequence[nn.Module]:
        return self._attention(channels) if 2**level in self.params.attention_resolutions else ()

    def _embedding(self) -> nn.Sequential:
        """Sinusoidal features to an embedding, (b, model_channels) -> (b, 4 * model_channels)."""
        width, inner = self.params.model_channels, self.emb_channels
        return nn.Sequential(nn.Linear(width, inner), type(self.activation)(), nn.Linear(inner, inner))

    def _embed(self, values: Tensor, embedding: nn.Sequential) -> Tensor:
        return embedding(timestep_embedding(values, self.params.model_channels).to(self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which everything is computed."""
        return cast(nn.Linear, self.time_embed[0]).weight.dtype

    def extensible_blocks(self) -> list[ExtensibleBlock]:
        """The last inner block of each attention layer over time but the very first.

        There are none if the parameters ask for no such layers. A block maps tokens (b, t, h*w, c) to tokens.
        """
        found = []
        for name, stage, level in self._stages():
            for i, layer in enumerate(stage.children()):
                if not isinstance(layer, Transformer) or name == "input_blocks.0":
                    continue
                last = len(layer.blocks) - 1
                if isinstance(layer.blocks[last], self.extensible_block):
                    stride = (1, 2**level, 2**level)
                    found.append(ExtensibleBlock(f"{name}.{i}.blocks.{last}", layer.blocks[last], layer.width, stride))
        return found

    def enable_gradient_checkpointing(self) -> None:
        self.params.use_checkpoint = True
        transformers = [module for module in self.modules() if isinstance(module, Transformer)]
        for module in transformers:
            module.use_checkpoint = True
        if transformers and len(transformers[-1].blocks) == 1:
            # The backward pass begins with this block: what it dropped would be recomputed at once.
            transformers[-1].use_checkpoint = False

    def _stages(self) -> Iterator[tuple[str, nn.Module, int]]:
        """(name, stage, level) in order of computation; level l has 1/2^l of the latents' height and width."""
        each, levels = self.params.num_res_blocks, range(len(self.params.channel_mult))
        down = [0, *(level for level in levels for _ in range(each + 1))][:-1]  # each level ends in a downsampling
        up = [level for level in reversed(levels) for _ in range(each + 1)]
        yield from ((f"input_blocks.{i}", stage, down[i]) for i, stage in enumerate(self.input_blocks.children()))
        yield "middle_block", self.middle_block, levels[-1]
        yield from ((f"output_blocks.{i}", stage, up[i]) for i, stage in enumerate(self.output_blocks.children()))

    def latent_shape(self, frames: int, size: tuple[int, int], compression: Compression) -> tuple[int, int, int, int]:
        """See `VideoBackbone.latent_shape`; raises ConfigError also for a size that the levels do not divide."""
        pixels = compression.space * self._size_factor
        if size[0] % pixels or size[1] % pixels:
            raise ConfigError(f"size {size[0]}x{size[1]} (height x width) must consist of multiples of {pixels} pixels")
        return super().latent_shape(frames, size, compression)

    @property
    def _size_factor(self) -> int:
        """What height and width of latents are multiples of, so that every level divides them."""
        return 2 ** (len(self.params.channel_mult) - 1)

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ConfigError if latents of shape (b, c, t, h, w) are of no use to this model.

        That is: another channel count, a height or width that the levels do not divide, or more frames than the
        learned relative positions tell apart. `forward` accepts the last, as the published code does: farther frames
        share a position.
        """
        self._check_size(shape)
        frames, limit = shape[2], self._max_frames()
        if limit is not None and frames > limit:
            raise ConfigError(
                f"{frames} frames are too many: the model's relative positions tell {limit} frames apart; a longer "
                f"video is sampled in windows, window_frames={limit}"
            )

    @abstractmethod
    def _max_frames(self) -> int | None:
        """How many frames the relative positions tell apart; None if there are none."""

    def _check_size(self, shape: Sequence[int]) -> None:
        if len(shape) != 5 or shape[1] != self.params.in_channels:
            expected = f"(batch, {self.params.in_channels}, frames, height, width)"
            raise ConfigError(f"latents must have shape {expected}, got {tuple(shape)}")
        height, width, factor = shape[3], shape[4], self._size_factor
        if height % factor or width % factor:
            raise ConfigError(f"latent size {height}x{width} must be a multiple of {factor} in height and width")

    def _check_context(self, context: Tensor | None) -> None:
        width = self.params.context_dim
        if width is not None and (context is None or context.ndim != 3 or context.shape[-1] != width):
            got = "none" if context is None else tuple(context.shape)
            raise ConfigError(f"the UNet needs a context of shape (batch, tokens, {width}), got {got}")

    def _run(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        """x (b, c, t, h, w), emb (b, emb_channels), context (rows, m, context_dim) -> (rows, out_channels, t, h, w).

        rows: b, or a multiple of it, see `shares_branches`.
        """
        self._check_size(x.shape)
        self._check_context(context)
        recompute = self.params.use_checkpoint
        context = None if context is None else context.to(self.dtype)
        rows = len(x) if context is None else max(len(x), len(context))
        emb = for_branches(self.activation(emb), rows)  # every residual block begins with it
        h, skips = x.to(self.dtype).permute(0, 2, 3, 4, 1).contiguous(), []  # (b, t, h, w, c)
        outer = self.params.num_res_blocks + 1  # stages of the outermost level, on either side
        inner, places = self.inner, (rows, *x.shape[2:])
        whole = inner.whole or not inner.active
        for stage in self.input_blocks if whole else self.input_blocks[:outer]:
            h = stage(h, emb, context, recompute)
            skips.append(h)
        if whole:
            h = self.middle_block(h, emb, context, recompute)
            for stage in self.output_blocks[:-outer]:
                h = stage(_joined(h, skips.pop()), emb, context, recompute)
            if inner.active:
                inner.keep(h, places)
        else:
            h = inner.kept(places, h.dtype, h.device)
        for stage in self.output_blocks[-outer:]:
            h = stage(_joined(h, skips.pop()), emb, context, recompute)
        norm, activation, last = self.out
        h = norm(h, silu=True) if isinstance(activation, nn.SiLU) else activation(norm(h))
        return for_branches(last(h).permute(0, 4, 1, 2, 3).to(x.dtype).contiguous(), rows)


def _joined(h: Tensor, skip: Tensor) -> Tensor:
    """Features and those of the skip connection, which may have been made before branches of guidance parted."""
    rows = max(len(h), len(skip))
    return torch.cat([for_branches(h, rows), for_branches(skip, rows)], dim=-1)
