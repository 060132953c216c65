"""The other prisms of Table II. Their parameters have the names of eq. 4's, where they have the same part."""

from dataclasses import replace
from typing import cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from aicl.action_prism import (
    ActionPrism,
    PrismAttention,
    PrismConfig,
    build_prism,
    mlp,
    over_frames,
    over_places,
    to_condition,
)
from aicl.rotary import Rotary


def build_variant(config: PrismConfig) -> ActionPrism:
    """The prism of a config that is not eq. 4's.

    `self_attention` false: without it (row 1). `cross_attention`: the condition is read by `temporal` attention in
    place of spatial (row 4), by `both` (row 5), or it asks and the video answers, `text_query` (row 2). `features`: two
    independent ones, of which the input is duplicated (row 8), or which two prisms make (`separate_prisms`).
    """
    if config.separate_prisms:
        return SeparatePrisms(config)
    return TextQueryPrism(config) if config.cross_attention == "text_query" else VariantPrism(config)


class VariantBlock(nn.Module):
    """A block of eq. 4 with some of its attentions left out, or one added."""

    def __init__(self, config: PrismConfig) -> None:
        super().__init__()
        width, cross = config.width, config.cross_attention
        self.spatial_self = self.temporal_self = self.spatial_cross = self.temporal_cross = None
        if config.self_attention:
            self.spatial_self = PrismAttention(width, config)
            self.temporal_self = PrismAttention(width, config, frames=True)
        if cross in ("spatial", "both"):
            self.spatial_cross = PrismAttention(width, config, context_width=config.text_width)
        if cross in ("temporal", "both"):
            self.temporal_cross = PrismAttention(width, config, context_width=config.text_width, frames=True)
        self.mlp = mlp(width, config.mlp_ratio)

    def forward(self, video: Tensor, text: Tensor, rotary: Rotary | None) -> Tensor:
        """video (n, t, s, width), its condition (n, m, text_width) -> the video, refined."""
        if self.spatial_self is not None and self.temporal_self is not None:
            video = over_frames(self.temporal_self, over_places(self.spatial_self, video, rotary))
        if self.spatial_cross is not None:
            video = to_condition(self.spatial_cross, video, text)
        if self.temporal_cross is not None:  # differs from the spatial one by its relative positions only
            n, _, s, _ = video.shape
            rows = self.temporal_cross(
                rearrange(video, "n t s c -> (n s) t c"), repeat(text, "n m c -> (n s) m c", s=s)
            )
            video = rearrange(rows, "(n s) t c -> n t s c", n=n)
        refined: Tensor = video + self.mlp(video)
        return refined


class VariantPrism(ActionPrism):
    """Rows 1, 4, 5 and 8, and those of a centred R."""

    def embed(self, video: Tensor) -> Tensor:
        return super().embed(video.repeat(1, 1, 1, self.config.features))

    def refine(self, video: Tensor, text: Tensor, rotary: Rotary | None, bias: Tensor | None = None) -> Tensor:
        return self.centred(super().refine(video, text, rotary, bias))

    def centred(self, features: Tensor) -> Tensor:
        """R (n, t, s, channels) without its mean over all frames and places of each reference, if so configured.

        What is left says how a reference changes over time and from place to place. Neither what all references share
        nor what stays the same throughout one of them, such as looks, can be told by one channel's mean any more. The
        mean is that of one reference, not of a batch, so R stays a function of its own reference and caption.
        """
        return features - features.mean(dim=(1, 2), keepdim=True) if self.config.centred else features

    def block(self) -> nn.Module:
        return VariantBlock(self.config)


class TextQueryBlock(nn.Module):
    """A block in which the text asks: the video is refined by self-attention, the text by what it finds there."""

    def __init__(self, config: PrismConfig) -> None:
        super().__init__()
        self.spatial_self = self.temporal_self = None
        if config.self_attention:
            self.spatial_self = PrismAttention(config.width, config)
            self.temporal_self = PrismAttention(config.width, config, frames=True)
        self.spatial_cross = PrismAttention(config.text_width, config, context_width=config.width)
        self.mlp = mlp(config.text_width, config.mlp_ratio)

    def forward(self, video: Tensor, text: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        """video (n, t, s, width), text (n, t, m, text_width), where every frame answers for itself -> both."""
        if self.spatial_self is not None and self.temporal_self is not None:
            video = over_frames(self.temporal_self, over_places(self.spatial_self, video, rotary))
        text = self.spatial_cross(text.flatten(0, 1), video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return video, text + self.mlp(text)


class TextQueryPrism(VariantPrism):
    """Row 2. Its answers have no place: R has a height of 1, and of width 1 their mean, or each, token by token."""

    def block(self) -> nn.Module:
        return TextQueryBlock(self.config)

    def head(self, width: int) -> nn.Sequential:
        return super().head(self.config.text_width)

    def refine(self, video: Tensor, text: Tensor, rotary: Rotary | None, bias: Tensor | None = None) -> Tensor:
        text = repeat(text, "n m c -> n t m c", t=video.shape[1])
        for block in self.blocks:
            video, text = self.run(block, video, text, rotary)
        answers = text.mean(dim=2, keepdim=True) if self.config.pool_text else text
        return self.centred(self.run(self.output, answers))  # (n, t, 1 or m, channels)

    def places(self, s: int, h: int, w: int) -> tuple[int, int]:
        """R's height and width: one row of as many answers as there are."""
        return 1, s


class SeparatePrisms(ActionPrism):
    """Row 8 with two prisms that share nothing: each reads the references for itself and makes one feature of R."""

    def __init__(self, config: PrismConfig) -> None:
        nn.Module.__init__(self)  # in place of one prism's parts
        self.config = config
        one = replace(config, features=1, separate_prisms=False)
        self.prisms = nn.ModuleList(build_prism(one) for _ in range(config.features))

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """All blocks, prism by prism."""
        return nn.ModuleList(block for prism in self.prisms for block in cast(ActionPrism, prism).blocks)

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        """As of any prism: R has the channels of the first prism's feature first."""
        return torch.cat([prism(latents, context) for prism in self.prisms], dim=2)
