"""Action Integration: the cross-attention from a backbone's features to R (III-C, eq. 7)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from aicl.reference_context import KeysValues, ReferenceContext
from aicl.rotary import check_head_dim
from lvdm.errors import ConfigError
from lvdm.models.attention import RelativePosition, attend, attend_over_time, position_tables
from lvdm.models.layers import LayerNorm
from lvdm.sizes import check_sizes


@dataclass
class IntegrationConfig:
    """How R enters the backbone; the defaults are ours (Table II, row 9).

    `mode`: `temporal` (eq. 7), `spatial` (row 7), or `both`, each reading a feature of its own (row 8: the prism
    then makes two, R has 2 * feature_channels channels, the temporal ones first). `tokens`: over time as in eq. 7, but
    R's values of a frame belong to text tokens (`prism.pool_text` false) and every place reads all of them.
    `inner_width`: of queries, keys and values; None is the block's own, fewer channels are a bottleneck that keeps an
    adapter of a large model small.
    """

    feature_channels: int = 4
    mode: Literal["temporal", "spatial", "both", "tokens"] = "temporal"
    head_dim: int = 64
    inner_width: int | None = None
    max_relative_frames: int = 16
    temporal_positions: Literal["learned", "none"] = "learned"
    spatial_positions: Literal["rotary", "none"] = "rotary"

    def __post_init__(self) -> None:
        check_sizes(self, "integration")
        if "spatial" in self.parts and self.spatial_positions == "rotary":
            check_head_dim(self.head_dim, "integration.head_dim")

    @property
    def parts(self) -> tuple[Literal["temporal", "spatial", "tokens"], ...]:
        """The attentions of one block, in the order of their channels in R."""
        return ("temporal", "spatial") if self.mode == "both" else (self.mode,)


class ReferenceAttention(nn.Module):
    """CA' of eq. 7: at each place, the backbone's features over its frames read R over all references' frames.

    R is area-averaged to the size of the backbone's level. Positions count inside each reference, so the order of
    references does not matter. The output projection starts at zero: untrained, it adds nothing.
    """

    def __init__(self, width: int, config: IntegrationConfig) -> None:
        super().__init__()
        inner = config.inner_width or width
        if inner % config.head_dim:
            of = "integration.inner_width" if config.inner_width else "the backbone's width"
            fits = math.gcd(inner, config.head_dim)
            raise ConfigError(f"integration.head_dim {config.head_dim} does not divide {of} {inner}: set it to {fits}")
        self.heads = inner // config.head_dim
        self.norm = LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(config.feature_channels, inner, bias=False)
        self.to_v = nn.Linear(config.feature_channels, inner, bias=False)
        self.to_out = nn.Linear(inner, width)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)
        self.relative = self._positions(config)

    def forward(self, tokens: Tensor, features: Tensor, context: ReferenceContext, size: tuple[int, int]) -> Tensor:
        """tokens (b, t, h*w, width), features (b, m, channels, H, W) -> the update, like tokens.

        `features` is this attention's share of `context.features`; a batch of one serves every sample. size: (h, w).
        """
        x = tokens if torch.is_autocast_enabled(tokens.device.type) else tokens.to(self.norm.weight.dtype)
        q = self.to_q(self.norm(x)).unflatten(-1, (self.heads, -1))  # (b, t, h*w, heads, d)
        k, v = self._keys_values(features, context, size, tokens.shape[1])
        out = self.to_out(self.read(q, k, v, context, size))
        present = context.present()
        return (out if present is None else out * present.to(out.dtype)).to(tokens.dtype)

    def read(self, q: Tensor, k: Tensor, v: Tensor, context: ReferenceContext, size: tuple[int, int]) -> Tensor:
        """Attention of queries (b, t, h*w, heads, d) to what `keys_values` made -> (b, t, h*w, heads * d)."""
        if len(set(context.frames)) == 1:
            return attend_over_time(
                q, k, v, tables=position_tables(self.relative), bias=context.scores(), parts=len(context.frames)
            )
        b, t, places = q.shape[:3]
        bias = context.bias(context.frames)
        if bias is not None:
            bias = bias.expand(b, -1, -1, -1).repeat_interleave(places, dim=0)
        q, k, v = (rearrange(x.expand(b, *[-1] * 4), "b t s h d -> (b s) h t d") for x in (q, k, v))
        out = attend(q, k, v, bias=bias, relative=self._relative(t, context.frames, q.device))
        return rearrange(out, "(b s) h t d -> b t s (h d)", b=b)

    def keys_values(self, pooled: Tensor, context: ReferenceContext, size: tuple[int, int], t: int) -> KeysValues:
        """R at this level, (b, m, h*w, channels) -> keys and values (b, m, h*w, heads, d)."""
        k, v = (layer(pooled).unflatten(-1, (self.heads, -1)) for layer in (self.to_k, self.to_v))
        return k, v

    def pooled(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """R (b, m, channels, H, W), area-averaged to this level's size -> (b, m, h*w, channels)."""
        pooled = F.adaptive_avg_pool2d(features.flatten(0, 1), size)
        return rearrange(pooled, "(b m) c h w -> b m (h w) c", b=features.shape[0])

    def _keys_values(self, features: Tensor, context: ReferenceContext, size: tuple[int, int], t: int) -> KeysValues:
        """`keys_values` of R brought to this level's size, from the context's cache where gradients are not asked."""

        def make() -> KeysValues:
            return self.keys_values(self.pooled(features.to(self.to_k.weight.dtype), size), context, size, t)

        return make() if torch.is_grad_enabled() else context.kept((id(self), size, t), make)

    def _positions(self, config: IntegrationConfig) -> nn.ModuleList | None:
        """Tables of learned relative keys and values, where there are any."""
        if config.temporal_positions == "none":
            return None
        return nn.ModuleList(RelativePosition(config.head_dim, config.max_relative_frames) for _ in ("key", "value"))

    def _relative(self, t: int, frames: tuple[int, ...], device: torch.device) -> KeysValues | None:
        """Learned keys and values (t, m, d) for the distance of a query's frame to a key's inside its reference."""
        if self.relative is None:
            return None
        queries = torch.arange(t, device=device)
        keys = torch.cat([torch.arange(count, device=device) for count in frames])
        key_table, value_table = self.relative
        return key_table(queries, keys), value_table(queries, keys)
