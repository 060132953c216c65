"""The Action Prism: distils motion features R from reference videos and their captions (III-B, eq. 4-6)."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aicl.rotary import Rotary, axial_rotary, check_head_dim, rotate
from lvdm.config import check_at_least
from lvdm.errors import ConfigError
from lvdm.models.attention import RelativePosition, attend
from lvdm.models.layers import LayerNorm


@dataclass
class PrismConfig:
    """Sizes and variants of the prism; the defaults are the paper's (IV, "Model Details").

    `context_dim` is the width of the base model's text features, `in_channels` that of its latents.
    `cross_attention` chooses how the condition is read (Table II): `spatial` (rows 3, 6 and 9: ours), `temporal`
    (row 4), `both` (row 5), or `text_query`, where the text asks and the video answers (row 2).
    `features` is the number of independent features; 2 duplicates the input (row 8).
    """

    in_channels: int = 4
    out_channels: int = 4
    context_dim: int = 1024
    width: int = 640
    depth: int = 18
    heads: int = 8
    head_dim: int = 80
    text_width: int = 768
    mlp_ratio: int = 4
    output_ratio: int = 4
    max_relative_frames: int = 16
    spatial_positions: Literal["rotary", "none"] = "rotary"
    temporal_positions: Literal["learned", "none"] = "learned"
    self_attention: bool = True
    cross_attention: Literal["spatial", "temporal", "both", "text_query"] = "spatial"
    features: int = 1
    use_checkpoint: bool = False

    def __post_init__(self) -> None:
        sizes = ("in_channels", "out_channels", "context_dim", "width", "depth", "heads", "head_dim", "text_width")
        check_at_least(self, 1, (*sizes, "mlp_ratio", "output_ratio", "max_relative_frames"), "prism")
        if self.spatial_positions == "rotary":
            check_head_dim(self.head_dim, "prism.head_dim")
        if self.features not in (1, 2):
            raise ConfigError(f"prism.features is {self.features}: one feature, or two for both integrations")

    @property
    def stream_width(self) -> int:
        """Width of the tokens that the blocks refine: the video's, or the text's where the text asks."""
        return self.text_width if self.cross_attention == "text_query" else self.width


class PrismAttention(nn.Module):
    """Pre-norm multi-head attention over rows of tokens, as a residual update; optional relative positions."""

    def __init__(self, width: int, config: PrismConfig, context_width: int | None = None, frames: bool = False):
        super().__init__()
        inner, self.heads = config.heads * config.head_dim, config.heads
        self.norm = LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context_width or width, inner, bias=False)
        self.to_v = nn.Linear(context_width or width, inner, bias=False)
        self.to_out = nn.Linear(inner, width)
        self.relative = None
        if frames and config.temporal_positions == "learned":
            self.relative = nn.ModuleList(
                RelativePosition(config.head_dim, config.max_relative_frames) for _ in ("key", "value")
            )

    def forward(self, tokens: Tensor, context: Tensor | None = None, rotary: Rotary | None = None) -> Tensor:
        """tokens (rows, n, width); context (rows, m, context_width), by default the tokens themselves."""
        x = self.norm(tokens)
        context = x if context is None else context
        q, k, v = (
            rearrange(layer(source), "r n (h d) -> r h n d", h=self.heads)
            for layer, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        relative = None if self.relative is None else tuple(r(q.shape[2], k.shape[2]) for r in self.relative)
        return tokens + self.to_out(rearrange(attend(q, k, v, relative=relative), "r h n d -> r n (h d)"))


class PrismBlock(nn.Module):
    """Eq. 4: spatial self-attention, temporal self-attention, cross-attention to the condition, MLP."""

    def __init__(self, config: PrismConfig):
        super().__init__()
        width, stream, self.cross = config.width, config.stream_width, config.cross_attention
        self.spatial_self = self.temporal_self = self.spatial_cross = self.temporal_cross = None
        if config.self_attention:
            self.spatial_self = PrismAttention(width, config)
            self.temporal_self = PrismAttention(width, config, frames=True)
        if self.cross == "text_query":
            self.spatial_cross = PrismAttention(stream, config, context_width=width)
        if self.cross in ("spatial", "both"):
            self.spatial_cross = PrismAttention(width, config, context_width=config.text_width)
        if self.cross in ("temporal", "both"):
            self.temporal_cross = PrismAttention(width, config, context_width=config.text_width, frames=True)
        self.mlp = nn.Sequential(
            LayerNorm(stream),
            nn.Linear(stream, config.mlp_ratio * stream),
            nn.GELU(),
            nn.Linear(config.mlp_ratio * stream, stream),
        )

    def forward(self, video: Tensor, text: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        """video (n, t, s, width) and text (n, m, text_width) -> both, one of them refined.

        Where the text asks (`text_query`) it is (n, t, m, text_width): every frame answers for itself.
        """
        n, t, s, _ = video.shape
        if self.spatial_self is not None:
            video = self.spatial_self(video.flatten(0, 1), rotary=rotary).unflatten(0, (n, t))
            rows = self.temporal_self(rearrange(video, "n t s c -> (n s) t c"))
            video = rearrange(rows, "(n s) t c -> n t s c", n=n)
        if self.cross == "text_query":
            text = self.spatial_cross(text.flatten(0, 1), video.flatten(0, 1)).unflatten(0, (n, t))
            return video, text + self.mlp(text)
        if self.spatial_cross is not None:  # the condition is the same in every frame, so one row holds them all
            video = self.spatial_cross(video.flatten(1, 2), text).unflatten(1, (t, s))
        if self.temporal_cross is not None:  # differs from the spatial one by its relative positions only
            rows = self.temporal_cross(
                rearrange(video, "n t s c -> (n s) t c"), repeat(text, "n m c -> (n s) m c", s=s)
            )
            video = rearrange(rows, "(n s) t c -> n t s c", n=n)
        return video + self.mlp(video), text


class ActionPrism(nn.Module):
    """AP of the paper: all references of a batch of samples in one call."""

    def __init__(self, config: PrismConfig):
        super().__init__()
        self.config = config
        width, stream, hidden = config.width, config.stream_width, config.output_ratio * config.stream_width
        self.video_in = nn.Sequential(
            nn.Linear(config.features * config.in_channels, width), nn.GELU(), nn.Linear(width, width)
        )
        self.text_in = nn.Linear(config.context_dim, config.text_width)
        self.blocks = nn.ModuleList(PrismBlock(config) for _ in range(config.depth))
        self.output = nn.Sequential(
            LayerNorm(stream),
            nn.Linear(stream, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.features * config.out_channels),
        )

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """Eq. 4-6: k references of each of b samples -> their features R, concatenated over frames.

        latents: (b, k, in_channels, t, h, w), scaled as the base model sees them; context: (b, k, tokens, context_dim).
        Returns R: (b, k * t, features * out_channels, h, w), frames of one reference next to each other;
        (b, k * t, features * out_channels, 1, 1) where the text asks, since its answers have no place.
        Raises ConfigError if channels or widths are not the configured ones.
        """
        self._check(latents, context)
        b, k, _, t, h, w = latents.shape
        dtype = self.text_in.weight.dtype
        video = rearrange(latents.to(dtype), "b k c t h w -> (b k) t (h w) c")
        video = self.video_in(video.repeat(1, 1, 1, self.config.features))  # (n, t, s, width)
        text = self.text_in(context.to(dtype).flatten(0, 1))  # (n, m, text_width)
        if self.config.cross_attention == "text_query":
            text = repeat(text, "n m c -> n t m c", t=t)
        rotary = None
        if self.config.spatial_positions == "rotary" and self.config.self_attention:
            rotary = axial_rotary(h, w, self.config.head_dim, video.device)
        for block in self.blocks:
            video, text = self._run(block, video, text, rotary)
        if self.config.cross_attention == "text_query":
            tokens, h, w = text.mean(dim=2, keepdim=True), 1, 1  # (n, t, 1, text_width)
        else:
            tokens = video
        return rearrange(self._run(self.output, tokens), "(b k) t (h w) c -> b (k t) c h w", b=b, k=k, h=h, w=w)

    def _run(self, layer: nn.Module, *inputs):
        """Call `layer`, recomputing it in the backward pass if so configured: only its inputs are kept."""
        if self.config.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def _check(self, latents: Tensor, context: Tensor) -> None:
        config = self.config
        if latents.ndim != 6 or latents.shape[2] != config.in_channels:
            raise ConfigError(
                f"the prism takes reference latents (b, k, {config.in_channels}, t, h, w), got {tuple(latents.shape)}"
            )
        if context.shape[:2] != latents.shape[:2] or context.ndim != 4 or context.shape[3] != config.context_dim:
            raise ConfigError(
                f"the prism takes a context ({latents.shape[0]}, {latents.shape[1]}, tokens, {config.context_dim}), "
                f"got {tuple(context.shape)}: prism.context_dim must be the width of the base model's text features"
            )
