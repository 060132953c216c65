"""A residual sum and the LayerNorm that reads it, in one pass: both terms are read once, both results written once."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lvdm.models.kernels import on_its_device

MAX_WIDTH = 4096  # what a program keeps in registers


@triton.jit
def _add_norm(
    x, update, weight, bias, total, y, rows, c: tl.constexpr, eps: tl.constexpr,
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


@on_its_device
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


@triton.jit
def _gradient(
    total, dy, dtotal, weight, dx, parameters, rows, c: tl.constexpr, eps: tl.constexpr, steps: tl.constexpr,
    has_dtotal: tl.constexpr, has_parameters: tl.constexpr, block_rows: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """dx of y = LayerNorm(total), plus dtotal: (rows, c); parameters (programs, 2, c): of weight and bias, in parts."""
    channel = tl.arange(0, block_c)
    factor = tl.load(weight + channel, mask=channel < c, other=0.0).to(tl.float32)
    of_weight = tl.zeros([block_c], tl.float32)
    of_bias = tl.zeros([block_c], tl.float32)
    for step in range(0, steps):
        row = (tl.program_id(0) * steps + step) * block_rows + tl.arange(0, block_rows)
        inside = (row < rows)[:, None] & (channel < c)[None, :]
        at = row.to(tl.int64)[:, None] * c + channel[None, :]
        values = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(values, 1) / c
        centred = tl.where(inside, values - mean[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / c + eps)
        normal = centred * scale[:, None]
        if has_parameters:
            of_weight += tl.sum(slope * normal, 0)
            of_bias += tl.sum(slope, 0)
        slope *= factor[None, :]
        result = slope - (tl.sum(slope, 1) / c)[:, None] - normal * (tl.sum(slope * normal, 1) / c)[:, None]
        result *= scale[:, None]
        if has_dtotal:
            result += tl.load(dtotal + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)
    if has_parameters:
        at = parameters + tl.program_id(0) * 2 * c + channel
        tl.store(at, of_weight, mask=channel < c)
        tl.store(at + c, of_bias, mask=channel < c)


@on_its_device
def _run_backward(
    total: Tensor, dy: Tensor, dtotal: Tensor | None, weight: Tensor, eps: float, parameters: bool, wrap=lambda k: k
) -> tuple[Tensor, Tensor]:
    c = total.shape[-1]
    rows, block_c = total.numel() // c, triton.next_power_of_2(c)
    block_rows = max(1, 2048 // block_c)
    steps = max(1, triton.cdiv(rows, 1024 * block_rows)) if parameters else 1
    programs = triton.cdiv(rows, steps * block_rows)
    dx = torch.empty_like(total)
    parts = torch.empty(programs if parameters else 1, 2, c, device=total.device, dtype=torch.float32)
    wrap(_gradient)[(programs,)](
        total, dy, total if dtotal is None else dtotal, weight, dx, parts, rows, c, eps, steps=steps,
        has_dtotal=dtotal is not None, has_parameters=parameters, block_rows=block_rows, block_c=block_c, num_warps=4,
    )  # fmt: skip
    return dx, parts.sum(0)


@triton_op("lvdm::layer_norm", mutates_args={})
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of x, contiguous; statistics in float32, the result in x's type."""
    return _run(x, None, weight, bias, eps, wrap_triton)[1]


@triton_op("lvdm::add_layer_norm", mutates_args={})
def add_layer_norm(x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + update, LayerNorm of that), for contiguous x and update of one shape."""
    return _run(x, update, weight, bias, eps, wrap_triton)


@triton_op("lvdm::layer_norm_backward", mutates_args={})
def _layer_norm_backward(
    total: Tensor, dy: Tensor, dtotal: Tensor | None, weight: Tensor, eps: float, parameters: bool
) -> tuple[Tensor, Tensor]:
    return _run_backward(total, dy, dtotal, weight, eps, parameters, wrap_triton)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(x, weight)
    ctx.types = weight.dtype, bias.dtype


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(ctx, dy, None, any(ctx.needs_input_grad[1:3])), None)


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(output[0], weight)
    ctx.types = weight.dtype, bias.dtype


def _differentiate_sum(ctx: Any, dtotal: Tensor, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, weight, bias = _gradients(ctx, dy, dtotal.contiguous(), any(ctx.needs_input_grad[2:4]))
    return dx, dx, weight, bias, None


def _gradients(ctx: Any, dy: Tensor, dtotal: Tensor | None, parameters: bool) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    dx, found = _layer_norm_backward(total, dy.contiguous(), dtotal, weight, ctx.eps, parameters)
    return dx, *(each.to(dtype) if parameters else None for each, dtype in zip(found, ctx.types))


layer_norm.register_autograd(_differentiate, setup_context=_save)
add_layer_norm.register_autograd(_differentiate_sum, setup_context=_save_sum)
