"""The other integrations of Table II: within frames (rows 7 and 8), and of an R that belongs to tokens (row 2)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from aicl.action_integration import IntegrationConfig, ReferenceAttention
from aicl.reference_context import KeysValues, ReferenceContext
from aicl.rotary import axial_rotary, rotate
from lvdm.models.attention import attend


class SpatialReferenceAttention(ReferenceAttention):
    """In each frame, the backbone's features over all places read the same frame of every reference, or its last."""

    def __init__(self, width: int, config: IntegrationConfig) -> None:
        super().__init__(width, config)
        self.rotary = config.spatial_positions == "rotary"

    def read(self, q: Tensor, k: Tensor, v: Tensor, context: ReferenceContext, size: tuple[int, int]) -> Tensor:
        b, t, places = q.shape[:3]
        q = rearrange(q, "b t s h d -> (b t) h s d")
        if self.rotary:
            q = rotate(q, axial_rotary(*size, q.shape[-1], q.device))
        k, v = (x.expand(b, *[-1] * 4).flatten(0, 1) for x in (k, v))
        bias = context.bias([places] * len(context.frames))
        if bias is not None:
            bias = bias.expand(b, -1, -1, -1).repeat_interleave(t, dim=0)
        return rearrange(attend(q, k, v, bias=bias), "(b t) h s d -> b t s (h d)", b=b)

    def keys_values(self, pooled: Tensor, context: ReferenceContext, size: tuple[int, int], t: int) -> KeysValues:
        starts = [sum(context.frames[:i]) for i in range(len(context.frames))]
        frame = torch.arange(t, device=pooled.device)
        index = torch.stack([start + frame.clamp(max=count - 1) for start, count in zip(starts, context.frames)], 1)
        # (b, t, heads, k * h * w, d): the keys of a frame's row lie together
        frames = pooled.index_select(1, index.flatten()).unflatten(1, (t, -1))
        k, v = (
            rearrange(layer(frames), "b t k s (h d) -> b t h (k s) d", h=self.heads) for layer in (self.to_k, self.to_v)
        )
        if self.rotary:
            cos, sin = axial_rotary(*size, k.shape[-1], k.device)
            repeats = len(context.frames)
            k = rotate(k, (cos.repeat(repeats, 1), sin.repeat(repeats, 1)))
        return k, v

    def _positions(self, config: IntegrationConfig) -> nn.ModuleList | None:
        return None


class TokenReferenceAttention(ReferenceAttention):
    """Each place of each frame reads R over all references' frames and all of their text tokens.

    R (b, m, channels, 1, tokens) has no places to average. A token's relative position is its frame's, as in eq. 7.
    """

    def read(self, q: Tensor, k: Tensor, v: Tensor, context: ReferenceContext, size: tuple[int, int]) -> Tensor:
        b, t = q.shape[:2]
        q = rearrange(q, "b t s h d -> (b t) h s d")
        bias = context.bias([count * k.shape[4] for count in context.frames])
        if bias is not None:
            bias = bias.expand(b, -1, -1, -1).repeat_interleave(t, dim=0)
        k, v = (rearrange(x.expand(b, t, *[-1] * 4), "b t h m n d -> (b t) h (m n) d") for x in (k, v))
        return rearrange(attend(q, k, v, bias=bias), "(b t) h s d -> b t s (h d)", b=b)

    def keys_values(self, pooled: Tensor, context: ReferenceContext, size: tuple[int, int], t: int) -> KeysValues:
        """R as (b, m, tokens, channels) -> keys and values (b, t, heads, m, tokens, d); t is 1 without positions.

        They hold the relative positions: a query of frame i sees k_j + a_ij and v_j + b_ij.
        """
        k, v = (
            rearrange(layer(pooled), "b m n (h d) -> b 1 h m n d", h=self.heads) for layer in (self.to_k, self.to_v)
        )
        relative = self._relative(t, context.frames, pooled.device)
        if relative is not None:
            k, v = (x + rearrange(table, "t m d -> 1 t 1 m 1 d") for x, table in zip((k, v), relative))
        return k, v

    def pooled(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """R (b, m, channels, 1, tokens) -> (b, m, tokens, channels): tokens are not averaged."""
        return rearrange(features, "b m c 1 n -> b m n c")
