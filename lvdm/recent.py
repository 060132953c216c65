"""What was made last, kept for a while, and what tells whether the networks that made it have changed since."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from torch import nn

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by their keys, of which the `most` that were last used stay."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made where it is not there."""
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self.most:
            self._values.popitem(last=False)
        return self._values[key]


def weights_state(*modules: nn.Module | None) -> Hashable:
    """Equal for the same modules while their weights, and how many images they take at once, are unchanged.

    Changes in place are noticed; only what is written to `parameter.data` behind PyTorch's back is not.
    """
    known: list[Any] = []
    for module in (module for module in modules if module is not None):
        parameters = list(module.parameters())
        known += [id(module), tuple((id(p), p.dtype, 0 if p.is_inference() else p._version) for p in parameters)]
        known += [getattr(module, "slice_size", None), getattr(module, "tile", None)]
    return tuple(known)
