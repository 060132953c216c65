"""One `attend()` behind all attention, its backends, and LVDM's learned relative positions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvdm.errors import ConfigError
from lvdm.models import fp8, kernels
from lvdm.models.layers import own_precision

Backend = Literal["sdpa", "xformers", "reference"]

# Fused kernels put rows x heads on a CUDA grid axis of 16 bits. Temporal attention has b*h*w rows, which passes it.
MAX_ROWS_TIMES_HEADS = 65_535

_backend: Backend = "sdpa"


def set_backend(name: Backend) -> None:
    """Choose what computes attention everywhere: PyTorch's fused kernels, xformers', or plain float32 arithmetic.

    Raises ConfigError for an unknown name, and for xformers where it is missing or has no operator for this device.
    """
    global _backend
    if name not in get_args(Backend):
        raise ConfigError(f"unknown attention backend '{name}': choose from {', '.join(get_args(Backend))}")
    if name == "xformers":
        _check_xformers()
    _backend = name


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Use a backend inside a `with` block."""
    previous = _backend
    set_backend(name)
    try:
        yield
    finally:
        set_backend(previous)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    relative: tuple[Tensor | None, Tensor | None] | None = None,
) -> Tensor:
    """Scaled dot-product attention. q (rows, heads, n, d), k and v (rows, heads, m, d) -> (rows, heads, n, d).

    bias: added to the scores, broadcastable to (rows, heads, n, m).
    causal: query i sees keys 0 to i.
    relative: learned relative keys and values (n, m, d), shared by all rows and heads; either may be None.
      scores_ij = (q_i . (k_j + rel_k_ij)) / sqrt(d) + bias_ij;  out_i = sum_j softmax(scores)_ij (v_j + rel_v_ij)
    Any number of rows works: they go to the kernels in chunks.
    """
    if _backend == "reference":
        kernel: Callable[..., Tensor] = _reference
    elif relative is not None:
        kernel = _relative
    else:
        kernel = _xformers if _backend == "xformers" else _sdpa
    rows, heads = q.shape[:2]
    step = max(1, MAX_ROWS_TIMES_HEADS // heads)
    if rows <= step:
        return kernel(q, k, v, bias, causal, relative)
    biases = bias.split(step) if bias is not None and bias.ndim == 4 and len(bias) == rows else None
    chunks = [
        kernel(*chunk, bias if biases is None else biases[i], causal, relative)
        for i, chunk in enumerate(zip(q.split(step), k.split(step), v.split(step)))
    ]
    return torch.cat(chunks)


def attend_over_time(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tables: tuple[Tensor | None, Tensor | None] = (None, None),
    bias: Tensor | None = None,
    parts: int = 1,
    causal: bool = False,
) -> Tensor:
    """Attention along frames at each position: q (b, n, s, heads, d), k and v (b or 1, m, s, heads, d) -> (b, n, s,
    heads * d).

    The m keys are `parts` clips of equal length one after another; places are counted inside each.
    tables: learned relative keys and values (2 r + 1, d) for the distance of a key's place to a query's, clamped to
    +-r. bias: (b or 1, parts), added to the scores of a clip's keys. causal: query i sees keys 0 to i of each clip.
    """
    if bias is not None:
        bias = bias.expand(len(q), -1).contiguous()
    if _backend != "reference" and kernels.enabled("temporal_attention") and kernels.usable(q):
        from lvdm.models.kernels.temporal_attention import fits, temporal_attention

        if kernels.differentiated(q, k, v, *tables, bias):
            k, v = (each.expand(len(q), *[-1] * 4) for each in (k, v))
        if fits(q, k, parts) and not kernels.differentiated(bias):
            return temporal_attention(q, k, v, bias, *tables, parts, causal)
    b, n, s = q.shape[:3]
    place = torch.arange(k.shape[1], device=q.device) % (k.shape[1] // parts)
    distance = place - torch.arange(n, device=q.device)[:, None]  # (n, m)
    relative = None
    if any(table is not None for table in tables):
        key_table, value_table = (None if table is None else _by_distance(table, distance) for table in tables)
        relative = key_table, value_table
    scores = None
    if bias is not None:
        scores = bias.repeat_interleave(k.shape[1] // parts, dim=1)[:, None, None].repeat_interleave(s, dim=0)
    if causal and parts > 1:
        future = torch.where(distance > 0, float("-inf"), 0.0)
        scores, causal = future if scores is None else scores + future, False
    rows = (x.permute(0, 2, 3, 1, 4).expand(b, -1, -1, -1, -1).flatten(0, 1) for x in (q, k, v))
    out = attend(*rows, bias=scores, causal=causal, relative=relative)  # (b*s, heads, n, d)
    return out.unflatten(0, (b, s)).permute(0, 3, 1, 2, 4).flatten(3)


def _by_distance(table: Tensor, distance: Tensor) -> Tensor:
    """Rows of a table (2 r + 1, d) for distances, clamped to +-r: (*distance.shape, d)."""
    reach = table.shape[0] // 2
    return table[distance.clamp(-reach, reach) + reach]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, _: None) -> Tensor:
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        bias, causal = _with_causal(bias, causal, bias), False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)


def _xformers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, _: None) -> Tensor:
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    mask: Tensor | LowerTriangularMask | None
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        mask = (bias if not causal else bias + _future(bias)).contiguous()
    else:
        mask = LowerTriangularMask() if causal else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (rows, n, heads, d)
    return memory_efficient_attention(q, k, v, attn_bias=mask).transpose(1, 2)


