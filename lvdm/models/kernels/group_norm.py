"""GroupNorm of channels-last features, with what surrounds it: a shift before it and SiLU after it.

Two passes over the features, the fewest that there can be: one for the sums of each channel, in slices that keep the
whole GPU busy however few rows there are, and one that writes the result. Between them the sums become a factor and a
shift for each channel. All sums are float32 and added in a fixed order, so the same input always gives the same result.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lvdm.models.kernels import on_its_device

SLICE = 256  # positions whose sums one program adds up
BLOCK_N, BLOCK_C = 32, 64
MAX_BLOCKS = 2**16 - 1  # on the second axis of a CUDA grid, where the blocks of positions are
MAX_ELEMENTS = 2**31  # of a row, whose places are counted in 32 bits


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
    sums, shift, weight, bias, out, moments, n, c, rows_per_shift, eps: tl.constexpr, slices: tl.constexpr,
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


@on_its_device
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


@triton.jit
def _silu_slope(z):
    """Derivative of z sigmoid(z)."""
    gate = tl.sigmoid(z)
    return gate * (1.0 + z * (1.0 - gate))


@triton.jit
def _gradient_sums(
    x, dy, coefficients, sums, n, c, silu: tl.constexpr,
    slice_size: tl.constexpr, block_n: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """Of each channel over a slice: the sums of dz, dz x and x, where z is the normalised x: (rows, slices, 3, c)."""
    row, part = tl.program_id(0), tl.program_id(1)
    channels = tl.program_id(2) * block_c + tl.arange(0, block_c)
    factor = tl.load(coefficients + row * 2 * c + channels, mask=channels < c, other=0.0)
    summand = tl.load(coefficients + row * 2 * c + c + channels, mask=channels < c, other=0.0)
    first = row.to(tl.int64) * n * c
    slopes = tl.zeros([block_n, block_c], tl.float32)
    products = tl.zeros([block_n, block_c], tl.float32)
    total = tl.zeros([block_n, block_c], tl.float32)
    for start in range(0, slice_size, block_n):
        positions = part * slice_size + start + tl.arange(0, block_n)
        inside = (positions < n)[:, None] & (channels < c)[None, :]
        at = first + positions[:, None] * c + channels[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        if silu:
            slope *= _silu_slope(values * factor[None, :] + summand[None, :])
        slopes += slope
        products += slope * values
        total += values
    out = sums + (row * tl.num_programs(1) + part) * 3 * c + channels
    tl.store(out, tl.sum(slopes, 0), mask=channels < c)
    tl.store(out + c, tl.sum(products, 0), mask=channels < c)
    tl.store(out + 2 * c, tl.sum(total, 0), mask=channels < c)


@triton.jit
def _gradient_coefficients(
    sums, shift, coefficients, moments, out, parameters, n, c, rows_per_shift, slices: tl.constexpr,
    has_shift: tl.constexpr, group: tl.constexpr, block_g: tl.constexpr, block_s: tl.constexpr,
):  # fmt: skip
    """dx = factor dz + out0 x + out1, out (rows, 2, c); parameters (rows, 3, c): of weight, bias and shift, by row."""
    row, g = tl.program_id(0), tl.program_id(1)
    offsets = tl.arange(0, block_g)
    channels, inside = g * group + offsets, offsets < group
    slopes = tl.zeros([block_g], tl.float32)
    products = tl.zeros([block_g], tl.float32)
    total = tl.zeros([block_g], tl.float32)
    for start in range(0, slices, block_s):
        parts = start + tl.arange(0, block_s)
        at = sums + (row * slices + parts[:, None]) * 3 * c + channels[None, :]
        mask = (parts < slices)[:, None] & inside[None, :]
        slopes += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
        products += tl.sum(tl.load(at + c, mask=mask, other=0.0), 0)
        total += tl.sum(tl.load(at + 2 * c, mask=mask, other=0.0), 0)
    groups = tl.num_programs(1)
    mean = tl.load(moments + row * 2 * groups + g)
    scale = tl.load(moments + row * 2 * groups + groups + g)
    factor = tl.load(coefficients + row * 2 * c + channels, mask=inside, other=0.0)  # weight * scale
    centre = -mean
    if has_shift:
        moved = shift + (row // rows_per_shift) * c + channels
        centre += tl.load(moved, mask=inside, other=0.0).to(tl.float32)
    correlation = scale * (products + centre * slopes)  # sum of dz times the normalised x, before weight and bias
    count = n * group
    mean_slope = tl.sum(factor * slopes, 0) / count  # of the gradient of the normalised x, times scale
    mean_product = tl.sum(factor * correlation, 0) / count
    of_x = -scale * mean_product
    constant = -mean_slope + of_x * centre
    at = row * 2 * c + channels
    tl.store(out + at, of_x + tl.zeros([block_g], tl.float32), mask=inside)
    tl.store(out + at + c, constant, mask=inside)
    at = row * 3 * c + channels
    tl.store(parameters + at, correlation, mask=inside)
    tl.store(parameters + at + c, slopes, mask=inside)
    tl.store(parameters + at + 2 * c, factor * slopes + of_x * total + n * constant, mask=inside)


@triton.jit
def _gradient(x, dy, coefficients, terms, dx, n, c, silu: tl.constexpr, block_n: tl.constexpr, block_c: tl.constexpr):
    """dx = factor dz + terms0 x + terms1: (rows, n, c)."""
    row = tl.program_id(0)
    positions = tl.program_id(1) * block_n + tl.arange(0, block_n)
    channels = tl.program_id(2) * block_c + tl.arange(0, block_c)
    at = row * 2 * c + channels
    factor = tl.load(coefficients + at, mask=channels < c, other=0.0)
    summand = tl.load(coefficients + at + c, mask=channels < c, other=0.0)
    of_x = tl.load(terms + at, mask=channels < c, other=0.0)
    constant = tl.load(terms + at + c, mask=channels < c, other=0.0)
    at = row.to(tl.int64) * n * c + positions[:, None] * c + channels[None, :]
    inside = (positions < n)[:, None] & (channels < c)[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if silu:
        slope *= _silu_slope(values * factor[None, :] + summand[None, :])
    result = slope * factor[None, :] + values * of_x[None, :] + constant[None, :]
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)


@on_its_device
def _run_backward(
    x: Tensor, dy: Tensor, shift: Tensor | None, coefficients: Tensor, moments: Tensor, silu: bool, wrap=lambda k: k
) -> tuple[Tensor, Tensor]:
    rows, n, c = x.shape
    groups = moments.shape[2]
    slices, per_group, columns = triton.cdiv(n, SLICE), c // groups, triton.cdiv(c, BLOCK_C)
    sums = torch.empty(rows, slices, 3, c, device=x.device, dtype=torch.float32)
    terms = torch.empty(rows, 2, c, device=x.device, dtype=torch.float32)
    parameters = torch.empty(rows, 3, c, device=x.device, dtype=torch.float32)
    dx = torch.empty_like(x)
    wrap(_gradient_sums)[(rows, slices, columns)](
        x, dy, coefficients, sums, n, c, silu=silu,
        slice_size=SLICE, block_n=BLOCK_N, block_c=BLOCK_C, num_warps=4,
    )  # fmt: skip
    wrap(_gradient_coefficients)[(rows, groups)](
        sums, sums if shift is None else shift, coefficients, moments, terms, parameters, n, c,
        1 if shift is None else rows // shift.shape[0], slices=slices,
        has_shift=shift is not None, group=per_group, block_g=triton.next_power_of_2(per_group),
        block_s=min(32, triton.next_power_of_2(slices)), num_warps=4,
    )  # fmt: skip
    wrap(_gradient)[(rows, triton.cdiv(n, BLOCK_N), columns)](
        x, dy, coefficients, terms, dx, n, c, silu=silu, block_n=BLOCK_N, block_c=BLOCK_C, num_warps=4
    )
    return dx, parameters


@triton_op("lvdm::group_norm", mutates_args={})
def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _run(x, weight, bias, shift, groups, eps, silu, wrap_triton)


@triton_op("lvdm::group_norm_backward", mutates_args={})
def _group_norm_backward(
    x: Tensor, dy: Tensor, shift: Tensor | None, coefficients: Tensor, moments: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    return _run_backward(x, dy, shift, coefficients, moments, silu, wrap_triton)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, shift, _, _, silu = inputs
    ctx.save_for_backward(x, shift, *output[1:])
    ctx.silu, ctx.types = silu, (weight.dtype, bias.dtype)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, shift, coefficients, moments = ctx.saved_tensors
    dx, parameters = _group_norm_backward(x, dy.contiguous(), shift, coefficients, moments, ctx.silu)
    weight, bias = (parameters[:, i].sum(0).to(ctx.types[i]) if ctx.needs_input_grad[1 + i] else None for i in range(2))
    moved = None
    if ctx.needs_input_grad[3]:
        moved = parameters[:, 2].unflatten(0, (shift.shape[0], -1)).sum(1).to(shift.dtype)
    return dx, weight, bias, moved, None, None, None


_group_norm.register_autograd(_differentiate, setup_context=_save)


def fits(n: int, c: int) -> bool:
    """Whether the kernels can take rows of n positions and c channels."""
    return n <= MAX_BLOCKS * BLOCK_N and n * c < MAX_ELEMENTS


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    """Normalise x (rows, n, c), contiguous, over n and the channels of each group, after adding `shift` (rows / k, c),
    of which each row serves k rows of x; SiLU follows if asked. Statistics in float32; the result has x's type."""
    return _group_norm(x, weight, bias, shift, groups, eps, silu)[0]
