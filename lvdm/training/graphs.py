"""Replaying a network as CUDA graphs: one launch for its forward pass and one for its backward pass.

The kernels of a small network run faster than Python can launch them. A graph launches them all at once, so that small
batches, and with them many optimiser steps, are as fast a sample as large ones.
"""

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lvdm.errors import ConfigError

_TENSOR = object()  # in place of a tensor among the values that stay the same


class Captured(nn.Module):
    """A network whose calls with gradients are captured at the first one, and replayed from then on.

    Its arguments, in lists or not, are tensors on a GPU whose shapes and types stay the same, and other values that
    stay the same. The result and the gradients lie in memory that the next call reuses, so they must have been used by
    then: gradients cannot be accumulated over calls. Calls without gradients run the network as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._call: Any = None
        self._expected: tuple[Any, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the network returns. Raises ConfigError for arguments unlike those of the first call."""
        if not torch.is_grad_enabled():
            return self.network(*args, **kwargs)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        constants = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        found = (structure, constants, [(tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in tensors])
        if self._call is None:
            self._call, self._expected = self._capture(tensors, structure, constants), found
        if found != self._expected:
            raise ConfigError(
                f"a captured network was first called with {_shapes(self._expected)} and now with {_shapes(found)}: "
                "all batches must be alike, or training.cuda_graphs be false"
            )
        return self._call(*tensors)

    def _capture(self, tensors: list[Tensor], structure: pytree.TreeSpec, constants: list[Any]) -> Any:
        device = tensors[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        core = _Flat(self.network, structure, constants, dtype)
        samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
        with torch.autocast(device, enabled=False):  # for the backward pass, as ever; the forward pass turns it on
            with mock.patch.object(torch.cuda, "CUDAGraph", _Graph):  # which says for itself what breaks a capture
                # some parameters may be of no use to a model, as label embeddings without labels
                return torch.cuda.make_graphed_callables(core, samples, allow_unused_input=True)


class _Graph(torch.cuda.CUDAGraph):
    """A graph whose capture other threads do not break: loaders pin memory meanwhile, and NCCL watches its events."""

    def capture_begin(self, *args: Any, **kwargs: Any) -> None:
        super().capture_begin(*args, **kwargs | {"capture_error_mode": "thread_local"})


class _Flat(nn.Module):
    """The network as a function of tensors alone, in the order in which they occur in its arguments, under autocast
    to `dtype` where that is given."""

    def __init__(
        self, network: nn.Module, structure: pytree.TreeSpec, constants: list[Any], dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.network, self._structure, self._constants, self._dtype = network, structure, constants, dtype

    def forward(self, *tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        leaves = [next(rest) if constant is _TENSOR else constant for constant in self._constants]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        if self._dtype is None:
            return self.network(*args, **kwargs)
        with torch.autocast(tensors[0].device.type, self._dtype, cache_enabled=False):
            return self.network(*args, **kwargs)


def _shapes(found: tuple[Any, ...]) -> str:
    return ", ".join(f"{tuple(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype, _ in found[2])
