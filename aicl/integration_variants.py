"""Action Integration within frames, the other way round that Table II tries (rows 7 and 8)."""

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
        index = [start + min(i, count - 1) for i in range(t) for start, count in zip(starts, context.frames)]
        # (b, t, heads, k * h * w, d): the keys of a frame's row lie together
        frames = pooled[:, index].unflatten(1, (t, -1))
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
