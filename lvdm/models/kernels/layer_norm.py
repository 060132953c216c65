"""A residual sum and the LayerNorm that reads it, in one pass: both terms are read once, both results written once."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

MAX_WIDTH = 4096  # what a program keeps in registers


@triton.jit
def _add_norm(
    x, update, weight, bias, total, y, rows, c: tl.constexpr, eps,
    has_update: tl.constexpr, block_rows: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """total = x + update, y = LayerNorm(total), each (rows, c)."""
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    channel = tl.arange(0, block_c)
    inside = (row < rows)[:, None] & (channel < c)[None, :]
    at = row.to(tl.int64)[:, None] * c + channel[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if has_update:
        values += tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        values = rounded.to(tl.float32)  # what other readers of the sum see
    mean = tl.sum(values, 1) / c
    centred = tl.where(inside, values - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / c + eps)
    factor = tl.load(weight + channel, mask=channel < c, other=0.0).to(tl.float32)
    summand = tl.load(bias + channel, mask=channel < c, other=0.0).to(tl.float32)
    result = centred * scale[:, None] * factor[None, :] + summand[None, :]
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)


def _run(
    x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float, wrap=lambda kernel: kernel
) -> tuple[Tensor, Tensor]:
    c = x.shape[-1]
    rows, block_c = x.numel() // c, triton.next_power_of_2(c)
    block_rows = max(1, 2048 // block_c)
    total, y = x if update is None else torch.empty_like(x), torch.empty_like(x)
    wrap(_add_norm)[(triton.cdiv(rows, block_rows),)](
        x, x if update is None else update, weight, bias, total, y, rows, c, eps,
        has_update=update is not None, block_rows=block_rows, block_c=block_c, num_warps=4,
    )  # fmt: skip
    return total, y


@triton_op("lvdm::layer_norm", mutates_args={})
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of x, contiguous; statistics in float32, the result in x's type."""
    return _run(x, None, weight, bias, eps, wrap_triton)[1]


@triton_op("lvdm::add_layer_norm", mutates_args={})
def add_layer_norm(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + update, LayerNorm of that), for contiguous x and update of one shape."""
    return _run(x, update, weight, bias, eps, wrap_triton)
