"""Attention layers of both UNets: a transformer projects features to tokens, runs its blocks, projects back and adds.

Blocks take and return tokens (b, t, h*w, c). They keep nothing between calls. A context of more rows, a multiple of b,
is that of several branches of guidance: what is computed before it is read is the same in all of them and computed
once, and from then on tokens have the context's rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lvdm.models.attention import Attention, RelativePosition, attend
from lvdm.models.layers import FeedForward, GroupNorm, LayerNorm, StageLayer, checkpointed, for_branches, zero_init


class SpatioTemporalBlock(nn.Module):
    """LVDM: attention over each frame, over time, to the context, over time again; feed-forward.

    At first the two temporal attentions add nothing: their output projections start at zero.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int, max_relative: int | None) -> None:
        super().__init__()
        self.spatial_norm = LayerNorm(dim)
        self.spatial_attn = Attention(dim, heads, head_dim)
        self.temporal_norm1 = LayerNorm(dim)
        self.temporal_attn1 = Attention(dim, heads, head_dim, max_relative=max_relative)
        self.cross_norm = LayerNorm(dim)
        self.cross_attn = Attention(dim, heads, head_dim, context_dim)
        self.temporal_norm2 = LayerNorm(dim)
        self.temporal_attn2 = Attention(dim, heads, head_dim, max_relative=max_relative)
        self.ff_norm = LayerNorm(dim)
        self.ff = FeedForward(dim)
        zero_init(self.temporal_attn1.to_out)
        zero_init(self.temporal_attn2.to_out)

    def forward(self, tokens: Tensor, context: Tensor | None = None, *, size: tuple[int, int]) -> Tensor:
        """tokens (b, t, h*w, c), context (b, m, context_dim), size (h, w) -> (b, t, h*w, c)."""
        x, h = tokens, self.spatial_norm(tokens)
        x, h = self.temporal_norm1.after(x, self.spatial_attn(h.flatten(0, 1)).view_as(x))
        x, h = _branches(*self.cross_norm.after(x, self.temporal_attn1.over_time(h)), context)
        # All frames share the context, so they are the queries of one row.
        x, h = self.temporal_norm2.after(x, self.cross_attn(h.flatten(1, 2), context).view_as(x))
        x, h = self.ff_norm.after(x, self.temporal_attn2.over_time(h))
        return x + self.ff(h)


class SpatialBlock(nn.Module):
    """VideoCrafter: attention over each frame, attention to the context, feed-forward."""

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int, image_tokens: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn1 = Attention(dim, heads, head_dim)
        self.norm2 = LayerNorm(dim)
        self.attn2 = Attention(dim, heads, head_dim, context_dim, image_tokens=image_tokens)
        self.norm3 = LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, tokens: Tensor, context: Tensor | None = None, *, size: tuple[int, int]) -> Tensor:
        """tokens (b, t, h*w, c), context (b, m, context_dim), size (h, w) -> (b, t, h*w, c)."""
        x, h = tokens, self.norm1(tokens)
        x, h = _branches(*self.norm2.after(x, self.attn1(h.flatten(0, 1)).view_as(x)), context)
        x, h = self.norm3.after(x, self.attn2(h.flatten(1, 2), context).view_as(x))
        return x + self.ff(h)


class TemporalBlock(nn.Module):
    """VideoCrafter: attention over time twice, feed-forward. With `context_dim`, the second attends to the context."""

    def __init__(
        self, dim: int, heads: int, head_dim: int, context_dim: int | None, max_relative: int | None, causal: bool
    ) -> None:
        super().__init__()
        self.causal = causal
        self.cross = context_dim is not None
        self.norm1 = LayerNorm(dim)
        self.attn1 = Attention(dim, heads, head_dim, max_relative=max_relative)
        self.norm2 = LayerNorm(dim)
        self.attn2 = Attention(dim, heads, head_dim, context_dim, max_relative=max_relative)
        self.norm3 = LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, tokens: Tensor, context: Tensor | None = None, *, size: tuple[int, int]) -> Tensor:
        """tokens (b, t, h*w, c), context (b, m, context_dim), size (h, w) -> (b, t, h*w, c)."""
        x, h = tokens, self.norm1(tokens)
        x, h = self.norm2.after(x, self.attn1.over_time(h, causal=self.causal))
        if self.cross:  # the frames of each position ask its sample's text
            x, h = _branches(x, h, context)
            rows = h.transpose(1, 2)  # (b, h*w, t, c)
            update = self.attn2(rows.flatten(0, 1), context, causal=self.causal).view(rows.shape).transpose(1, 2)
        else:
            update = self.attn2.over_time(h, causal=self.causal)
        x, h = self.norm3.after(x, update)
        return x + self.ff(h)


