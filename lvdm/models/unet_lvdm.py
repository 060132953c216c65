"""The UNet of LVDM (Latent Video Diffusion Models, arXiv 2211.13221): space and time in one transformer block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from lvdm.config import from_mapping
from lvdm.errors import ConfigError
from lvdm.models.backbone import BACKBONES
from lvdm.models.layers import GroupNorm
from lvdm.models.resblocks import ResBlock
from lvdm.models.transformers import ContextFreeAttention, SpatioTemporalBlock, Transformer
from lvdm.models.unet_base import UNetParams, VideoUNet


@dataclass(kw_only=True)
class LVDMParams(UNetParams):
    """Published parameters of LVDM's UNet.

    use_temporal_transformer: attention layers are transformers that need a context (text-to-video), or plain attention
      without one (unconditional models). None: transformers if there is a `context_dim`.
    kernel_size_t, padding_t: frames that convolutions see; a padding that changes the frame count is refused.
    num_classes: learned embeddings of labels, see forward's `y`.
    legacy: with transformers, heads share the whole width even where `num_head_channels` does not divide it. Without,
      there are exactly `num_heads`; otherwise as many as fit of the width that `num_heads` leaves to one.
    image_size, num_heads_upsample: without effect in the published code, too.
    """

    image_size: Any = None
    dims: Literal[3] = 3
    num_heads_upsample: int = -1
    num_classes: int | None = None
    legacy: bool = True
    kernel_size_t: int = 1
    padding_t: int | None = None
    use_temporal_transformer: bool | None = None
    use_relative_position: bool = False
    nonlinearity_type: Literal["silu", "leaky_relu"] = "silu"
    ST_transformer_module: Literal["attention_temporal"] = "attention_temporal"
    ST_transformer_class: Literal["SpatialTemporalTransformer"] = "SpatialTemporalTransformer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.padding_t is None:
            self.padding_t = self.kernel_size_t // 2
        if self.kernel_size_t != 2 * self.padding_t + 1:
            raise ConfigError(
                f"unet: kernel_size_t {self.kernel_size_t} with padding_t {self.padding_t} changes the frame count, "
                f"which breaks the skip connections; use an odd kernel_size_t and half of it as padding_t"
            )
        if self.use_temporal_transformer is None:
            self.use_temporal_transformer = self.context_dim is not None
        if self.use_temporal_transformer != (self.context_dim is not None):
            raise ConfigError("unet: use_temporal_transformer and context_dim need each other")
        if self.use_relative_position and self.temporal_length is None:
            raise ConfigError("unet: use_relative_position needs temporal_length")

    @property
    def max_relative(self) -> int | None:
        """The most frames that relative positions tell apart; None without such positions."""
        return self.temporal_length if self.use_relative_position else None

    def heads(self, channels: int) -> tuple[int, int]:
        heads, head_dim = super().heads(channels)
        if self.use_temporal_transformer:
            return heads, channels // heads if self.legacy else head_dim
        if not self.legacy:
            heads = channels // head_dim  # more than `num_heads` where that does not divide the channels
        if heads * head_dim != channels:
            raise ConfigError(f"unet: {channels} channels do not divide into {heads} heads of {head_dim}")
        return heads, head_dim


class UNetLVDM(VideoUNet):
    """LVDM's UNet. Convolution blocks normalise over frames, height and width together."""

    family = "lvdm"
    repeated_blocks = (SpatioTemporalBlock, ContextFreeAttention, ResBlock, GroupNorm)
    extensible_block = SpatioTemporalBlock
    params: LVDMParams
    _rows: ClassVar[int] = 1

    def __init__(self, params: LVDMParams) -> None:
        super().__init__(params, params.nonlinearity_type, params.kernel_size_t)
        self.label_emb = None if params.num_classes is None else nn.Embedding(params.num_classes, self.emb_channels)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        fps: Tensor | float | None = None,
        *,
        y: Tensor | None = None,
    ) -> Tensor:
        """Latents x (b, c, t, h, w), timesteps (b,), context (b, m, context_dim) -> (b, out_channels, t, h, w).

        The result has x's type; in between everything is computed in the type of the weights.

        fps: accepted for the sake of one signature; LVDM knows nothing of frame rates.
        y: labels (b,) of a model with `num_classes`; None leaves them out, as the published code does.
        Raises ConfigError for a channel count or size that does not fit, a missing or ill-shaped context, and
        unexpected labels.
        """
        emb = self._embed(timesteps, self.time_embed)
        if y is not None:
            if self.label_emb is None:
                raise ConfigError("the UNet has no num_classes, so it takes no labels y")
            emb = emb + self.label_emb(y)
        return self._run(x, emb, context)

    def _resblock(self, channels: int, out_channels: int, resample: str | None = None) -> ResBlock:
        p = self.params
        return ResBlock(
            channels,
            out_channels,
            self.emb_channels,
            rows=self._rows,
            frames=p.kernel_size_t,
            dropout=p.dropout,
            activation=p.nonlinearity_type,
            scale_shift=p.use_scale_shift_norm,
            resample=resample,
        )

    def _attention(self, channels: int) -> Sequence[nn.Module]:
        p = self.params
        heads, head_dim = p.heads(channels)
        if p.context_dim is None:  # `use_temporal_transformer` goes with it
            return [ContextFreeAttention(channels, heads, p.max_relative)]
        dim = heads * head_dim
        blocks = [
            SpatioTemporalBlock(dim, heads, head_dim, p.context_dim, p.max_relative) for _ in range(p.transformer_depth)
        ]
        return [Transformer(channels, dim, blocks, rows=1, use_checkpoint=p.use_checkpoint)]

    def _max_frames(self) -> int | None:
        return self.params.max_relative


@BACKBONES.register("lvdm")
def build(params: Mapping[str, Any]) -> UNetLVDM:
    """From the parameters that published YAML files give (`unet_config`). Raises ConfigError as `build_backbone`."""
    return UNetLVDM(from_mapping(LVDMParams, params, "unet"))
