"""Tiny models of both families with random weights everywhere: fresh ones have zeros where references would act."""

import torch
from torch import nn

from lvdm.models.backbone import build_backbone

FAMILIES = ("lvdm", "videocrafter")

_UNETS = {
    "lvdm": {"use_temporal_transformer": True, "num_heads": 2},
    "videocrafter": {"temporal_attention": True, "addition_attention": True, "num_head_channels": 16, "fps_cond": True},
}
SMALLEST = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
}
"""What every tiny UNet has; the rest are options."""
_COMMON = SMALLEST | {"context_dim": 12, "use_relative_position": True, "temporal_length": 8}
WIDTHS = [32, 64, 64, 64, 64, 32, 32]  # of the seven attention blocks, in either family


def tiny_unet(family: str, **params) -> nn.Module:
    unet = build_backbone(family, _COMMON | _UNETS[family] | params)
    randomise(unet, seed=0)
    return unet


def randomise(module: nn.Module, seed: int) -> None:
    """Every parameter normal, scaled to keep the size of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.1 if p.ndim < 2 else p[0].numel() ** -0.5))
            if p.ndim < 2:
                p.add_(1.0)


def unet_inputs(b: int = 2, t: int = 4, h: int = 8, w: int = 4) -> tuple[torch.Tensor, ...]:
    """x, timesteps, context of the tiny UNets."""
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(b, 4, t, h, w, generator=generator), torch.randn(b, 5, 12, generator=generator)
    return x, torch.arange(b) * 300 + 11, context
