"""Memory of a network that is only pretended to run: on PyTorch's meta device, what is alive at once is counted."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered: `peak` is the most bytes at once in what operations have returned and is still referred to.

    What was there before does not count, and neither does what an operation needs inside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), 0)  # it was there before, or is known
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.now)
        return returned

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        place = storage._cdata
        if place not in self._known:
            self._known.add(place)
            self.now += size
            weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def peak_bytes(step: Callable[[], Any]) -> int:
    """The most bytes that are alive at once while `step` runs, whose tensors are all on the meta device.

    Attention counts as PyTorch's fused kernels have it on a GPU, which keep no map; on the meta device there are none.
    """
    with _fused_attention(), LiveBytes() as live:
        step()
    return live.peak


class _Attention(torch.autograd.Function):
    """What fused attention returns and keeps for its backward pass, in shape alone."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """`_Attention` in the place of PyTorch's, and no autocast, which the meta device does not know."""
    attention, autocast = F.scaled_dot_product_attention, torch.is_autocast_enabled

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        output: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return output

    F.scaled_dot_product_attention = fused
    torch.is_autocast_enabled = lambda *device: False
    try:
        yield
    finally:
        F.scaled_dot_product_attention, torch.is_autocast_enabled = attention, autocast
