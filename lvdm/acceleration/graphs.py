"""Replaying a network's calls as CUDA graphs, for sampling: one launch a denoising step, in place of thousands.

Training has its own, with a backward pass: `lvdm.training.graphs`.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

KEPT = 8  # graphs of one network
WARM_UP = 2  # calls before a capture, in which libraries choose kernels and allocate what they keep


class Holdable(Protocol):
    """A value that a graph can hold: known to pytree as its tensors and constants, and able to take over another's."""

    def at(self, timesteps: Tensor) -> "Holdable":
        """What is read at these timesteps; called outside of graphs, so it may wait for the device."""

    def overwrite(self, other: "Holdable") -> None:
        """Become another one of the same shapes and constants, in the memory of this one."""


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    held: list[Holdable]
    sources: list[Holdable]  # what was copied into `held` last
    output: Tensor


class Replayed(nn.Module):
    """A UNet whose calls without gradients are captured at the first of each kind, and replayed from then on.

    Called like the UNet; an extra is a list of (rows, value) whose values are `Holdable`. The weights must stay where
    they are: `forget` after moving or replacing them.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        # One pool for all graphs: they run one after another, and what is kept of a call is only its result.
        self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()
        self.variant: Hashable = None  # of the UNet's ways to compute, where there are several: set by the caller

    @property
    def shares_branches(self) -> bool:
        """As of the UNet."""
        return bool(getattr(self.unet, "shares_branches", False))

    @property
    def captured(self) -> bool:
        """Whether there is a graph already."""
        return bool(self._captured)

    def forget(self) -> None:
        """Drop all graphs and their memory."""
        self._captured.clear()

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, fps: Tensor | None = None, **extras: Any
    ) -> Tensor:
        """What the UNet returns for latents x (b, c, t, h, w), timesteps (b,), context (b, m, d) and the like."""
        if torch.is_grad_enabled():
            return self.unet(x, timesteps, context, fps=fps, **extras)
        rows = [(name, part, value.at(timesteps)) for name, parts in extras.items() for part, value in parts]
        values = [value for *_, value in rows]
        inputs = [x, timesteps, context] + ([] if fps is None else [fps])
        kind = (
            self.variant,
            tuple((tensor.shape, tensor.dtype) for tensor in inputs),
            tuple((name, part.start, part.stop, _kind(value)) for name, part, value in rows),
        )
        captured = self._captured.get(kind)
        if captured is None:
            captured = self._captured[kind] = self._capture(inputs, rows)
            while len(self._captured) > KEPT:
                self._captured.popitem(last=False)
        self._captured.move_to_end(kind)
        for own, given in zip(captured.inputs, inputs):
            own.copy_(given)
        if any(one is not other for one, other in zip(captured.sources, values)):
            for held, value in zip(captured.held, values):
                held.overwrite(value)
            captured.sources = values
        captured.graph.replay()
        return captured.output.clone()

    def _capture(self, inputs: list[Tensor], rows: list[tuple[str, slice, Holdable]]) -> _Captured:
        inputs, held = [tensor.clone() for tensor in inputs], [_copied(value) for *_, value in rows]
        extras: dict[str, list[tuple[slice, Holdable]]] = {}
        for (name, part, _), value in zip(rows, held):
            extras.setdefault(name, []).append((part, value))

        def call() -> Tensor:
            x, timesteps, context, *fps = inputs
            return self.unet(x, timesteps, context, fps=fps[0] if fps else None, **extras)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local", since other threads pin memory meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = call()
        return _Captured(graph, inputs, held, [value for *_, value in rows], output)


def _kind(value: Holdable) -> Any:
    """Equal for values that can replace each other in a graph."""
    leaves, structure = pytree.tree_flatten(value)
    return structure, tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)


def _copied(value: Holdable) -> Any:
    """The value with tensors of its own."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)
