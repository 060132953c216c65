"""Matrix products whose operands or results PyTorch's would write to memory and read again.

`geglu`: a linear layer of twice the width whose one half gates the other; only the product of both is written.
`temporal_conv`: a convolution of three frames, as one product over the features of a frame and its two neighbours, read
where they are.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

GEGLU_BLOCKS = {"block_m": 128, "block_n": 64, "block_k": 64, "num_warps": 8, "num_stages": 3}
CONV_BLOCKS = {"block_m": 128, "block_n": 128, "block_k": 64, "num_warps": 8, "num_stages": 3}
GROUP_M = 8  # blocks of rows that share the blocks of weights in the cache


@triton.jit
def _tile(m, n, block_m: tl.constexpr, block_n: tl.constexpr, group_m: tl.constexpr):
    """Which block of the result this program computes; neighbours in time are neighbours in both directions."""
    pid, across = tl.program_id(0), tl.cdiv(n, block_n)
    first = pid // (group_m * across) * group_m
    height = tl.minimum(tl.cdiv(m, block_m) - first, group_m)
    return first + pid % (group_m * across) % height, pid % (group_m * across) // height


@triton.jit
def _geglu(
    x, w, bias, out, m, n, k: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, group_m: tl.constexpr,
):  # fmt: skip
    """x (m, k), w (2 n, k), bias (2 n,) -> out (m, n) = (x w0 + b0) gelu(x w1 + b1)."""
    row, column = _tile(m, n, block_m, block_n, group_m)
    rows, columns = row * block_m + tl.arange(0, block_m), column * block_n + tl.arange(0, block_n)
    ks = tl.arange(0, block_k)
    a = x + rows.to(tl.int64)[:, None] * k + ks[None, :]
    b = w + columns[None, :] * k + ks[:, None]
    value = tl.zeros([block_m, block_n], tl.float32)
    gate = tl.zeros([block_m, block_n], tl.float32)
    for _ in range(0, k, block_k):
        part = tl.load(a, mask=(rows < m)[:, None], other=0.0)
        value = tl.dot(part, tl.load(b, mask=(columns < n)[None, :], other=0.0), value)
        gate = tl.dot(part, tl.load(b + n * k, mask=(columns < n)[None, :], other=0.0), gate)
        a += block_k
        b += block_k
    value += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    gate += tl.load(bias + n + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    # Rounded as a linear layer's result would be; erf is the exact GELU.
    value, gate = value.to(out.dtype.element_ty).to(tl.float32), gate.to(out.dtype.element_ty).to(tl.float32)
    result = value * gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    at = out + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def _frames_conv(
    x, w, bias, residual, out, m, n, frames, positions,
    k: tl.constexpr, has_bias: tl.constexpr, has_residual: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, group_m: tl.constexpr,
):  # fmt: skip
    """x (b, frames, positions, k) as m rows, w (n, 3, k), bias (n,) -> out (m, n), plus residual (m, n)."""
    row, column = _tile(m, n, block_m, block_n, group_m)
    rows, columns = row * block_m + tl.arange(0, block_m), column * block_n + tl.arange(0, block_n)
    frame = rows // positions % frames
    ks = tl.arange(0, block_k)
    total = tl.zeros([block_m, block_n], tl.float32)
    for step in range(0, 3 * k // block_k):
        tap = step * block_k // k
        start = step * block_k - tap * k
        neighbour = frame + tap - 1
        inside = (rows < m) & (neighbour >= 0) & (neighbour < frames)
        at = (rows + (tap - 1) * positions).to(tl.int64)
        part = tl.load(x + at[:, None] * k + start + ks[None, :], mask=inside[:, None], other=0.0)
        weights = tl.load(
            w + columns[None, :] * 3 * k + step * block_k + ks[:, None], mask=(columns < n)[None, :], other=0.0
        )
        total = tl.dot(part, weights, total)
    if has_bias:
        total += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    place = rows.to(tl.int64)[:, None] * n + columns[None, :]
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    if has_residual:
        total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def geglu_fits(x: Tensor) -> bool:
    """Whether `geglu` was made for the width of x (..., k)."""
    return x.shape[-1] % GEGLU_BLOCKS["block_k"] == 0


def temporal_conv_fits(weight: Tensor) -> bool:
    """Whether `temporal_conv` was made for these weights (n, k, 3, 1)."""
    return weight.shape[1] % CONV_BLOCKS["block_k"] == 0 and weight.shape[2:] == (3, 1)


def _run_geglu(x: Tensor, weight: Tensor, bias: Tensor, blocks: dict[str, int], wrap=lambda kernel: kernel) -> Tensor:
    rows, n = x.flatten(0, -2), weight.shape[0] // 2
    m, k = rows.shape
    out = x.new_empty(*x.shape[:-1], n)
    grid = (triton.cdiv(m, blocks["block_m"]) * triton.cdiv(n, blocks["block_n"]),)
    wrap(_geglu)[grid](rows, weight, bias, out, m, n, k, group_m=GROUP_M, **blocks)
    return out


def _run_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    blocks: dict[str, int],
    wrap=lambda kernel: kernel,
) -> Tensor:
    b, t, s, k = x.shape
    m, n = b * t * s, weight.shape[0]
    packed = weight.permute(0, 2, 3, 1).contiguous()  # no copy where the weights lie channels last
    out = x.new_empty(b, t, s, n)
    grid = (triton.cdiv(m, blocks["block_m"]) * triton.cdiv(n, blocks["block_n"]),)
    wrap(_frames_conv)[grid](
        x, packed, x if bias is None else bias, x if residual is None else residual, out, m, n, t, s, k,
        has_bias=bias is not None, has_residual=residual is not None, group_m=GROUP_M, **blocks,
    )  # fmt: skip
    return out


@triton_op("lvdm::geglu", mutates_args={})
def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (..., k), contiguous, weight (2 n, k), bias (2 n,) -> (..., n): half of the product times gelu(other half)."""
    return _run_geglu(x, weight, bias, GEGLU_BLOCKS, wrap_triton)


@triton_op("lvdm::temporal_conv", mutates_args={})
def temporal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x (b, t, s, k), contiguous, weight (n, k, 3, 1), bias (n,) -> (b, t, s, n), plus `residual` of that shape."""
    return _run_conv(x, weight, bias, residual, CONV_BLOCKS, wrap_triton)