class AttentionLayer(StageLayer, nn.Module):
    """An attention layer of a stage: it reads the context. One with blocks of its own recomputes them itself."""

    def step(self, x: Tensor, emb: Tensor, context: Tensor | None, recompute: bool) -> Tensor:
        result: Tensor = self(x, context)
        return result


class Transformer(AttentionLayer):
    """Norm, projection, blocks, projection, and the input added. Features (b, t, h, w, c) -> same.

    rows: which dimensions are normalised apart, see GroupNorm. The blocks' width need not be the features'.
    """

    def __init__(self, channels: int, dim: int, blocks: Sequence[nn.Module], rows: int, use_checkpoint: bool) -> None:
        super().__init__()
        self.use_checkpoint, self.width = use_checkpoint, dim
        self.norm = GroupNorm(channels, rows, eps=1e-6)
        self.proj_in = nn.Linear(channels, dim)
        self.blocks = nn.ModuleList(blocks)
        self.proj_out = zero_init(nn.Linear(dim, channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """context: (b, m, context_dim)."""
        tokens = self.enter(x)
        for block in self.blocks:
            tokens = checkpointed(block, self.use_checkpoint, tokens, context, size=x.shape[2:4])
        return self.leave(x, tokens)

    def enter(self, x: Tensor) -> Tensor:
        """Features (b, t, h, w, channels) -> tokens (b, t, h*w, dim)."""
        return self.proj_in(self.norm(x)).flatten(2, 3)

    def leave(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Features and what the blocks made of their tokens -> the transformer's result, like x."""
        x = for_branches(x, len(tokens))
        return x + self.proj_out(tokens).view(x.shape)


def _branches(x: Tensor, h: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens and their norm, with the rows of a context that has more."""
    rows = len(x) if context is None else max(len(x), len(context))
    return for_branches(x, rows), for_branches(h, rows)


class ContextFreeAttention(AttentionLayer):
    """LVDM without text: attention over each frame, then over time, no feed-forward. (b, t, h, w, c) -> same."""

    def __init__(self, channels: int, heads: int, max_relative: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.norm_s = GroupNorm(channels, rows=2)  # statistics of each frame
        self.qkv_s = nn.Linear(channels, 3 * channels)
        self.proj_out_s = zero_init(nn.Linear(channels, channels))
        self.norm_t = GroupNorm(channels, rows=2)  # statistics of each position, over time
        self.qkv_t = nn.Linear(channels, 3 * channels)
        self.proj_out_t = zero_init(nn.Linear(channels, channels))
        self.relative_position_k: RelativePosition | None = None
        self.relative_position_v: RelativePosition | None = None
        if max_relative is not None:
            self.relative_position_k = RelativePosition(channels // heads, max_relative)
            self.relative_position_v = RelativePosition(channels // heads, max_relative)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        frames = x.flatten(2, 3)  # (b, t, h*w, c)
        q, k, v = self._heads(self.qkv_s(self.norm_s(frames)))
        frames = frames + self.proj_out_s(attend(q, k, v).transpose(1, 2).flatten(2)).view_as(frames)

        rows = frames.transpose(1, 2)  # (b, h*w, t, c)
        q, k, v = self._heads(self.qkv_t(self.norm_t(rows)))
        bias = relative = None
        if self.relative_position_k is not None and self.relative_position_v is not None:
            t, d = q.shape[2:]
            # As published: the score of query i and key j gets query j's product with the relative key of (j, i), and
            # the root of the usual scale.
            bias = torch.einsum("rhjd,jid->rhij", q, self.relative_position_k(t, t).to(q.dtype)) * d**-0.25
            relative = (None, self.relative_position_v(t, t))
        out = self.proj_out_t(attend(q, k, v, bias=bias, relative=relative).transpose(1, 2).flatten(2))
        return (rows + out.view(rows.shape)).transpose(1, 2).reshape(x.shape)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(a, b, n, 3c) -> q, k, v of (a*b, heads, n, d)."""
        return tuple(x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in qkv.flatten(0, 1).chunk(3, dim=-1))
