"""The Action Prism: distils motion features R from reference videos and their captions (III-B, eq. 4-6)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from aicl.rotary import Rotary, axial_rotary, check_head_dim, rotate
from lvdm.errors import ConfigError
from lvdm.models.attention import RelativePosition, attend, attend_over_time, position_tables
from lvdm.models.layers import LayerNorm, checkpointed
from lvdm.sizes import check_sizes


@dataclass
class PrismConfig:
    """Sizes of the prism; the defaults are the paper's (IV, "Model Details").

    `context_dim` is the width of the base model's text features, `in_channels` that of its latents.
    `self_attention`, `cross_attention` and `features` are those of Table II. The next three read its rows otherwise:
    `pool_text` false keeps one value of R for each text token of row 2 (`integration.mode` must be `tokens` then),
    `separate_prisms` makes each feature of row 8 by a prism of its own, and `centred` takes from R its mean over the
    frames and places of each reference. Other values than the defaults give the prisms of `aicl.prism_variants`.
    `mask_padding`: tokens of the condition that are zero throughout are not read, for text encoders that fill a prompt
    up to hundreds of tokens.
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
    pool_text: bool = True
    separate_prisms: bool = False
    centred: bool = False
    use_checkpoint: bool = False
    mask_padding: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "prism")
        if self.spatial_positions == "rotary":
            check_head_dim(self.head_dim, "prism.head_dim")
        if self.features not in (1, 2):
            raise ConfigError(f"prism.features is {self.features}: one feature, or two for both integrations")
        if self.mask_padding and self.is_variant:
            raise ConfigError("prism.mask_padding is for the paper's prism alone: set it to false for the variants")
        if not self.pool_text and self.cross_attention != "text_query":
            raise ConfigError("prism.pool_text is false: only cross_attention: text_query has text to pool")
        if self.separate_prisms and self.features == 1:
            raise ConfigError("prism.separate_prisms needs prism.features: 2, one for each prism")

    @property
    def is_variant(self) -> bool:
        """Whether it describes another prism than that of eq. 4."""
        return not self.self_attention or self.cross_attention != "spatial" or self.features != 1 or self.centred


