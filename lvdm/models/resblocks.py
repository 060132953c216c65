"""Residual convolution blocks of both UNets."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from lvdm.models.layers import Downsample, GroupNorm, StageLayer, Upsample, add_biased, checkpointed, conv, zero_init

ACTIVATIONS = {"silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}


class ResBlock(StageLayer, nn.Module):
    """Two convolutions with the timestep between them, and a skip connection. (b, t, h, w, c) -> (b, t, h', w', c').

    rows: which dimensions are normalised apart, see GroupNorm.
    frames: the kernel's length in time.
    resample: "up" or "down" doubles or halves height and width on the way.
    scale_shift: the timestep scales and shifts the second norm's output; otherwise it is added before that norm.
    temporal_conv: append a TemporalConvBlock; "aware" gives its first two kernels a height and width of 3.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        rows: int,
        frames: int = 1,
        dropout: float = 0.0,
        activation: str = "silu",
        scale_shift: bool = False,
        resample: str | None = None,
        temporal_conv: str | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = GroupNorm(channels, rows)
        self.conv1 = conv(channels, out_channels, frames)
        self.emb = nn.Linear(emb_channels, (2 if scale_shift else 1) * out_channels)
        self.norm2 = GroupNorm(out_channels, rows)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(conv(out_channels, out_channels, frames))
        self.skip = nn.Linear(channels, out_channels) if channels != out_channels else nn.Identity()
        self.activation = ACTIVATIONS[activation]()
        resamplers = {"up": Upsample, "down": Downsample}
        self.resample = resamplers[resample](channels, learned=False) if resample else nn.Identity()
        self.temporal_conv = None
        if temporal_conv is not None:
            self.temporal_conv = TemporalConvBlock(out_channels, spatial_aware=temporal_conv == "aware")

    def step(self, x: Tensor, emb: Tensor, context: Tensor | None, recompute: bool) -> Tensor:
        return checkpointed(self, recompute, x, emb)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """emb: (b, emb_channels), after its activation."""
        emb = self.emb(emb)  # (b, c) or 2c
        silu = isinstance(self.activation, nn.SiLU)
        h = self.norm1(x, silu=silu)
        h = self.conv1(self.resample(h if silu else self.activation(h)), bias=False)
        if self.scale_shift:
            scale, shift = emb[:, None, None, None].chunk(2, dim=-1)
            h = self.activation(self.norm2(h, self.conv1.bias) * (1 + scale) + shift)
        else:
            h = self.norm2(h, emb if self.conv1.bias is None else self.conv1.bias + emb, silu=silu)
            h = h if silu else self.activation(h)
        h = self.conv2(self.dropout(h), bias=False)
        h = add_biased(self.skip(self.resample(x)), h, self.conv2.bias)
        return h if self.temporal_conv is None else self.temporal_conv(h)


class TemporalConvBlock(nn.Module):
    """Four convolutions along frames around a skip connection (VideoCrafter 2). (b, t, h, w, c) -> same."""

    DROPOUT = 0.1  # fixed in the published models

    def __init__(self, channels: int, spatial_aware: bool = False) -> None:
        super().__init__()
        self.norms = nn.ModuleList(GroupNorm(channels, rows=1) for _ in range(4))
        sizes = (3, 3, 1, 1) if spatial_aware else (1, 1, 1, 1)
        self.convs = nn.ModuleList(conv(channels, channels, frames=3, size=size) for size in sizes)
        zero_init(self.convs[-1])

    def forward(self, x: Tensor) -> Tensor:
        h, shift = x, None
        for i, (norm, convolution) in enumerate(zip(self.norms.children(), self.convs.children())):
            h = norm(h, shift, silu=True)
            h = convolution(F.dropout(h, self.DROPOUT, self.training and i > 0), bias=False)
            shift = cast(Tensor | None, convolution.bias)
        return add_biased(x, h, shift)
