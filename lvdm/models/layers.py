"""Layers that both UNets share. Features are (b, t, h, w, c) throughout: frames, height, width, channels last.

With channels last in memory, linear layers, convolutions over frames and attention all read the same tensor without
copies; 1x1 convolutions of the published checkpoints are linear layers here.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lvdm.models import kernels

NORM_GROUPS = 32


M = TypeVar("M", bound=nn.Module)


def timestep_embedding(timesteps: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features (b, width), float32, cosines first, of timesteps or frame rates (b,), maybe fractions."""
    half = width // 2
    # In this order, as published: a large timestep would magnify the rounding of another one.
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(exponents)
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(features, (0, width % 2))


def zero_init(module: M) -> M:
    """Zero a module's parameters and return it: for the last layer of a residual branch."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def for_branches(x: Tensor, rows: int) -> Tensor:
    """x (b, ...) -> (rows, ...): all its rows again for each branch of guidance; x itself where it has that many."""
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def checkpointed(module: nn.Module, enabled: bool, *args: Any, **kwargs: Any) -> Tensor:
    """Call the module; if enabled and gradients are recorded, recompute its activations in the backward pass.

    A module that is not in training draws no random numbers, so their state is neither kept nor set for it.
    """
    if enabled and torch.is_grad_enabled():
        return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=module.training, **kwargs)
    return module(*args, **kwargs)


def own_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Inside, layers compute in the type of x. Autocast would return every normalisation in float32, only for the next
    layer to cast it back; the kernels take statistics in float32 whatever the type of their input."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class LayerNorm(nn.LayerNorm):
    """Over the last dimension; the result has the type of x, under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        if kernels.enabled("layer_norm") and kernels.usable(x):
            from lvdm.models.kernels.layer_norm import layer_norm

            return layer_norm(x.contiguous(), self.weight, self.bias, self.eps)
        with own_precision(x):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def after(self, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """x + update, and that normalised: the end of one residual branch and the begin of the next."""
        if kernels.enabled("layer_norm") and x.dtype == update.dtype and kernels.usable(x):
            from lvdm.models.kernels.layer_norm import add_layer_norm

            return add_layer_norm(x.contiguous(), update.contiguous(), self.weight, self.bias, self.eps)
        x = x + update
        return x, self(x)


class GroupNorm(nn.GroupNorm):
    """32 groups over channels-last input. The first `rows` dimensions have statistics of their own, the rest share.

    For features (b, t, h, w, c): rows=1 normalises over frames, height and width together, rows=2 each frame. The
    result has the type of x, under autocast too.
    """

    def __init__(self, channels: int, rows: int, eps: float = 1e-5) -> None:
        super().__init__(NORM_GROUPS, channels, eps=eps)
        self.rows = rows

    def forward(self, x: Tensor, shift: Tensor | None = None, silu: bool = False) -> Tensor:
        """shift: (c,) or (b, c), added before the norm. silu: apply SiLU to the result."""
        rows = x.flatten(0, self.rows - 1).flatten(1, -2)  # (rows, n, c)
        if kernels.enabled("group_norm") and kernels.usable(x):
            from lvdm.models.kernels.group_norm import fits, group_norm

            if fits(*rows.shape[1:]):
                if shift is not None:
                    shift = shift.expand(x.shape[0] if shift.ndim > 1 else 1, -1).contiguous()
                y = group_norm(rows.contiguous(), self.weight, self.bias, shift, self.num_groups, self.eps, silu)
                return y.view(x.shape)
        if shift is not None:
            shift = shift.to(x.dtype)  # a bias is float32 under autocast, where x is not
            rows = x + (shift if shift.ndim == 1 else shift.view(len(shift), *[1] * (x.ndim - 2), -1))
            rows = rows.flatten(0, self.rows - 1).flatten(1, -2)
        with own_precision(x):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            images = rows.unsqueeze(2).permute(0, 3, 1, 2)  # (rows, c, n, 1): "channels last", which needs no copy
            y = F.group_norm(images, self.num_groups, weight, bias, self.eps)
        y = F.silu(y, inplace=not torch.is_grad_enabled()) if silu else y
        return y.permute(0, 2, 3, 1).contiguous().view(x.shape)


class StageLayer:
    """What a stage of a UNet is made of. A layer that needs more than features says so in a `step` of its own."""

    __call__: Callable[..., Any]

    def step(self, x: Tensor, emb: Tensor, context: Tensor | None, recompute: bool) -> Tensor:
        """Features (b, t, h, w, c) -> what the layer makes of them.

        emb: (b, emb_channels), of the timestep; context: (b, m, context_dim); recompute: whether the backward pass is
        to compute activations again in place of storing them.
        """
        result: Tensor = self(x)
        return result


class FrameConv(StageLayer, nn.Conv2d):
    """k x k convolution of each frame. (b, t, h, w, c) -> (b, t, h', w', c')."""

    def forward(self, x: Tensor, bias: bool = True) -> Tensor:
        """bias: false leaves it to the caller to add `self.bias`."""
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # (b*t, c, h, w), channels last in memory
        y = self._conv_forward(frames, self.weight, self.bias if bias else None)
        return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class TemporalConv(StageLayer, nn.Conv2d):
    """Convolution along frames at each position, as a 2-D one over frames x positions. (b, t, h, w, c) -> same."""

    def forward(self, x: Tensor, bias: bool = True) -> Tensor:
        """bias: false leaves it to the caller to add `self.bias`."""
        if kernels.enabled("temporal_conv") and not kernels.differentiated(x, self.weight) and kernels.usable(x):
            from lvdm.models.kernels import products

            if products.temporal_conv_fits(self.weight):
                y = products.temporal_conv(x.flatten(2, 3).contiguous(), self.weight).unflatten(2, x.shape[2:4])
                return y + self.bias if bias else y
        columns = x.flatten(2, 3).permute(0, 3, 1, 2)  # (b, c, t, h*w)
        y = self._conv_forward(columns, self.weight, self.bias if bias else None)
        return y.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4])


