"""Matrix products whose operands or results PyTorch's would write to memory and read again.

`geglu`: a linear layer of twice the width whose one half gates the other; only the product of both is written. Where
gradients are asked, PyTorch's linear layer runs, and `gated` does the rest.
`temporal_conv`: a convolution of three frames, as one product over the features of a frame and its two neighbours, read
where they are.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lvdm.models.kernels import on_its_device

BLOCK_K = 64
NARROW = {"block_m": 128, "block_n": 64, "block_k": BLOCK_K, "num_warps": 8, "num_stages": 3}
SQUARE = NARROW | {"block_n": 128}
WIDE, TALL = NARROW | {"block_n": 256}, SQUARE | {"block_m": 256}
LARGE = 160 * 1024  # bytes of shared memory for a block, as data-centre GPUs have; others take one stage less
GROUP_M = 8  # blocks of rows that share the blocks of weights in the cache
GATE_ROWS, GATE_COLUMNS = 4, 256


@triton.jit
def _tile(m, n, block_m: tl.constexpr, block_n: tl.constexpr, group_m: tl.constexpr):
    """Which block of the result this program computes; neighbours in time are neighbours in both directions."""
    pid, across = tl.program_id(0), tl.cdiv(n, block_n)
    first = pid // (group_m * across) * group_m
    height = tl.minimum(tl.cdiv(m, block_m) - first, group_m)
    return first + pid % (group_m * across) % height, pid % (group_m * across) // height


@triton.jit
def _normal_below(x):
    """The standard normal distribution's function, by Abramowitz and Stegun 7.1.26: right to 1e-7, far below half
    precision's rounding, and half as long as the library's."""
    u = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * u)
    series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    beyond = 0.5 * t * series * tl.exp(-u * u)
    return tl.where(x < 0, beyond, 1.0 - beyond)


@triton.jit
def _geglu(
    x, w, bias, out, m, n, k: tl.constexpr, even: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, group_m: tl.constexpr,
):  # fmt: skip
    """x (m, k), w (2 n, k), bias (2 n,) -> out (m, n) = (x w0 + b0) gelu(x w1 + b1). even: blocks end where x does."""
    row, column = _tile(m, n, block_m, block_n, group_m)
    rows, columns = row * block_m + tl.arange(0, block_m), column * block_n + tl.arange(0, block_n)
    ks = tl.arange(0, block_k)
    wrapped, present = columns, rows
    if not even:  # beyond the end others are computed again and thrown away: masks on the loads would cost more
        wrapped, present = columns % n, rows % m
    a = x + present.to(tl.int64)[:, None] * k + ks[None, :]
    b = w + wrapped[None, :] * k + ks[:, None]
    value = tl.zeros([block_m, block_n], tl.float32)
    gate = tl.zeros([block_m, block_n], tl.float32)
    for _ in range(0, k, block_k):
        part = tl.load(a)
        value = tl.dot(part, tl.load(b), value)
        gate = tl.dot(part, tl.load(b + n * k), gate)
        a += block_k
        b += block_k
    value += tl.load(bias + wrapped).to(tl.float32)[None, :]
    gate += tl.load(bias + n + wrapped).to(tl.float32)[None, :]
    result = value * gate * _normal_below(gate)
    at = out + rows.to(tl.int64)[:, None] * n + columns[None, :]
    if even:
        tl.store(at, result.to(out.dtype.element_ty))
    else:
        tl.store(at, result.to(out.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def _gated(h, out, rows, n: tl.constexpr, block_rows: tl.constexpr, block_n: tl.constexpr):
    """h (rows, 2 n) -> out (rows, n) = h0 gelu(h1)."""
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(1) * block_n + tl.arange(0, block_n)
    inside = (row < rows)[:, None] & (column < n)[None, :]
    at = row.to(tl.int64)[:, None] * 2 * n + column[None, :]
    value = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(h + at + n, mask=inside, other=0.0).to(tl.float32)
    result = value * gate * _normal_below(gate)
    tl.store(out + row.to(tl.int64)[:, None] * n + column[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward(h, dout, dh, rows, n: tl.constexpr, block_rows: tl.constexpr, block_n: tl.constexpr):
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(1) * block_n + tl.arange(0, block_n)
    inside = (row < rows)[:, None] & (column < n)[None, :]
    at = row.to(tl.int64)[:, None] * 2 * n + column[None, :]
    value = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(h + at + n, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(dout + row.to(tl.int64)[:, None] * n + column[None, :], mask=inside, other=0.0).to(tl.float32)
    below = _normal_below(gate)
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(dh + at, (slope * gate * below).to(dh.dtype.element_ty), mask=inside)
    tl.store(dh + at + n, (slope * value * (below + gate * density)).to(dh.dtype.element_ty), mask=inside)


@triton.jit
def _frames_conv(
    x, w, out, m, n, frames, positions, k: tl.constexpr, whole: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, group_m: tl.constexpr,
):  # fmt: skip
    """x (b, frames, positions, k) as m rows, w (n, 3, k) -> out (m, n). whole: each block of rows is of one frame."""
    row, column = _tile(m, n, block_m, block_n, group_m)
    rows, columns = row * block_m + tl.arange(0, block_m), column * block_n + tl.arange(0, block_n)
    ks = tl.arange(0, block_k)
    b = w + (columns % n)[None, :] * 3 * k + ks[:, None]
    total = tl.zeros([block_m, block_n], tl.float32)
    if whole:
        frame = row * block_m // positions % frames
        for tap in tl.static_range(3):
            if (frame + tap >= 1) & (frame + tap <= frames):
                a = x + (rows + (tap - 1) * positions).to(tl.int64)[:, None] * k + ks[None, :]
                for start in range(0, k, block_k):
                    total = tl.dot(tl.load(a + start), tl.load(b + tap * k + start), total)
    else:
        frame = rows // positions % frames
        for step in range(0, 3 * k // block_k):
            tap = step * block_k // k
            inside = (rows < m) & (frame + tap >= 1) & (frame + tap <= frames)
            a = x + (rows + (tap - 1) * positions).to(tl.int64)[:, None] * k + (step * block_k - tap * k) + ks[None, :]
            total = tl.dot(tl.load(a, mask=inside[:, None], other=0.0), tl.load(b + step * block_k), total)
    place = rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


def _fitting(blocks: dict[str, int], x: Tensor) -> dict[str, int]:
    """The blocks with as many stages as the shared memory of x's GPU has room for."""
    return blocks if _is_large(x.device.index or 0) else blocks | {"num_stages": 2}


