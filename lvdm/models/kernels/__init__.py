"""Our own GPU kernels, in Triton. Each has a plain form in `lvdm.models`, which it replaces where it can run.

A kernel serves half precision on CUDA devices that Triton compiles for. Everything else (a CPU, float32, other sizes
than it was made for) takes the plain form, and so does what happens inside `plain()`.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
NAMES = ("group_norm", "layer_norm", "temporal_attention", "geglu", "temporal_conv", "sums", "rotary", "fp8")
_enabled = set(NAMES)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_its_device(
    launch: Callable[Concatenate[Tensor, Arguments], Result],
) -> Callable[Concatenate[Tensor, Arguments], Result]:
    """`launch` with the GPU of its first tensor as the current one: Triton launches there, wherever the tensors lie."""

    @wraps(launch)
    def launched(x: Tensor, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.cuda.device_of(x):
            return launch(x, *args, **kwargs)

    return launched


@contextmanager
def only(*names: str) -> Iterator[None]:
    """Inside, no other kernels of ours are used: to compare with PyTorch's own, and to measure what each saves."""
    global _enabled
    previous, _enabled = _enabled, set(names)
    try:
        yield
    finally:
        _enabled = previous


def enabled(name: str) -> bool:
    """Whether the kernel of this name is used, see `only`."""
    return name in _enabled


def usable(x: Tensor) -> bool:
    """Whether our kernels can serve x."""
    return bool(_enabled) and x.is_cuda and x.dtype in HALF and _compiles(x.device.index or 0)


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether gradients of one of the tensors are asked, which some kernels do not have."""
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)


def _compiles(device: int) -> bool:
    return _capable(device)


# Compiled code neither looks inside nor asks again: what torch.compiler.assume_constant_result sets. To call it would
# import the compiler, which takes as long as half of torch, at every start.
_compiles._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _capable(device: int) -> bool:
    """Triton is there and compiles for this GPU, of a generation (Ampere, 8.0, or newer) that its products run on."""
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    from lvdm.models.kernels import sums

    try:
        sample = torch.ones(8, device=torch.device("cuda", device))
        return bool((sums._run(sample, sample, sample) == 3).all())
    except Exception as error:  # there are many reasons: no C compiler, no headers, no place for files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"fast GPU kernels cannot be compiled here ({reason}): PyTorch's own are used, and sampling takes about "
            "twice as long; Triton needs a C compiler",
            stacklevel=2,
        )
        return False