class VideoConv(StageLayer, nn.Conv3d):
    """k x k x k convolution over frames, height and width. (b, t, h, w, c) -> (b, t, h', w', c')."""

    def forward(self, x: Tensor, bias: bool = True) -> Tensor:
        """bias: false leaves it to the caller to add `self.bias`."""
        y = self._conv_forward(x.permute(0, 4, 1, 2, 3), self.weight, self.bias if bias else None)
        return y.permute(0, 2, 3, 4, 1)


def add_biased(x: Tensor, update: Tensor, bias: Tensor | None) -> Tensor:
    """x + update + bias, features (..., c) and a bias (c,) that a convolution left out, if it has one."""
    if bias is None:
        return x + update
    if kernels.enabled("sums") and x.dtype == update.dtype and kernels.usable(x):
        from lvdm.models.kernels import sums

        return sums.add_biased(x.contiguous(), update.contiguous(), bias)
    return x + (update + bias)


def conv(
    in_channels: int, out_channels: int, frames: int = 1, size: int = 3, stride: int = 1
) -> FrameConv | TemporalConv | VideoConv:
    """The cheapest "same" convolution with kernel (frames, size, size), odd; `stride` is that of height and width."""
    if frames == 1:
        return FrameConv(in_channels, out_channels, size, stride, padding=size // 2)
    if size == 1:
        return TemporalConv(in_channels, out_channels, (frames, 1), padding=(frames // 2, 0))
    padding = (frames // 2, size // 2, size // 2)
    return VideoConv(in_channels, out_channels, (frames, size, size), (1, stride, stride), padding)


class Downsample(StageLayer, nn.Module):
    """Halve height and width: with a strided convolution (`learned`) or by averaging 2x2 blocks."""

    def __init__(self, channels: int, learned: bool, frames: int = 1) -> None:
        super().__init__()
        self.conv = conv(channels, channels, frames, stride=2) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            return self.conv(x)
        return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean(dim=(3, 5))


class Upsample(StageLayer, nn.Module):
    """Double height and width by repetition, then a convolution if `learned`."""

    def __init__(self, channels: int, learned: bool, frames: int = 1) -> None:
        super().__init__()
        self.conv = conv(channels, channels, frames) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.conv, FrameConv) and _plain_on_cpu(x, self.conv.weight):
            return _doubled(x, self.conv)
        b, t, h, w, c = x.shape
        x = x[:, :, :, None, :, None].expand(b, t, h, 2, w, 2, c).reshape(b, t, 2 * h, 2 * w, c)
        return x if self.conv is None else self.conv(x)


# A kernel of three taps on repeated pixels is one of four taps, two pixels apart, on the pixels themselves.
_FOUR_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def _doubled(x: Tensor, layer: FrameConv) -> Tensor:
    """What a 3x3 convolution makes of pixels that are repeated, from the pixels: 4/9 of the operations.

    (b, t, h, w, c) -> (b, t, 2h, 2w, c'). Weights that meet the same pixel are added first, so rounding differs.
    """
    taps = torch.tensor(_FOUR_TAPS)
    kernel = (layer.weight.flatten(2) @ torch.kron(taps, taps).T).unflatten(2, (4, 4)).transpose(0, 1)
    y = F.conv_transpose2d(x.flatten(0, 1).permute(0, 3, 1, 2), kernel, layer.bias, stride=2, padding=1)
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class FeedForward(nn.Module):
    """GEGLU: half of a projection to 8x the width gates the other half; back to the width. (..., c) -> (..., c)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, 8 * width)
        self.proj_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        if kernels.enabled("geglu") and kernels.usable(x):
            from lvdm.models.kernels import products

            if kernels.differentiated(x, self.proj_in.weight) or not isinstance(self.proj_in, nn.Linear):
                return self.proj_out(products.gated(self.proj_in(x)))  # with gradients, or of 8 bits
            if products.geglu_fits(x):
                return self.proj_out(products.geglu(x.contiguous(), self.proj_in.weight, self.proj_in.bias))
        if _plain_on_cpu(x, self.proj_in.weight):
            # oneDNN adds the bias and applies GELU while it multiplies: PyTorch's own layer writes the bias to memory
            # first, and GELU reads and writes the result once more.
            halves = zip(self.proj_in.weight.chunk(2), self.proj_in.bias.chunk(2), ("none", "gelu"))
            value, gate = (torch.ops.mkldnn._linear_pointwise(x, *each, [], "none") for each in halves)
            return self.proj_out(gate.mul_(value))
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


def _plain_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's faster forms can serve: float32 on a CPU, without gradients, autocast or compiled code."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_grad_enabled()
    if not plain or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
