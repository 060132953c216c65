"""GroupNorm of channels-last features, with what surrounds it: a shift before it and SiLU after it.

Two passes over the features, the fewest that there can be: one for the sums of each channel, in slices that keep the
whole GPU busy however few rows there are, and one that writes the result. Between them the sums become a factor and a
shift for each channel. All sums are float32 and added in a fixed order, so the same input always gives the same result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

SLICE = 256  # positions whose sums one program adds up
BLOCK_N, BLOCK_C = 32, 64


@triton.jit
def _sums(x, sums, n, c, slice_size: tl.constexpr, block_n: tl.constexpr, block_c: tl.constexpr):
    """Sum and sum of squares of each channel over a slice: x (rows, n, c) -> sums (rows, slices, 2, c)."""
    row, part = tl.program_id(0), tl.program_id(1)
    channels = tl.program_id(2) * block_c + tl.arange(0, block_c)
    x += row.to(tl.int64) * n * c
    total = tl.zeros([block_n, block_c], tl.float32)
    squares = tl.zeros([block_n, block_c], tl.float32)
    for start in range(0, slice_size, block_n):
        positions = part * slice_size + start + tl.arange(0, block_n)
        inside = (positions < n)[:, None] & (channels < c)[None, :]
        values = tl.load(x + positions[:, None] * c + channels[None, :], mask=inside, other=0.0).to(tl.float32)
        total += values
        squares += values * values
    out = sums + (row * tl.num_programs(1) + part) * 2 * c + channels
    tl.store(out, tl.sum(total, 0), mask=channels < c)
    tl.store(out + c, tl.sum(squares, 0), mask=channels < c)


@triton.jit
def _coefficients(
    sums, shift, weight, bias, out, moments, n, c, rows_per_shift, eps, slices: tl.constexpr,
    has_shift: tl.constexpr, group: tl.constexpr, block_g: tl.constexpr, block_s: tl.constexpr,
):  # fmt: skip
    """The factor and the summand of each channel that normalise (x + shift): out (rows, 2, c).

    moments (rows, 2, groups): mean and reciprocal of the standard deviation of each group.
    """
    row, g = tl.program_id(0), tl.program_id(1)
    offsets = tl.arange(0, block_g)
    channels, inside = g * group + offsets, offsets < group
    total = tl.zeros([block_g], tl.float32)
    squares = tl.zeros([block_g], tl.float32)
    for start in range(0, slices, block_s):
        parts = start + tl.arange(0, block_s)
        at = sums + (row * slices + parts[:, None]) * 2 * c + channels[None, :]
        mask = (parts < slices)[:, None] & inside[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
        squares += tl.sum(tl.load(at + c, mask=mask, other=0.0), 0)
    mean_of_channel = total / n
    spread = squares - total * mean_of_channel  # about the channel's own mean, which a shift does not change
    if has_shift:
        at = shift + (row // rows_per_shift) * c + channels
        moved = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        mean_of_channel += moved
    mean = tl.sum(tl.where(inside, mean_of_channel, 0.0), 0) / group
    distance = tl.where(inside, mean_of_channel - mean, 0.0)
    variance = tl.sum(tl.where(inside, spread, 0.0) / n + distance * distance, 0) / group
    scale = 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    factor = scale * tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    summand = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32) - mean * factor
    if has_shift:
        summand += moved * factor
    tl.store(out + row * 2 * c + channels, factor, mask=inside)
    tl.store(out + row * 2 * c + c + channels, summand, mask=inside)
    groups = tl.num_programs(1)
    tl.store(moments + row * 2 * groups + g, mean)
    tl.store(moments + row * 2 * groups + groups + g, scale)


@triton.jit
def _normalise(x, coefficients, y, n, c, silu: tl.constexpr, block_n: tl.constexpr, block_c: tl.constexpr):
    """y = x * factor + summand, then SiLU if asked: (rows, n, c)."""
    row = tl.program_id(0)
    positions = tl.program_id(1) * block_n + tl.arange(0, block_n)
    channels = tl.program_id(2) * block_c + tl.arange(0, block_c)
    coefficients += row * 2 * c
    factor = tl.load(coefficients + channels, mask=channels < c, other=0.0)
    summand = tl.load(coefficients + c + channels, mask=channels < c, other=0.0)
    at = row.to(tl.int64) * n * c + positions[:, None] * c + channels[None, :]
    inside = (positions < n)[:, None] & (channels < c)[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factor[None, :] + summand[None, :]
    if silu:
        values = values * tl.sigmoid(values)
    tl.store(y + at, values.to(y.dtype.element_ty), mask=inside)


def _run(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool, wrap=lambda k: k
) -> tuple[Tensor, Tensor, Tensor]:
    rows, n, c = x.shape
    slices, per_group = triton.cdiv(n, SLICE), c // groups
    columns = triton.cdiv(c, BLOCK_C)
    sums = torch.empty(rows, slices, 2, c, device=x.device, dtype=torch.float32)
    coefficients = torch.empty(rows, 2, c, device=x.device, dtype=torch.float32)
    moments = torch.empty(rows, 2, groups, device=x.device, dtype=torch.float32)
    y = torch.empty_like(x)
    wrap(_sums)[(rows, slices, columns)](x, sums, n, c, slice_size=SLICE, block_n=BLOCK_N, block_c=BLOCK_C, num_warps=4)
    wrap(_coefficients)[(rows, groups)](
        sums, sums if shift is None else shift, weight, bias, coefficients, moments, n, c,
        1 if shift is None else rows // shift.shape[0], eps, slices=slices,
        has_shift=shift is not None, group=per_group, block_g=triton.next_power_of_2(per_group),
        block_s=min(32, triton.next_power_of_2(slices)), num_warps=4,
    )  # fmt: skip
    wrap(_normalise)[(rows, triton.cdiv(n, BLOCK_N), columns)](
        x, coefficients, y, n, c, silu=silu, block_n=BLOCK_N, block_c=BLOCK_C, num_warps=4
    )
    return y, coefficients, moments


@triton_op("lvdm::group_norm", mutates_args={})
def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    """Normalise x (rows, n, c), contiguous, over n and the channels of each group, after adding `shift` (rows / k, c),
    of which each row serves k rows of x; SiLU follows if asked. Statistics in float32; the result has x's type."""
    return _run(x, weight, bias, shift, groups, eps, silu, wrap_triton)[0]