def _relative(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    causal: bool,
    relative: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Explicit scores, which relative values need; made for few keys, as along frames."""
    rel_k, rel_v = relative
    rows, scale = q.shape[:2], q.shape[-1] ** -0.5
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (rows*heads, n or m, d)
    keys = k.transpose(1, 2)
    if rel_k is None:
        scores = torch.bmm(q * scale, keys)
    else:
        scores = torch.baddbmm(_per_query(q, scale * rel_k.transpose(1, 2)), q, keys, alpha=scale)
    if bias is not None or causal:
        scores = (scores.unflatten(0, rows) + _with_causal(bias, causal, scores)).flatten(0, 1)
    with own_precision(scores):
        weights = scores.softmax(dim=-1).to(v.dtype)
    out = torch.bmm(weights, v) if rel_v is None else torch.baddbmm(_per_query(weights, rel_v), weights, v)
    return out.unflatten(0, rows)


def _per_query(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply what belongs to query i by matrix i. (rows*heads, n, a), (n, a, b) -> (rows*heads, n, b)."""
    return torch.bmm(x.transpose(0, 1), matrices.to(x.dtype)).transpose(0, 1)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    causal: bool,
    relative: tuple[Tensor | None, Tensor | None] | None,
) -> Tensor:
    """The definition in float32 (float64 stays), term by term."""
    rel_k, rel_v = relative or (None, None)
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values = q.to(dtype), k.to(dtype), v.to(dtype)
    scores = torch.einsum("rhid,rhjd->rhij", queries, keys)
    if rel_k is not None:
        scores = scores + torch.einsum("rhid,ijd->rhij", queries, rel_k.to(dtype))
    scores = scores / q.shape[-1] ** 0.5
    if bias is not None or causal:
        scores = scores + _with_causal(bias, causal, scores)
    weights = scores.softmax(dim=-1)
    out = torch.einsum("rhij,rhjd->rhid", weights, values)
    if rel_v is not None:
        out = out + torch.einsum("rhij,ijd->rhid", weights, rel_v.to(dtype))
    return out.to(q.dtype)


def _with_causal(bias: Tensor | None, causal: bool, scores: Tensor) -> Tensor | None:
    """The bias, with minus infinity at the keys that a causal query must not see. scores: (..., n, m)."""
    if not causal:
        return bias
    return _future(scores) if bias is None else bias + _future(scores)


def _future(scores: Tensor) -> Tensor:
    """Minus infinity where a key comes after a query, (n, m), like scores (..., n, m)."""
    return torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)


def _check_xformers() -> None:
    """Run xformers once, on the GPU if there is one: some builds import, but have no operator."""
    remedy = "use attention backend 'sdpa'"
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ConfigError(
            f"attention backend 'xformers' cannot be imported ({error}): install it, or {remedy}"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sample = torch.zeros(1, 8, 1, 64, device=device, dtype=torch.bfloat16)
    try:
        memory_efficient_attention(sample, sample, sample)
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"attention backend 'xformers' has no operator that runs on this {device}: {remedy}"
        ) from error


class RelativePosition(nn.Module):
    """A learned vector for each distance key - query, clamped to +-`max_relative` (LVDM).

    `rel(n, m)` counts queries and keys from 0; 1-D integer tensors give explicit positions. -> (n, m, head_dim)
    """

    def __init__(self, head_dim: int, max_relative: int) -> None:
        super().__init__()
        self.max_relative = max_relative
        self.embeddings_table = nn.Parameter(torch.empty(2 * max_relative + 1, head_dim))
        nn.init.xavier_uniform_(self.embeddings_table)

    def forward(self, queries: int | Tensor, keys: int | Tensor) -> Tensor:
        device = self.embeddings_table.device
        queries, keys = (
            x.to(device) if isinstance(x, Tensor) else torch.arange(x, device=device) for x in (queries, keys)
        )
        return _by_distance(self.embeddings_table, keys[None, :] - queries[:, None])


