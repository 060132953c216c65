"""Attention along frames at each position, with learned relative keys and values, in one kernel.

A video has few frames and many positions: softmax(q k) of 16 queries and 16 keys fits into one warp's registers. The
kernel reads queries, keys and values where the projections wrote them, frames first, so nothing is transposed.

The relative part of a score depends on the distance of two frames only: the products of a query with the learned keys
of all distances are one small matrix product, from which the score of each pair is picked. Relative values are the
same backwards: weights are sorted by distance, then multiplied by the learned values.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lvdm.models.kernels import on_its_device

MAX_FRAMES, MAX_WIDTH = 32, 256  # what fits into registers
TABLE_PROGRAMS = 4096  # programs that share out the positions where tables get gradients, each with sums of its own


@triton.jit
def _rows(x, count, stride, width, rows: tl.constexpr, columns: tl.constexpr):
    """Load (rows, columns) of a matrix of `count` rows, `stride` apart, of `width` values; what is outside is zero."""
    i, c = tl.arange(0, rows), tl.arange(0, columns)
    inside = (i < count)[:, None] & (c < width)[None, :]
    return tl.load(x + i.to(tl.int64)[:, None] * stride + c[None, :], mask=inside, other=0.0)


@triton.jit
def _table(x, first, reach, width, rows: tl.constexpr, columns: tl.constexpr):
    """Rows of a table of learned vectors for the distances first, first + 1, ...; farther ones than +-reach like it."""
    distance = tl.minimum(tl.maximum(first + tl.arange(0, rows), -reach), reach)
    c = tl.arange(0, columns)
    at = x + (distance + reach)[:, None] * width + c[None, :]
    return tl.load(at, mask=(c < width)[None, :] & (distance >= -reach)[:, None], other=0.0)


@triton.jit
def _forward(
    q, k, v, bias, table_k, table_v, out,
    q_sample, q_frame, q_position, k_sample, k_frame, k_position, v_sample, v_frame, v_position,
    positions, heads, scale: tl.constexpr, reach,
    n: tl.constexpr, f: tl.constexpr, parts: tl.constexpr, d: tl.constexpr, causal: tl.constexpr,
    has_bias: tl.constexpr, has_k: tl.constexpr, has_v: tl.constexpr,
    block_n: tl.constexpr, block_f: tl.constexpr, block_d: tl.constexpr, span: tl.constexpr,
):  # fmt: skip
    """One program for each (sample, position, head)."""
    pid = tl.program_id(0)
    head, row = pid % heads, pid // heads
    position, sample = row % positions, (row // positions).to(tl.int64)
    q += sample * q_sample + position * q_position + head * d
    k += sample * k_sample + position * k_position + head * d
    v += sample * v_sample + position * v_position + head * d
    queries = _rows(q, n, q_frame, d, block_n, block_d)
    i, j, e = tl.arange(0, block_n), tl.arange(0, block_f), tl.arange(0, span)
    distance = tl.minimum(tl.maximum(j[None, :] - i[:, None] + (n - 1), 0), span - 1)  # row of the table of a pair
    if has_k:
        learned = tl.dot(queries, tl.trans(_table(table_k, 1 - n, reach, d, span, block_d).to(queries.dtype)))
        learned = tl.gather(learned, distance, 1)
    if has_v:
        key = e[None, :] + i[:, None] - (n - 1)  # key of a query and a distance
        reached = (key >= 0) & (key < f)
        key = tl.minimum(tl.maximum(key, 0), block_f - 1)
        by_distance = tl.zeros([block_n, span], tl.float32)
    best = tl.full([block_n], float("-inf"), tl.float32)
    total = tl.zeros([block_n], tl.float32)
    result = tl.zeros([block_n, block_d], tl.float32)
    seen = (j < f)[None, :]
    if causal:
        seen = seen & (j[None, :] <= i[:, None])
    for part in tl.static_range(parts):
        keys = _rows(k + part * f * k_frame, f, k_frame, d, block_f, block_d)
        values = _rows(v + part * f * v_frame, f, v_frame, d, block_f, block_d)
        scores = tl.dot(queries, tl.trans(keys))
        if has_k:
            scores += learned
        scores = scores * scale
        if has_bias:
            scores += tl.load(bias + sample * parts + part)
        scores = tl.where(seen, scores, float("-inf"))
        highest = tl.maximum(tl.maximum(best, tl.max(scores, 1)), -1e30)  # finite: a part may have no weight at all
        weights = tl.exp(scores - highest[:, None])
        fading = tl.exp(best - highest)
        total = total * fading + tl.sum(weights, 1)
        result = result * fading[:, None] + tl.dot(weights.to(values.dtype), values)
        if has_v:
            gathered = tl.where(reached, tl.gather(weights, key, 1), 0.0)
            by_distance = by_distance * fading[:, None] + gathered
        best = highest
    if has_v:
        values = _table(table_v, 1 - n, reach, d, span, block_d).to(queries.dtype)
        result += tl.dot(by_distance.to(values.dtype), values)
    result = result / total[:, None]
    c = tl.arange(0, block_d)
    at = out + ((sample * n + i.to(tl.int64)[:, None]) * positions + position) * heads * d + head * d + c[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=(i < n)[:, None] & (c < d)[None, :])


@triton.jit
def _backward(
    q, k, v, bias, table_k, table_v, out, dout, dq, dk, dv, dtables,
    q_sample, q_frame, q_position, k_sample, k_frame, k_position, v_sample, v_frame, v_position,
    positions, heads, scale: tl.constexpr, reach, programs_per_row, steps: tl.constexpr,
    n: tl.constexpr, f: tl.constexpr, parts: tl.constexpr, d: tl.constexpr, causal: tl.constexpr,
    has_bias: tl.constexpr, has_k: tl.constexpr, has_v: tl.constexpr, has_dtables: tl.constexpr,
    block_n: tl.constexpr, block_f: tl.constexpr, block_d: tl.constexpr, span: tl.constexpr,
):  # fmt: skip
    """One program for `steps` positions of a sample and head; dtables (programs, 2, span, d), by distance from 1 - n.

    dq, dk and dv are packed, (b, frames, positions, heads, d).
    """
    pid = tl.program_id(0)
    head, row = pid % heads, pid // heads
    chunk, sample = row % programs_per_row, (row // programs_per_row).to(tl.int64)
    i, j, e, c = tl.arange(0, block_n), tl.arange(0, block_f), tl.arange(0, span), tl.arange(0, block_d)
    distance = tl.minimum(tl.maximum(j[None, :] - i[:, None] + (n - 1), 0), span - 1)
    key = e[None, :] + i[:, None] - (n - 1)
    reached = (key >= 0) & (key < f) & (i < n)[:, None]
    key = tl.minimum(tl.maximum(key, 0), block_f - 1)
    seen = (j < f)[None, :] & (i < n)[:, None]
    if causal:
        seen = seen & (j[None, :] <= i[:, None])
    if has_k:
        learned_k = _table(table_k, 1 - n, reach, d, span, block_d).to(q.dtype.element_ty)
    if has_v:
        learned_v = _table(table_v, 1 - n, reach, d, span, block_d).to(q.dtype.element_ty)
    if has_dtables:
        of_k = tl.zeros([span, block_d], tl.float32)
        of_v = tl.zeros([span, block_d], tl.float32)
    packed = tl.cast(positions, tl.int64) * heads * d  # which torch.compile may give as a constant
    for step in range(0, steps):
        position = chunk * steps + step
        if position < positions:
            place = position * heads * d + head * d
            queries = _rows(q + sample * q_sample + position * q_position + head * d, n, q_frame, d, block_n, block_d)
            slopes = _rows(dout + sample * n * packed + place, n, packed, d, block_n, block_d)
            results = _rows(out + sample * n * packed + place, n, packed, d, block_n, block_d)
            common = tl.sum(slopes.to(tl.float32) * results.to(tl.float32), 1)
            if has_k:
                by_key = tl.gather(tl.dot(queries, tl.trans(learned_k)), distance, 1)
            if has_v:
                by_value = tl.gather(tl.dot(slopes, tl.trans(learned_v)), distance, 1)
            k_here = k + sample * k_sample + position * k_position + head * d
            v_here = v + sample * v_sample + position * v_position + head * d
            best = tl.full([block_n], -1e30, tl.float32)
            total = tl.zeros([block_n], tl.float32)
            for part in tl.static_range(parts):
                keys = _rows(k_here + part * f * k_frame, f, k_frame, d, block_f, block_d)
                scores = tl.dot(queries, tl.trans(keys))
                if has_k:
                    scores += by_key
                scores = scores * scale
                if has_bias:
                    scores += tl.load(bias + sample * parts + part)
                scores = tl.where(seen, scores, float("-inf"))
                highest = tl.maximum(best, tl.max(scores, 1))
                total = total * tl.exp(best - highest) + tl.sum(tl.exp(scores - highest[:, None]), 1)
                best = highest
            total = tl.where(i < n, total, 1.0)
            dqueries = tl.zeros([block_n, block_d], tl.float32)
            by_distance = tl.zeros([block_n, span], tl.float32)
            weights_by_distance = tl.zeros([block_n, span], tl.float32)
            for part in tl.static_range(parts):
                keys = _rows(k_here + part * f * k_frame, f, k_frame, d, block_f, block_d)
                values = _rows(v_here + part * f * v_frame, f, v_frame, d, block_f, block_d)
                scores = tl.dot(queries, tl.trans(keys))
                if has_k:
                    scores += by_key
                scores = scores * scale
                if has_bias:
                    scores += tl.load(bias + sample * parts + part)
                weights = tl.where(seen, tl.exp(scores - best[:, None]) / total[:, None], 0.0)
                dweights = tl.dot(slopes, tl.trans(values))
                if has_v:
                    dweights += by_value
                dscores = weights * (dweights - common[:, None]) * scale
                half = dscores.to(queries.dtype)
                dqueries += tl.dot(half, keys)
                dkeys = tl.dot(tl.trans(half), queries)
                dvalues = tl.dot(tl.trans(weights.to(slopes.dtype)), slopes)
                at = (sample * parts * f + part * f + j.to(tl.int64)[:, None]) * packed + place + c[None, :]
                inside = (j < f)[:, None] & (c < d)[None, :]
                tl.store(dk + at, dkeys.to(dk.dtype.element_ty), mask=inside)
                tl.store(dv + at, dvalues.to(dv.dtype.element_ty), mask=inside)
                if has_k:
                    by_distance += tl.where(reached, tl.gather(dscores, key, 1), 0.0)
                if has_v and has_dtables:
                    weights_by_distance += tl.where(reached, tl.gather(weights, key, 1), 0.0)
            if has_k:
                half = by_distance.to(queries.dtype)
                dqueries += tl.dot(half, learned_k)
                if has_dtables:
                    of_k += tl.dot(tl.trans(half), queries)
            if has_v and has_dtables:
                of_v += tl.dot(tl.trans(weights_by_distance.to(slopes.dtype)), slopes)
            at = (sample * n + i.to(tl.int64)[:, None]) * packed + place + c[None, :]
            tl.store(dq + at, dqueries.to(dq.dtype.element_ty), mask=(i < n)[:, None] & (c < d)[None, :])
    if has_dtables:
        at = dtables + pid.to(tl.int64) * 2 * span * d + e[:, None] * d + c[None, :]
        tl.store(at, of_k, mask=(c < d)[None, :] & (e >= 0)[:, None])
        tl.store(at + span * d, of_v, mask=(c < d)[None, :] & (e >= 0)[:, None])


def fits(q: Tensor, k: Tensor, parts: int) -> bool:
    """Whether the kernel was made for such sizes: q (b, n, s, heads, d), k (b or 1, parts * f, s, heads, d)."""
    frames = max(q.shape[1], k.shape[1] // parts)
    packed = all(x.stride(4) == 1 and x.stride(3) == x.shape[4] for x in (q, k))
    return frames <= MAX_FRAMES and q.shape[4] <= MAX_WIDTH and k.shape[1] % parts == 0 and packed


@on_its_device
def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    parts: int,
    causal: bool,
    wrap=lambda kernel: kernel,
) -> Tensor:
    b, n, s, heads, d = q.shape
    f = k.shape[1] // parts
    out = torch.empty(b, n, s, heads * d, device=q.device, dtype=q.dtype)
    block_n, block_f = (max(16, triton.next_power_of_2(count)) for count in (n, f))
    block_d = max(16, triton.next_power_of_2(d))
    strides = [x.stride(i) * (len(x) > 1 or i > 0) for x in (q, k, v) for i in range(3)]
    table = table_k if table_k is not None else table_v
    wrap(_forward)[(b * s * heads,)](
        q, k, v, q if bias is None else bias, q if table_k is None else table_k, q if table_v is None else table_v, out,
        *strides, s, heads, d**-0.5, 0 if table is None else table.shape[0] // 2,
        n=n, f=f, parts=parts, d=d, causal=causal,
        has_bias=bias is not None, has_k=table_k is not None, has_v=table_v is not None,
        block_n=block_n, block_f=block_f, block_d=block_d, span=max(16, triton.next_power_of_2(n + f - 1)),
        num_warps=max(1, block_d // 64),
    )  # fmt: skip
    return out


@on_its_device
def _run_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    out: Tensor,
    dout: Tensor,
    parts: int,
    causal: bool,
    tables: bool,
    wrap=lambda kernel: kernel,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k (b, m, s, heads, d), v and, if asked, of both tables by distance from 1 - n: (2, span, d)."""
    b, n, s, heads, d = q.shape
    f = k.shape[1] // parts
    block_n, block_f = (max(16, triton.next_power_of_2(count)) for count in (n, f))
    block_d, span = max(16, triton.next_power_of_2(d)), max(16, triton.next_power_of_2(n + f - 1))
    steps = max(1, s * b * heads // TABLE_PROGRAMS) if tables else 1
    chunks = triton.cdiv(s, steps)
    strides = [x.stride(i) * (len(x) > 1 or i > 0) for x in (q, k, v) for i in range(3)]
    dq, dk, dv = (
        torch.empty(b, frames, s, heads, d, device=q.device, dtype=q.dtype) for frames in (n, f * parts, f * parts)
    )
    programs = b * chunks * heads
    dtables = torch.empty(programs if tables else 1, 2, span, d, device=q.device, dtype=torch.float32)
    table = table_k if table_k is not None else table_v
    wrap(_backward)[(programs,)](
        q, k, v, q if bias is None else bias, q if table_k is None else table_k, q if table_v is None else table_v,
        out, dout, dq, dk, dv, dtables, *strides, s, heads, d**-0.5, 0 if table is None else table.shape[0] // 2,
        chunks, steps, n=n, f=f, parts=parts, d=d, causal=causal,
        has_bias=bias is not None, has_k=table_k is not None, has_v=table_v is not None, has_dtables=tables,
        block_n=block_n, block_f=block_f, block_d=block_d, span=span, num_warps=max(1, block_d // 64),
    )  # fmt: skip
    return dq, dk, dv, dtables.sum(0)


@triton_op("lvdm::temporal_attention", mutates_args={})
def temporal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    parts: int,
    causal: bool,
) -> Tensor:
    """q (b, n, s, heads, d), k and v (b or 1, parts * f, s, heads, d) -> (b, n, s, heads * d).

    bias (b, parts): added to the scores of each part of the keys. Tables (2 r + 1, d): learned keys and values for the
    distance of a key's place in its part to a query's, clamped to +-r. Where gradients are asked, k and v have b
    samples; the bias gets none.
    """
    return _run(q, k, v, bias, table_k, table_v, parts, causal, wrap_triton)


@triton_op("lvdm::temporal_attention_backward", mutates_args={})
def _temporal_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    out: Tensor,
    dout: Tensor,
    parts: int,
    causal: bool,
    tables: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _run_backward(q, k, v, bias, table_k, table_v, out, dout, parts, causal, tables, wrap_triton)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.parts, ctx.causal = inputs
    ctx.save_for_backward(*tensors, output)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, out = ctx.saved_tensors
    wanted = ctx.needs_input_grad[4:6]
    dq, dk, dv, found = _temporal_attention_backward(
        *tensors, out, dout.contiguous(), ctx.parts, ctx.causal, any(wanted)
    )
    n = dq.shape[1]
    tables: list[Tensor | None] = [None, None]
    for i, table in enumerate(tensors[4:6]):
        if wanted[i]:
            reach = table.shape[0] // 2
            rows = (torch.arange(found.shape[1], device=table.device) + (1 - n)).clamp(-reach, reach) + reach
            nothing = torch.zeros(table.shape, device=table.device, dtype=torch.float32)
            tables[i] = nothing.index_add(0, rows, found[i]).to(table.dtype)
    return dq, dk, dv, None, *tables, None, None


temporal_attention.register_autograd(_differentiate, setup_context=_save)
