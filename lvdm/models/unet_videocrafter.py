"""The UNet of VideoCrafter 1 and 2 (arXiv 2310.19512, 2401.09047): spatial and temporal transformers in turn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lvdm.config import from_mapping
from lvdm.errors import ConfigError
from lvdm.models.backbone import BACKBONES
from lvdm.models.layers import GroupNorm, timestep_embedding
from lvdm.models.resblocks import ResBlock
from lvdm.models.transformers import SpatialBlock, TemporalBlock, Transformer
from lvdm.models.unet_base import UNetParams, VideoUNet

MOTION_GUIDANCE, MOTION_FROM = 0.05, 700  # strength of T2V-Turbo v2's motion prior, and its timesteps, of 1000
FIRST_GUIDANCE = (7.5, 0.0)  # of the prompt and of the motion prior, until a network is told others
INPUT_ATTENTION_HEADS = 8  # of the attention that `addition_attention` puts first, whatever the width
DEFAULT_FPS = 16


@dataclass(kw_only=True)
class VideoCrafterParams(UNetParams):
    """Published parameters of VideoCrafter's UNet.

    use_linear: how projections are stored in published files; 1x1 convolutions are the same map, so the numbers do not
      depend on it.
    temporal_conv: convolutions along frames after each residual block; tempspatial_aware: some are 3x3x3.
    temporal_attention: temporal transformers after the spatial ones, `temporal_transformer_depth` blocks each.
    temporal_selfatt_only: false lets every second temporal attention attend to the context.
    use_causal_attention: without effect unless `temporal_selfatt_only`, as in the published code.
    addition_attention: a temporal transformer right after the first convolution.
    use_image_attention: context tokens from number 77 on are an image's, with keys and values of their own.
    fps_cond: the frame rate is a condition.
    time_cond_proj_dim: the strength of guidance is a condition, with features of this width, as in models that were
      distilled with guidance (T2V-Turbo). motion_cond_proj_dim: so is that of a motion prior, at the noisiest
      timesteps (T2V-Turbo v2).
    """

    dims: Literal[2] = 2
    use_linear: bool = False
    temporal_conv: bool = False
    tempspatial_aware: bool = False
    temporal_attention: bool = True
    temporal_selfatt_only: bool = True
    temporal_transformer_depth: int = 1
    use_relative_position: bool = True
    use_causal_attention: bool = False
    addition_attention: bool = False
    use_image_attention: bool = False
    fps_cond: bool = False
    time_cond_proj_dim: int | None = None
    motion_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_dim is None:
            raise ConfigError("unet: context_dim is missing, the width of the text features")
        if self.motion_cond_proj_dim is not None and self.time_cond_proj_dim is None:
            raise ConfigError("unet: motion_cond_proj_dim needs time_cond_proj_dim, which it is combined with")
        if self.addition_attention and self.num_head_channels == -1:
            raise ConfigError("unet: addition_attention needs num_head_channels")
        if (self.use_relative_position or self.use_causal_attention) and self.temporal_length is None:
            raise ConfigError("unet: use_relative_position and use_causal_attention need temporal_length")

    @property
    def max_relative(self) -> int | None:
        """The most frames that relative positions tell apart; None without such positions."""
        return self.temporal_length if self.use_relative_position else None


class UNetVideoCrafter(VideoUNet):
    """VideoCrafter's UNet. Convolutions and spatial transformers normalise each frame, temporal layers all of them."""

    family = "videocrafter"
    repeated_blocks = (SpatialBlock, TemporalBlock, ResBlock, GroupNorm)
    extensible_block = TemporalBlock
    params: VideoCrafterParams
    guidance: Tensor
    _rows: ClassVar[int] = 2

    def __init__(self, params: VideoCrafterParams) -> None:
        super().__init__(params)
        self.fps_embedding = self._embedding() if params.fps_cond else None
        width, guidance, motion = params.model_channels, params.time_cond_proj_dim, params.motion_cond_proj_dim
        self.time_cond_proj = None if guidance is None else nn.Linear(guidance, width, bias=False)
        self.motion_cond_proj = None if motion is None else nn.Linear(motion, width, bias=False)
        self.combine_proj = None if motion is None else nn.Linear(2 * width, width, bias=False)
        # In millionths, since floating-point buffers are rounded to half precision with the weights, and on the
        # device, where CUDA graphs read it.
        self.register_buffer("guidance", _millionths(*FIRST_GUIDANCE), persistent=False)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the strength of guidance is a condition, in place of a branch without the prompt."""
        return self.time_cond_proj is not None

    def embed_guidance(self, scale: float | None, motion: float = MOTION_GUIDANCE) -> None:
        """Set the strengths that the next calls are conditioned on, of the prompt's guidance and the motion prior's;
        None: FIRST_GUIDANCE."""
        self.guidance.copy_(_millionths(*(FIRST_GUIDANCE if scale is None else (scale, motion))))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, fps: Tensor | float | None = None) -> Tensor:
        """Latents x (b, c, t, h, w), timesteps (b,), context (b, m, context_dim) -> (b, out_channels, t, h, w).

        The result has x's type; in between everything is computed in the type of the weights.

        fps: frames per second (b,) or one number for all, 16 if None; a model without `fps_cond` ignores it.
        Raises ConfigError for a channel count or size that does not fit, and a missing or ill-shaped context.
        """
        features = timestep_embedding(timesteps, self.params.model_channels).to(self.dtype)
        if self.time_cond_proj is not None:
            features = features + self._guidance(timesteps, self.time_cond_proj)
        emb = self.time_embed(features)
        if self.fps_embedding is not None:
            if not isinstance(fps, Tensor):
                fps = torch.full_like(timesteps, DEFAULT_FPS if fps is None else fps, dtype=torch.float32)
            emb = emb + self._embed(fps, self.fps_embedding)
        return self._run(x, emb, context)

    def _guidance(self, timesteps: Tensor, projection: nn.Linear) -> Tensor:
        """What the strengths of guidance add to the features of timesteps (b,): (b, model_channels)."""
        strengths = (self.guidance.double() / 1e6).float()
        told: Tensor = projection(_sinusoids(strengths[0].expand(len(timesteps)), projection).to(self.dtype))
        if self.motion_cond_proj is None or self.combine_proj is None:
            return told
        motion = torch.where(timesteps >= MOTION_FROM, strengths[1], 0.0)
        moved = self.motion_cond_proj(_sinusoids(motion, self.motion_cond_proj).to(self.dtype))
        combined: Tensor = self.combine_proj(torch.cat([told, moved], dim=1))
        return combined

    def _resblock(self, channels: int, out_channels: int, resample: str | None = None) -> ResBlock:
        p = self.params
        temporal_conv = ("aware" if p.tempspatial_aware else "plain") if p.temporal_conv and not resample else None
        return ResBlock(
            channels,
            out_channels,
            self.emb_channels,
            rows=self._rows,
            dropout=p.dropout,
            scale_shift=p.use_scale_shift_norm,
            resample=resample,
            temporal_conv=temporal_conv,
        )

    def _attention(self, channels: int) -> Sequence[nn.Module]:
        p = self.params
        heads, head_dim = p.heads(channels)
        dim, context_dim = heads * head_dim, p.context_dim or 0  # params refuse None
        blocks = [
            SpatialBlock(dim, heads, head_dim, context_dim, p.use_image_attention) for _ in range(p.transformer_depth)
        ]
        spatial = Transformer(channels, dim, blocks, rows=2, use_checkpoint=p.use_checkpoint)
        if not p.temporal_attention:
            return [spatial]
        return [spatial, self._temporal_transformer(channels, heads, head_dim, p.temporal_transformer_depth)]

    def _input_attention(self) -> Sequence[nn.Module]:
        p = self.params
        if not p.addition_attention:
            return ()
        # The published code gives it the spatial transformers' depth.
        return [
            self._temporal_transformer(
                p.model_channels, INPUT_ATTENTION_HEADS, p.num_head_channels, p.transformer_depth
            )
        ]

    def _temporal_transformer(self, channels: int, heads: int, head_dim: int, depth: int) -> Transformer:
        p, dim = self.params, heads * head_dim
        context_dim = None if p.temporal_selfatt_only else p.context_dim
        causal = p.use_causal_attention and p.temporal_selfatt_only
        blocks = [TemporalBlock(dim, heads, head_dim, context_dim, p.max_relative, causal) for _ in range(depth)]
        return Transformer(channels, dim, blocks, rows=1, use_checkpoint=p.use_checkpoint)

    def _max_frames(self) -> int | None:
        return self.params.max_relative


@BACKBONES.register("videocrafter")
def build(params: Mapping[str, Any]) -> UNetVideoCrafter:
    """From the parameters that published YAML files give (`unet_config`). Raises ConfigError as `build_backbone`."""
    return UNetVideoCrafter(from_mapping(VideoCrafterParams, params, "unet"))


def _millionths(*strengths: float) -> Tensor:
    """Strengths of guidance as whole millionths, int64."""
    return torch.tensor([round(1e6 * strength) for strength in strengths])


def _sinusoids(values: Tensor, projection: nn.Linear) -> Tensor:
    """Sinusoidal features of strengths of guidance (b,), as wide as the projection's input: sines first, unlike those
    of timesteps."""
    half = projection.in_features // 2
    exponents = -math.log(10_000.0) / (half - 1) * torch.arange(half, device=values.device)
    angles = 1000.0 * values[:, None] * exponents.exp()
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