class PrismAttention(nn.Module):
    """Pre-norm multi-head attention over rows of tokens, as a residual update; optional relative positions."""

    def __init__(self, width: int, config: PrismConfig, context_width: int | None = None, frames: bool = False) -> None:
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

    def forward(
        self,
        tokens: Tensor,
        context: Tensor | None = None,
        rotary: Rotary | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """tokens (rows, n, width); context (rows, m, context_width), by default the tokens themselves.

        bias: added to the scores, broadcastable to (rows, heads, n, m).
        """
        x = self.norm(tokens)
        context = x if context is None else context
        q, k, v = (
            rearrange(layer(source), "r n (h d) -> r h n d", h=self.heads)
            for layer, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        relative = None
        if self.relative is not None:
            keys, values = self.relative
            relative = keys(q.shape[2], k.shape[2]), values(q.shape[2], k.shape[2])
        update: Tensor = self.to_out(rearrange(attend(q, k, v, bias=bias, relative=relative), "r h n d -> r n (h d)"))
        return tokens + update

    def over_time(self, video: Tensor) -> Tensor:
        """Self-attention along frames at each place. (n, t, s, width) -> same."""
        x = self.norm(video)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        update: Tensor = self.to_out(attend_over_time(q, k, v, tables=position_tables(self.relative)))
        return video + update


class PrismBlock(nn.Module):
    """Eq. 4: spatial self-attention, temporal self-attention, spatial cross-attention to the condition, MLP."""

    def __init__(self, config: PrismConfig) -> None:
        super().__init__()
        width = config.width
        self.spatial_self = PrismAttention(width, config)
        self.temporal_self = PrismAttention(width, config, frames=True)
        self.spatial_cross = PrismAttention(width, config, context_width=config.text_width)
        self.mlp = mlp(width, config.mlp_ratio)

    def forward(self, video: Tensor, text: Tensor, rotary: Rotary | None, bias: Tensor | None = None) -> Tensor:
        """video (n, t, s, width), its condition (n, m, text_width) -> the video, refined.

        bias: added to the scores of the condition's tokens, (n, 1, 1, m).
        """
        video = over_places(self.spatial_self, video, rotary)
        video = over_frames(self.temporal_self, video)
        video = to_condition(self.spatial_cross, video, text, bias)
        refined: Tensor = video + self.mlp(video)
        return refined


class ActionPrism(nn.Module):
    """AP of the paper: all references of a batch of samples in one call. `build_prism` makes it, or a variant."""

    def __init__(self, config: PrismConfig) -> None:
        super().__init__()
        if config.is_variant and type(self) is ActionPrism:
            raise ValueError("this config describes another prism than that of eq. 4: make it with build_prism")
        self.config = config
        self.video_in = nn.Sequential(
            nn.Linear(config.features * config.in_channels, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.width),
        )
        self.text_in = nn.Linear(config.context_dim, config.text_width)
        self.blocks = nn.ModuleList(self.block() for _ in range(config.depth))
        self.output = self.head(config.width)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """Eq. 4-6: k references of each of b samples -> their features R, concatenated over frames.

        latents: (b, k, in_channels, t, h, w), scaled as the base model sees them; context: (b, k, tokens, context_dim).
        Returns R: (b, k * t, out_channels, h, w), frames of one reference next to each other.
        Raises ConfigError if channels or widths are not the configured ones.
        """
        self._check(latents, context)
        b, k, _, _, h, w = latents.shape
        dtype = self.text_in.weight.dtype
        video = self.embed(rearrange(latents.to(dtype), "b k c t h w -> (b k) t (h w) c"))  # (n, t, s, width)
        text = self.text_in(context.to(dtype).flatten(0, 1))  # (n, m, text_width)
        rotary = None
        if self.config.spatial_positions == "rotary" and self.config.self_attention:
            rotary = axial_rotary(h, w, self.config.head_dim, video.device)
        features = self.refine(video, text, rotary, self._bias(context))  # (n, t, s, channels)
        h, w = self.places(features.shape[2], h, w)
        return rearrange(features, "(b k) t (h w) c -> b (k t) c h w", b=b, k=k, h=h, w=w)

    def embed(self, video: Tensor) -> Tensor:
        """Latents (n, t, s, in_channels) -> tokens (n, t, s, width)."""
        return self.video_in(video)

    def refine(self, video: Tensor, text: Tensor, rotary: Rotary | None, bias: Tensor | None = None) -> Tensor:
        """The blocks in turn, eq. 4 and 5, then the output layers: tokens -> features (n, t, s, out_channels)."""
        further = () if bias is None else (bias,)
        for block in self.blocks:
            video = self.run(block, video, text, rotary, *further)
        return self.run(self.output, video)

    def places(self, s: int, h: int, w: int) -> tuple[int, int]:
        """Height and width of R, whose frames have s values, for latents of height h and width w."""
        return h, w

    def block(self) -> nn.Module:
        """One of the blocks that refine."""
        return PrismBlock(self.config)

    def head(self, width: int) -> nn.Sequential:
        """The three output layers: expand, work there, reduce to the channels of R."""
        config, hidden = self.config, self.config.output_ratio * width
        return nn.Sequential(
            LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.features * config.out_channels),
        )

    def run(self, layer: nn.Module, *inputs: Any) -> Any:
        """Call `layer`, recomputing it in the backward pass if so configured: only its inputs are kept."""
        return checkpointed(layer, self.config.use_checkpoint, *inputs)

    def _bias(self, context: Tensor) -> Tensor | None:
        """Minus infinity at the tokens of a context (b, k, m, d) that are padding, (b * k, 1, 1, m)."""
        if not self.config.mask_padding:
            return None
        shown = context.flatten(0, 1).any(dim=-1)
        shown = shown | ~shown.any(dim=1, keepdim=True)  # of an empty context, everything
        return torch.where(shown, 0.0, float("-inf"))[:, None, None]

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


def build_prism(config: PrismConfig) -> ActionPrism:
    """The prism that a config describes: the paper's, or one of Table II's others."""
    if not config.is_variant:
        return ActionPrism(config)
    from aicl.prism_variants import build_variant  # which builds upon this module

    return build_variant(config)


def mlp(width: int, ratio: int) -> nn.Sequential:
    """LayerNorm and two layers, `ratio` times as wide between them."""
    return nn.Sequential(LayerNorm(width), nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


def over_places(attention: PrismAttention, video: Tensor, rotary: Rotary | None) -> Tensor:
    """Self-attention within each frame. (n, t, s, c) -> same."""
    return attention(video.flatten(0, 1), rotary=rotary).unflatten(0, video.shape[:2])


def over_frames(attention: PrismAttention, video: Tensor) -> Tensor:
    """Self-attention over time at each place. (n, t, s, c) -> same."""
    return attention.over_time(video)


def to_condition(attention: PrismAttention, video: Tensor, text: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention from all tokens (n, t, s, c) to text (n, m, d), which all frames share: one row holds them. -> same."""
    return attention(video.flatten(1, 2), text, bias=bias).unflatten(1, video.shape[1:3])
