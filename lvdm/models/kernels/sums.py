"""The end of a convolution's residual branch: its bias and the branch it joins, added in one pass."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lvdm.models.kernels import on_its_device

BLOCK = 2048


@triton.jit
def _add_biased(x, y, bias, out, count, c, block: tl.constexpr):
    """out = x + y + bias of the last dimension, of c values."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + tl.load(y + at, mask=inside, other=0.0)
    total += tl.load(bias + at % c, mask=inside, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@on_its_device
def _run(x: Tensor, y: Tensor, bias: Tensor, wrap=lambda kernel: kernel) -> Tensor:
    out, count = torch.empty_like(x), x.numel()
    wrap(_add_biased)[(triton.cdiv(count, BLOCK),)](x, y, bias, out, count, bias.shape[0], block=BLOCK, num_warps=8)
    return out


@triton_op("lvdm::add_biased", mutates_args={})
def add_biased(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias for contiguous x and y (..., c) and bias (c,), summed in float32."""
    return _run(x, y, bias, wrap_triton)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.bias = inputs[2].dtype


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    bias = dout.flatten(0, -2).sum(0, dtype=torch.float32).to(ctx.bias) if ctx.needs_input_grad[2] else None
    return dout, dout, bias


add_biased.register_autograd(_differentiate, setup_context=_save)
