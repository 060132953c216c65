"""Action Integration within frames, the other way round that Table II tries (rows 7 and 8)."""

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from aicl.action_integration import IntegrationConfig, ReferenceAttention
from aicl.reference_context import KeysValues, ReferenceContext
from aicl.rotary import axial_rotary, rotate


class SpatialReferenceAttention(ReferenceAttention):
    """In each frame, the backbone's features over all places read the same frame of every reference, or its last."""

    rows: ClassVar[str] = "b t h s d"

    def __init__(self, width: int, config: IntegrationConfig) -> None:
        super().__init__(width, config)
        self.rotary = config.spatial_positions == "rotary"

    def queries(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        q = super().queries(tokens, size)
        return rotate(q, axial_rotary(*size, q.shape[-1], q.device)) if self.rotary else q

    def keys_values(self, pooled: Tensor, context: ReferenceContext, size: tuple[int, int], t: int) -> KeysValues:
        starts = [sum(context.frames[:i]) for i in range(len(context.frames))]
        index = [start + min(i, count - 1) for i in range(t) for start, count in zip(starts, context.frames)]
        frames = pooled[:, index].unflatten(1, (t, -1))
        k, v = (
            rearrange(layer(frames), "b t k s (h d) -> b t h (k s) d", h=self.heads) for layer in (self.to_k, self.to_v)
        )
        if self.rotary:
            cos, sin = axial_rotary(*size, k.shape[-1], k.device)
            repeats = len(context.frames)
            k = rotate(k, (cos.repeat(repeats, 1), sin.repeat(repeats, 1)))
        return k, v

    def keys_per_reference(self, context: ReferenceContext, size: tuple[int, int]) -> tuple[int, ...]:
        return (size[0] * size[1],) * len(context.frames)

    def _positions(self, config: IntegrationConfig) -> nn.ModuleList | None:
        return None

    def _relative(self, t: int, frames: tuple[int, ...], device: torch.device) -> KeysValues | None:
        return None
