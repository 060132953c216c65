"""Action Integration: the cross-attention from a backbone's features to R (III-C, eq. 7)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from aicl.reference_context import KeysValues, ReferenceContext
from aicl.rotary import check_head_dim
from lvdm.errors import ConfigError
from lvdm.models.attention import RelativePosition, attend
from lvdm.models.layers import LayerNorm
from lvdm.sizes import check_sizes


@dataclass
class IntegrationConfig:
    """How R enters the backbone; the defaults are ours (Table II, row 9).

    `mode`: `temporal` (eq. 7), `spatial` (row 7), or `both`, each reading a feature of its own (row 8: the prism
    then makes two, R has 2 * feature_channels channels, the temporal ones first).
    """

    feature_channels: int = 4
    mode: Literal["temporal", "spatial", "both"] = "temporal"
    head_dim: int = 64
    max_relative_frames: int = 16
    temporal_positions: Literal["learned", "none"] = "learned"
    spatial_positions: Literal["rotary", "none"] = "rotary"

    def __post_init__(self) -> None:
        check_sizes(self, "integration")
        if self.mode != "temporal" and self.spatial_positions == "rotary":
            check_head_dim(self.head_dim, "integration.head_dim")

    @property
    def parts(self) -> tuple[Literal["temporal", "spatial"], ...]:
        """The attentions of one block, in the order of their channels in R."""
        return ("temporal", "spatial") if self.mode == "both" else (self.mode,)


class ReferenceAttention(nn.Module):
    """CA' of eq. 7: at each place, the backbone's features over its frames read R over all references' frames.

    R is area-averaged to the size of the backbone's level. Positions count inside each reference, so the order of
    references does not matter. The output projection starts at zero: untrained, it adds nothing.
    """

    rows: ClassVar[str] = "b s h t d"  # one row of attention for each sample, place and head; its tokens are frames

    def __init__(self, width: int, config: IntegrationConfig) -> None:
        super().__init__()
        if width % config.head_dim:
            raise ConfigError(f"integration.head_dim {config.head_dim} does not divide the backbone's width {width}")
        self.heads = width // config.head_dim
        self.norm = LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(config.feature_channels, width, bias=False)
        self.to_v = nn.Linear(config.feature_channels, width, bias=False)
        self.to_out = nn.Linear(width, width)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)
        self.relative = self._positions(config)

    def forward(self, tokens: Tensor, features: Tensor, context: ReferenceContext, size: tuple[int, int]) -> Tensor:
        """tokens (b, t, h*w, width), features (b, m, channels, H, W) -> the update, like tokens.

        `features` is this attention's share of `context.features`; a batch of one serves every sample. size: (h, w).
        """
        b, t = tokens.shape[:2]
        x = tokens if torch.is_autocast_enabled(tokens.device.type) else tokens.to(self.norm.weight.dtype)
        q = self.queries(self.norm(x), size)  # (b, groups, heads, n, d)
        k, v = self._keys_values(features, context, size, t)  # (b or 1, groups, heads, keys, d)
        k, v = (x.expand(b, -1, -1, -1, -1).flatten(0, 1) for x in (k, v))
        bias = context.bias(self.keys_per_reference(context, size))
        if bias is not None:
            bias = bias.expand(b, -1, -1, -1).repeat_interleave(q.shape[1], dim=0)
        out = attend(q.flatten(0, 1), k, v, bias=bias, relative=self._relative(t, context.frames, q.device))
        out = self.to_out(rearrange(out.unflatten(0, (b, -1)), f"{self.rows} -> b t s (h d)"))
        present = context.present()
        return (out if present is None else out * present.to(out.dtype)).to(tokens.dtype)

    def queries(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Normalised tokens (b, t, h*w, width) -> (b, groups, heads, n, d), as `rows` says."""
        return rearrange(self.to_q(tokens), f"b t s (h d) -> {self.rows}", h=self.heads)

    def keys_values(self, pooled: Tensor, context: ReferenceContext, size: tuple[int, int], t: int) -> KeysValues:
        """R at this level, (b, m, h*w, channels) -> keys and values (b, groups, heads, keys, d)."""
        k, v = (rearrange(layer(pooled), "b m s (h d) -> b s h m d", h=self.heads) for layer in (self.to_k, self.to_v))
        return k, v

    def keys_per_reference(self, context: ReferenceContext, size: tuple[int, int]) -> tuple[int, ...]:
        """How many keys of a row come from each reference."""
        return context.frames

    def _keys_values(self, features: Tensor, context: ReferenceContext, size: tuple[int, int], t: int) -> KeysValues:
        """`keys_values` of R averaged to this level's size, from the context's cache where gradients are not asked."""
        keep, key = not torch.is_grad_enabled(), (id(self), size, t)
        if keep and key in context.cache:
            return context.cache[key]
        pooled = F.adaptive_avg_pool2d(features.to(self.to_k.weight.dtype).flatten(0, 1), size)
        pooled = rearrange(pooled, "(b m) c h w -> b m (h w) c", b=features.shape[0])
        found = self.keys_values(pooled, context, size, t)
        if keep:
            context.cache[key] = found
        return found

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
