"""Rows of activations in 8-bit floating point: the largest value, the scale, and the rounding in one pass."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lvdm.models.fp8 import LARGEST, SMALLEST
from lvdm.models.kernels import on_its_device

VALUES = 4096  # of a program, at least one row


@triton.jit
def _quantize_rows(
    x, out, scales, rows, k: tl.constexpr, largest: tl.constexpr, smallest: tl.constexpr,
    block_m: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """x (rows, k) -> out, the same over scales (rows,)."""
    row, column = tl.program_id(0) * block_m + tl.arange(0, block_m), tl.arange(0, block_k)
    inside = (row < rows)[:, None] & (column < k)[None, :]
    at = row.to(tl.int64)[:, None] * k + column[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), axis=1), smallest) / largest
    tl.store(out + at, (values / scale[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale, mask=row < rows)


@on_its_device
def _run(x: Tensor, wrap: Any = lambda kernel: kernel) -> tuple[Tensor, Tensor]:
    rows, k = x.shape
    block_k = triton.next_power_of_2(k)
    block_m = max(1, VALUES // block_k)
    out, scales = x.new_empty(rows, k, dtype=torch.float8_e4m3fn), x.new_empty(rows, 1, dtype=torch.float32)
    blocks = {"block_m": block_m, "block_k": block_k, "num_warps": 8 if block_k > 1024 else 4}
    grid, constants = (triton.cdiv(rows, block_m),), {"largest": LARGEST, "smallest": SMALLEST}
    # Constants, since compiled code passes numbers in double precision, which has no rounding to 8 bits.
    wrap(_quantize_rows)[grid](x, out, scales, rows, k=k, **constants, **blocks)
    return out, scales


@triton_op("lvdm::quantize_rows", mutates_args={})
def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (rows, k), contiguous -> the same in e4m3, and its scales (rows, 1), float32."""
    return _run(x, wrap_triton)
