"""R as the backbone reads it while it denoises: which references, how strongly, and from which noise level on."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lvdm.errors import ConfigError

KeysValues = tuple[Tensor, Tensor]


@dataclass
class ReferenceContext:
    """R of a batch of samples (eq. 6); `IntegratedBackbone.reference_context` makes it from what a user may give.

    features: (b, m, channels, h, w) with the frames of all references on one axis, m = sum(frames); b = 1 serves any
    number of samples. frames: frame count of each reference.
    weights: (b, k) or None for equal ones; they multiply the attention's unnormalised weights. scale: factor of the
    update. spans: (lowest, highest) timestep, as the network is told it, at which each reference is read; None: all
    are, at all.
    Without gradients, each attention keeps its keys and values in `cache`, so they are computed once per video.
    """

    features: Tensor
    frames: tuple[int, ...]
    weights: Tensor | None = None
    scale: float = 1.0
    spans: tuple[tuple[float, float], ...] | None = None
    cache: dict[Hashable, tuple[KeysValues, Callable[[], KeysValues]]] = field(default_factory=dict, repr=False)
    _parts: "dict[tuple[int, ...], ReferenceContext]" = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls,
        features: Tensor,
        frames_per_reference: int | Sequence[int],
        weights: Sequence[float] | Tensor | None = None,
        scale: float = 1.0,
        spans: Sequence[tuple[float, float]] | None = None,
    ) -> "ReferenceContext | None":
        """The context of features (b, m, channels, h, w); a reference of weight 0 is left out, None if all are.

        frames_per_reference: one count for all, or a count each; they add up to m.
        weights: w_i >= 0, one a reference, or a tensor (b, k): only their ratios matter, and 0 is as if that reference
        were absent. spans: one a reference, see the class. scale: from 0 up; 0 is the base model, bit for bit.
        Raises ConfigError for what does not fit.
        """
        b, m = features.shape[:2]
        if isinstance(frames_per_reference, int):
            frames = (frames_per_reference,) * (m // max(frames_per_reference, 1))
        else:
            frames = tuple(frames_per_reference)
        if sum(frames) != m or min(frames, default=0) < 1:
            raise ConfigError(f"R has {m} frames, its references are said to have {list(frames)}")
        if not 0 <= scale < math.inf:
            raise ConfigError(f"scale is {scale}: give a number from 0 up, 0 for the base model and 1 for full effect")
        spans = None if spans is None else tuple(spans)
        if spans is not None and len(spans) != len(frames):
            raise ConfigError(f"{len(spans)} spans say when {len(frames)} references are read: give one each")
        if isinstance(weights, Tensor):
            fits = weights.ndim == 2 and weights.shape[1] == len(frames) and len({1, b, len(weights)}) < 3
            if not fits:
                raise ConfigError(f"weights {tuple(weights.shape)} must be {(b, len(frames))}: one for each reference")
        if weights is None or isinstance(weights, Tensor):
            return cls(features, frames, weights, scale, spans)
        if len(weights) != len(frames) or any(not w >= 0 or math.isinf(w) for w in weights):
            raise ConfigError(
                f"weights {list(weights)} must be numbers from 0 up, one each for {len(frames)} reference(s)"
            )
        kept = [i for i, w in enumerate(weights) if w > 0]
        if not kept:
            return None
        pieces = features.split(frames, dim=1)
        features = torch.cat([pieces[i] for i in kept], dim=1)
        rows = None
        if len({weights[i] for i in kept}) > 1:
            given = torch.tensor([weights[i] for i in kept], device=features.device)
            rows = given.expand(features.shape[0], -1)
        spans = None if spans is None else tuple(spans[i] for i in kept)
        return cls(features, tuple(frames[i] for i in kept), rows, scale, spans)

    def at(self, timesteps: Tensor) -> "ReferenceContext":
        """What is read at these timesteps (b,), which are all alike where there are spans."""
        if self.spans is None:
            return self
        t = float(timesteps[0])
        return self.only(tuple(i for i, (low, high) in enumerate(self.spans) if low <= t <= high))

    def only(self, chosen: tuple[int, ...]) -> "ReferenceContext":
        """These references, at any timestep; a strength of 0 where there are none."""
        if chosen not in self._parts:
            pieces, columns = self.features.split(self.frames, dim=1), list(chosen) or [0]
            features = self.features if len(columns) == len(pieces) else torch.cat([pieces[i] for i in columns], dim=1)
            weights = None if self.weights is None else self.weights[:, columns]
            frames = tuple(self.frames[i] for i in columns)
            self._parts[chosen] = ReferenceContext(features, frames, weights, self.scale if chosen else 0.0)
        return self._parts[chosen]

    def kept(self, key: Hashable, make: Callable[[], KeysValues]) -> KeysValues:
        """The keys and values of one attention: made at its first call, by `make`."""
        if key not in self.cache:
            self.cache[key] = make(), make
        return self.cache[key][0]

    def overwrite(self, other: "ReferenceContext") -> None:
        """Become another context of the same shapes, in the memory of this one, which CUDA graphs read.

        Without gradients only. What was kept is made anew, in its place.
        """
        for own, given in ((self.features, other.features), (self.weights, other.weights)):
            if own is not None and given is not None:
                own.copy_(given)
        for pair, make in self.cache.values():
            for own, made in zip(pair, make(), strict=True):
                own.copy_(made)

    def scores(self) -> Tensor | None:
        """log of the weights (b, k), which attention adds to the scores of a reference's keys; None for equal ones."""
        if self.weights is None:
            return None
        some = (self.weights > 0).any(dim=1, keepdim=True)
        return torch.where(some, self.weights.log(), 0.0)  # rows without any reference are silenced by `present`

    def bias(self, repeats: Sequence[int]) -> Tensor | None:
        """log of the weights as a score bias (b, 1, 1, sum(repeats)), reference i's `repeats[i]` times.

        A weight of 0 removes its reference exactly. None for equal weights.
        """
        scores = self.scores()
        if scores is None:
            return None
        columns = [scores[:, i : i + 1].expand(-1, count) for i, count in enumerate(repeats)]
        return torch.cat(columns, dim=1)[:, None, None]

    def present(self) -> Tensor | None:
        """(b, 1, 1, 1): 0 for a sample whose references all weigh nothing, else 1. None if all samples have some."""
        return None if self.weights is None else (self.weights > 0).any(dim=1).float()[:, None, None, None]


def _flatten(context: ReferenceContext) -> tuple[list[Any], tuple[Any, ...]]:
    return [context.features, context.weights], (context.frames, context.scale, context.spans)


def _unflatten(tensors: Any, rest: tuple[Any, ...]) -> ReferenceContext:
    features, weights = tensors
    frames, scale, spans = rest
    return ReferenceContext(features, frames, weights, scale, spans)


# So that whatever handles arguments by their tensors (CUDA graphs, repeating a batch) needs to know nothing of R.
pytree.register_pytree_node(
    ReferenceContext, _flatten, _unflatten, serialized_type_name="aicl.reference_context.ReferenceContext"
)