@cache
def _is_large(device: int) -> bool:
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stubs know fewer of them
    return bool(properties.shared_memory_per_block_optin >= LARGE)


def geglu_fits(x: Tensor) -> bool:
    """Whether `geglu` was made for the width of x (..., k)."""
    return x.shape[-1] % BLOCK_K == 0


def temporal_conv_fits(weight: Tensor) -> bool:
    """Whether `temporal_conv` was made for these weights (n, k, 3, 1)."""
    return weight.shape[1] % BLOCK_K == 0 and weight.shape[2:] == (3, 1)


@on_its_device
def _run_geglu(
    x: Tensor, weight: Tensor, bias: Tensor, blocks: dict[str, int] | None = None, wrap: Any = lambda kernel: kernel
) -> Tensor:
    rows, n = x.flatten(0, -2), weight.shape[0] // 2
    m, k = rows.shape
    blocks = blocks or _fitting(NARROW if k < 512 else SQUARE, x)
    out = x.new_empty(*x.shape[:-1], n)
    grid = (triton.cdiv(m, blocks["block_m"]) * triton.cdiv(n, blocks["block_n"]),)
    even = m % blocks["block_m"] == 0 and n % blocks["block_n"] == 0
    wrap(_geglu)[grid](rows, weight, bias, out, m, n, k, even=even, group_m=GROUP_M, **blocks)
    return out


@on_its_device
def _run_gated(h: Tensor, dout: Tensor | None, wrap: Any = lambda kernel: kernel) -> Tensor:
    n = h.shape[-1] // 2
    rows = h.numel() // (2 * n)
    grid, blocks = (triton.cdiv(rows, GATE_ROWS), triton.cdiv(n, GATE_COLUMNS)), (GATE_ROWS, GATE_COLUMNS)
    out = h.new_empty(*h.shape[:-1], n) if dout is None else torch.empty_like(h)
    if dout is None:
        wrap(_gated)[grid](h, out, rows, n=n, block_rows=blocks[0], block_n=blocks[1], num_warps=4)
    else:
        wrap(_gated_backward)[grid](h, dout, out, rows, n=n, block_rows=blocks[0], block_n=blocks[1], num_warps=4)
    return out


@on_its_device
def _run_conv(
    x: Tensor, weight: Tensor, blocks: dict[str, int] | None = None, wrap: Any = lambda kernel: kernel
) -> Tensor:
    b, t, s, k = x.shape
    m, n = b * t * s, weight.shape[0]
    blocks = blocks or _fitting(TALL if k < 512 else SQUARE if k < 1024 else WIDE, x)
    packed = weight.permute(0, 2, 3, 1).contiguous()  # no copy where the weights lie channels last
    out = x.new_empty(b, t, s, n)
    grid = (triton.cdiv(m, blocks["block_m"]) * triton.cdiv(n, blocks["block_n"]),)
    whole = s % blocks["block_m"] == 0
    wrap(_frames_conv)[grid](x, packed, out, m, n, t, s, k, whole=whole, group_m=GROUP_M, **blocks)
    return out


@triton_op("lvdm::geglu", mutates_args={})
def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (..., k), contiguous, weight (2 n, k), bias (2 n,) -> (..., n): half of the product times gelu(other half)."""
    return _run_geglu(x, weight, bias, None, wrap_triton)


@triton_op("lvdm::gated", mutates_args={})
def gated(h: Tensor) -> Tensor:
    """h (..., 2 n), contiguous -> (..., n): its first half times gelu(its second half)."""
    return _run_gated(h, None, wrap_triton)


@triton_op("lvdm::gated_backward", mutates_args={})
def _gated_gradient(h: Tensor, dout: Tensor) -> Tensor:
    return _run_gated(h, dout, wrap_triton)


@triton_op("lvdm::temporal_conv", mutates_args={})
def temporal_conv(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, t, s, k), contiguous, weight (n, k, 3, 1) -> (b, t, s, n), without a bias."""
    return _run_conv(x, weight, None, wrap_triton)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dout: Tensor) -> Tensor:
    (h,) = ctx.saved_tensors
    return _gated_gradient(h, dout.contiguous())


gated.register_autograd(_differentiate, setup_context=_save)