def position_tables(relative: nn.ModuleList | None) -> tuple[Tensor | None, Tensor | None]:
    """The tables of two RelativePosition, of keys and of values, for `attend_over_time`; none of None."""
    if relative is None:
        return None, None
    keys, values = (cast(RelativePosition, each).embeddings_table for each in relative)
    return keys, values


class Attention(nn.Module):
    """Multi-head attention with projections: self-attention, or cross-attention if `context_dim` is given.

    max_relative: learned relative keys and values up to this distance.
    image_tokens: context tokens from number 77 on are an image's and have keys and values of their own; the two
      results are added (VideoCrafter image-to-video).
    """

    TEXT_TOKENS = 77

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        context_dim: int | None = None,
        max_relative: int | None = None,
        image_tokens: bool = False,
    ) -> None:
        super().__init__()
        inner, context_dim = heads * head_dim, context_dim or dim
        self.heads = heads
        self.image_tokens = image_tokens
        self._fused: Callable[[Tensor], Tensor] | None = None
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)
        if image_tokens:
            self.to_k_ip = nn.Linear(context_dim, inner, bias=False)
            self.to_v_ip = nn.Linear(context_dim, inner, bias=False)
        self.relative_position_k: RelativePosition | None = None
        self.relative_position_v: RelativePosition | None = None
        if max_relative is not None:
            self.relative_position_k = RelativePosition(head_dim, max_relative)
            self.relative_position_v = RelativePosition(head_dim, max_relative)

    def forward(self, x: Tensor, context: Tensor | None = None, causal: bool = False) -> Tensor:
        """x (rows, n, dim), context (rows or a divisor of rows, m, context_dim), x itself if None -> (rows, n, dim)."""
        image = None
        if context is not None and self.image_tokens:
            context, image = context[:, : self.TEXT_TOKENS], context[:, self.TEXT_TOKENS :]
        q, k, v = self._projections(x, context)
        k, v = (self._for_rows(each, len(x)) for each in (k, v))
        relative = None
        if self.relative_position_k is not None and self.relative_position_v is not None:
            n, m = q.shape[1], k.shape[1]
            relative = self.relative_position_k(n, m), self.relative_position_v(n, m)
        out = attend(*(each.transpose(1, 2) for each in (q, k, v)), causal=causal, relative=relative)
        if image is not None and image.shape[1] > 0:
            k, v = (self._for_rows(self._heads(project(image)), len(x)) for project in (self.to_k_ip, self.to_v_ip))
            out = out + attend(*(each.transpose(1, 2) for each in (q, k, v)))
        return self.to_out(out.transpose(1, 2).flatten(2))

    def over_time(self, x: Tensor, causal: bool = False) -> Tensor:
        """Self-attention along frames at each position. (b, t, s, dim) -> same."""
        tables: tuple[Tensor | None, Tensor | None] = None, None
        if self.relative_position_k is not None and self.relative_position_v is not None:
            tables = self.relative_position_k.embeddings_table, self.relative_position_v.embeddings_table
        return self.to_out(attend_over_time(*self._projections(x), tables=tables, causal=causal))

    def fuse(self) -> None:
        """Project to queries, keys and values at once from now on, until weights are moved or replaced.

        For self-attention that is not trained. The three weights become parts of one; their names stay.
        """
        layers = [self.to_q, self.to_k, self.to_v]
        weights = [layer.weight for layer in layers]
        if weights[0].shape[1] != weights[1].shape[1] or any(weight.requires_grad for weight in weights):
            return
        if all(isinstance(layer, fp8.Float8Linear) for layer in layers):
            self._fused = fp8.joined(cast(list[fp8.Float8Linear], layers))
            return
        whole = torch.cat([weight.data for weight in weights])
        for weight, part in zip(weights, whole.chunk(3)):
            weight.data = part
        self._fused = partial(F.linear, weight=whole)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Attention":
        self._fused = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any) -> None:
        self._fused = None
        super()._load_from_state_dict(*args)

    def _projections(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Queries of x and keys and values of the context, by default of x: (..., dim) -> (..., heads, d)."""
        if context is None and self._fused is not None:
            return tuple(self._heads(part) for part in self._fused(x).chunk(3, dim=-1))
        source = x if context is None else context
        return self._heads(self.to_q(x)), self._heads(self.to_k(source)), self._heads(self.to_v(source))

    def _heads(self, x: Tensor) -> Tensor:
        """(..., heads * d) -> (..., heads, d)"""
        return x.unflatten(-1, (self.heads, -1))

    @staticmethod
    def _for_rows(x: Tensor, rows: int) -> Tensor:
        """Each row of x serves `rows / len(x)` rows in turn."""
        return x if len(x) == rows else x.repeat_interleave(rows // len(x), dim=0)
