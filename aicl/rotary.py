"""Axial rotary positions: relative in two dimensions, and free for fused attention kernels."""

import torch
from torch import Tensor

from lvdm.errors import ConfigError
from lvdm.models import kernels

Rotary = tuple[Tensor, Tensor]


def check_head_dim(head_dim: int, name: str) -> None:
    """Raise ConfigError unless `head_dim` splits into pairs for rows and pairs for columns."""
    if head_dim % 4:
        raise ConfigError(f"{name} is {head_dim}: axial rotary positions need a multiple of 4, or set them to 'none'")


def axial_rotary(height: int, width: int, head_dim: int, device: torch.device, base: float = 100.0) -> Rotary:
    """Cosines and sines, float32 (height * width, head_dim / 2): first half for the row, second half for the column.

    `base` spreads the wavelengths from 2 pi to about 2 pi * base positions, which suits grids of latents.
    """
    count = head_dim // 4
    frequencies = base ** (-torch.arange(count, device=device, dtype=torch.float32) / count)
    rows = torch.arange(height, device=device)[:, None] * frequencies  # (h, d/4)
    columns = torch.arange(width, device=device)[:, None] * frequencies  # (w, d/4)
    angles = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1).flatten(
        0, 1
    )
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate x (rows, heads, n, head_dim) by its positions, in float32; returns x's dtype."""
    cos, sin = rotary
    if x.ndim == 4 and kernels.enabled("rotary") and kernels.usable(x):
        from lvdm.models.kernels.rotary import rotate as in_one_pass

        return in_one_pass(x.transpose(1, 2).contiguous(), cos, sin).transpose(1, 2)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
