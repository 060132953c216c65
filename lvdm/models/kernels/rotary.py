"""Rotary positions on the heads of queries or keys, in one pass."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lvdm.models.kernels import on_its_device

BLOCK_ROWS = 32


@triton.jit
def _rotate(
    x, cos, sin, out, rows, n, heads, direction: tl.constexpr, half: tl.constexpr,
    block_rows: tl.constexpr, block_half: tl.constexpr,
):  # fmt: skip
    """x (rows, 2 half), rows counting (batch, n, heads): pairs (i, half + i) turned by the angles (n, half)."""
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    i = tl.arange(0, block_half)
    inside = (row < rows)[:, None] & (i < half)[None, :]
    at = row.to(tl.int64)[:, None] * 2 * half + i[None, :]
    angle = (row // heads % n)[:, None] * half + i[None, :]
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0) * direction
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + half, (first * s + second * c).to(out.dtype.element_ty), mask=inside)


@on_its_device
def _run(x: Tensor, cos: Tensor, sin: Tensor, direction: int, wrap: Any = lambda kernel: kernel) -> Tensor:
    _, n, heads, d = x.shape
    rows, out = x.numel() // d, torch.empty_like(x)
    wrap(_rotate)[(triton.cdiv(rows, BLOCK_ROWS),)](
        x, cos, sin, out, rows, n, heads, direction=direction, half=d // 2,
        block_rows=BLOCK_ROWS, block_half=triton.next_power_of_2(d // 2), num_warps=4,
    )  # fmt: skip
    return out


@triton_op("lvdm::rotate", mutates_args={})
def _rotate_op(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    return _run(x, cos, sin, direction, wrap_triton)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.direction = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin = ctx.saved_tensors
    return _rotate_op(dout.contiguous(), cos, sin, -ctx.direction), None, None, None


_rotate_op.register_autograd(_differentiate, setup_context=_save)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (batch, n, heads, d), contiguous, turned by angles whose float32 cosines and sines are (n, d / 2)."""
    return _rotate_op(x, cos, sin, 1)
