"""The 2-D KL autoencoder of LVDM and VideoCrafter: images to a Gaussian over latents, and back.

Names of options and of weights are the published ones, so a published checkpoint needs nothing but its prefix removed.
Latents here are raw; `lvdm.models.codec` scales them and handles videos.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvdm.config import from_mapping
from lvdm.errors import ConfigError
from lvdm.models import kernels
from lvdm.models.attention import attend
from lvdm.models.layers import add_biased, own_precision
from lvdm.sizes import check_sizes

GROUPS = 32


@dataclass
class DDConfig:
    """The published `ddconfig`. Level i has `ch * ch_mult[i]` channels; each but the last halves height and width.

    `attn_resolutions` are counted from `resolution`, whatever the size of the images that are really given: a level has
    attention if `resolution / 2**level` is listed. The middle always has it, unless `attn_type` is "none".
    """

    ch: int
    out_ch: int
    in_channels: int
    resolution: int
    z_channels: int
    num_res_blocks: int
    attn_resolutions: tuple[int, ...] | list[int]
    ch_mult: tuple[int, ...] | list[int] = (1, 2, 4, 8)
    double_z: bool = True
    dropout: float = 0.0
    resamp_with_conv: bool = True
    attn_type: Literal["vanilla", "linear", "none"] = "vanilla"
    use_linear_attn: bool = False
    give_pre_end: bool = False
    tanh_out: bool = False

    def __post_init__(self) -> None:
        if not self.double_z:
            raise ConfigError("ddconfig.double_z must be true: a KL autoencoder predicts a mean and a variance")
        if not self.ch_mult:
            raise ConfigError("ddconfig.ch_mult must list at least one level")
        if self.num_res_blocks < 1:
            raise ConfigError(f"ddconfig.num_res_blocks must be at least 1, got {self.num_res_blocks}")
        check_sizes(self, "ddconfig")
        for multiple in (1, *self.ch_mult):
            if self.ch * multiple % GROUPS:
                raise ConfigError(
                    f"ddconfig.ch * ch_mult must be multiples of {GROUPS} at every level, got {self.ch} * {multiple}"
                )
        if self.use_linear_attn:
            self.attn_type = "linear"

    def levels(self, resolution: int) -> Iterator[tuple[int, int, bool]]:
        """(input channels, output channels, has attention) of each level, finest first, which has that resolution."""
        before = self.ch
        for level, multiple in enumerate(self.ch_mult):
            yield before, self.ch * multiple, resolution // 2**level in self.attn_resolutions
            before = self.ch * multiple


class DiagonalGaussian:
    """A Gaussian with a mean and a log-variance per entry."""

    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.mean = mean
        self.logvar = logvar

    @classmethod
    def from_moments(cls, moments: Tensor) -> "DiagonalGaussian":
        """From (n, 2c, h, w), means before log-variances; the latter are clamped to [-30, 20] as published."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        """The standard deviation of each entry, in the mean's shape."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """Draw once. Noise is drawn on the generator's own device; a sequence has one generator per batch entry."""
        return self.mean + self.std * _noise(self.mean, generator)

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        """Divergence from the standard normal, summed over all but the batch dimension: (b,)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).flatten(1).sum(1)


def _noise(like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    if isinstance(generator, Sequence):
        if len(generator) != len(like):
            raise ValueError(f"{len(generator)} generators for a batch of {len(like)}")
        return torch.stack([_noise(entry, one) for entry, one in zip(like, generator)])
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


class AutoencoderKL(nn.Module):
    """Images (n, in_channels, h, w) in [-1, 1] <-> raw latents (n, embed_dim, h / f, w / f), f = 2 ** (levels - 1).

    Args:
        ddconfig: a `DDConfig` or a mapping with its fields.
        embed_dim: latent channels, between `quant_conv` and `post_quant_conv`.

    Raises ConfigError for an unknown, missing or impossible option.
    """

    def __init__(self, ddconfig: DDConfig | Mapping[str, Any], embed_dim: int = 4) -> None:
        super().__init__()
        config = ddconfig if isinstance(ddconfig, DDConfig) else from_mapping(DDConfig, ddconfig, where="ddconfig")
        self.config = config
        self.embed_dim = embed_dim
        self.factor = 2 ** (len(config.ch_mult) - 1)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, config.z_channels, 1)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """(n, in_channels, h, w) -> posterior whose mean and logvar are (n, embed_dim, h / f, w / f)."""
        return DiagonalGaussian.from_moments(self.moments(x))

    def moments(self, x: Tensor) -> Tensor:
        """Mean and unclamped log-variance stacked along the channels: (n, 2 * embed_dim, h / f, w / f)."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """(n, embed_dim, h, w) -> (n, out_ch, h * f, w * f), near [-1, 1] but not clamped."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, DiagonalGaussian]:
        """Reconstruct from a sample of the posterior; returns (reconstruction, posterior)."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(generator)), posterior


class Encoder(nn.Module):
    """Images to features of the coarsest level: (n, in_channels, h, w) -> (n, 2 * z_channels, h / f, w / f)."""

    def __init__(self, config: DDConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        last = len(config.ch_mult) - 1
        self.down = nn.ModuleList(
            Level(config, channels, out_channels, config.num_res_blocks, attention, down=level != last)
            for level, (channels, out_channels, attention) in enumerate(config.levels(config.resolution))
        )
        channels = config.ch * config.ch_mult[-1]
        self.mid = Middle(config, channels)
        self.norm_out = Norm(channels)
        self.conv_out = nn.Conv2d(channels, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return self.conv_out(self.norm_out(x, silu=True))


class Decoder(nn.Module):
    """Latents to images: (n, z_channels, h, w) -> (n, out_ch, h * f, w * f)."""

    def __init__(self, config: DDConfig) -> None:
        super().__init__()
        self.give_pre_end = config.give_pre_end
        self.tanh_out = config.tanh_out
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Middle(config, channels)
        factor = 2 ** (len(config.ch_mult) - 1)
        doubled = config.resolution // factor * factor  # as published, resolutions are counted from the coarsest here
        levels = []
        for level, (_, out_channels, attention) in reversed(list(enumerate(config.levels(doubled)))):
            levels.append(Level(config, channels, out_channels, config.num_res_blocks + 1, attention, up=level != 0))
            channels = out_channels
        self.up = nn.ModuleList(reversed(levels))  # published order: finest first, run from the last to the first
        self.norm_out = Norm(channels)
        self.conv_out = nn.Conv2d(channels, config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        if self.give_pre_end:
            return x
        x = self.conv_out(self.norm_out(x, silu=True))
        return torch.tanh(x) if self.tanh_out else x


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where the level has it, then a resampling."""

    def __init__(
        self,
        config: DDConfig,
        channels: int,
        out_channels: int,
        num_blocks: int,
        attention: bool,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(channels if index == 0 else out_channels, out_channels, config.dropout)
            for index in range(num_blocks)
        )
        self.attn = nn.ModuleList(_attention(config, out_channels) for _ in range(num_blocks if attention else 0))
        if down:
            self.downsample = Downsample(out_channels, config.resamp_with_conv)
        if up:
            self.upsample = Upsample(out_channels, config.resamp_with_conv)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block, at the coarsest resolution."""

    def __init__(self, config: DDConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config.dropout)
        self.attn_1 = _attention(config, channels)
        self.block_2 = ResnetBlock(channels, channels, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResnetBlock(nn.Module):
    """Two normalised convolutions beside a skip connection. (n, channels, h, w) -> (n, out_channels, h, w)."""

    def __init__(self, channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = Norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = Norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = _without_bias(self.conv1, self.norm1(x, silu=True))
        h = _without_bias(self.conv2, self.dropout(self.norm2(h, silu=True, shift=self.conv1.bias)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        channels_last = (0, 2, 3, 1)
        return add_biased(x.permute(channels_last), h.permute(channels_last), self.conv2.bias).permute(0, 3, 1, 2)


def _without_bias(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution whose bias what follows adds along with something else."""
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)


class SelfAttention(nn.Module):
    """Single-head attention over all positions of an image, with 1x1 convolutions as projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (_to_tokens(projection(normed))[:, None] for projection in (self.q, self.k, self.v))  # (n, 1, hw, c)
        out = attend(q, k, v)[:, 0]  # (n, hw, c)
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


class LinearAttention(nn.Module):
    """The published "linear" option: keys are normalised over positions; neither a normalisation nor a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.to_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).flatten(2).chunk(3, dim=1)  # each (n, c, hw)
        mixed = k.softmax(dim=-1) @ v.transpose(1, 2)  # (n, c of k, c of v)
        return self.to_out((mixed.transpose(1, 2) @ q).reshape(x.shape))


class Downsample(nn.Module):
    """Halve height and width; the convolution pads right and bottom only, as published."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Norm(nn.GroupNorm):
    """Of images (n, c, h, w); the result has the type of x, under autocast too."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=1e-6)

    def forward(self, x: Tensor, silu: bool = False, shift: Tensor | None = None) -> Tensor:
        """silu: apply SiLU to the result. shift: (c,), added before the norm."""
        if kernels.enabled("group_norm") and kernels.usable(x):
            from lvdm.models.kernels.group_norm import fits, group_norm

            if fits(x.shape[2] * x.shape[3], x.shape[1]):
                rows = x.permute(0, 2, 3, 1).contiguous()  # no copy where channels lie last
                shift = None if shift is None else shift[None]
                y = group_norm(rows.flatten(1, 2), self.weight, self.bias, shift, GROUPS, self.eps, silu)
                return y.view(rows.shape).permute(0, 3, 1, 2)
        x = x if shift is None else x + shift[:, None, None]
        with own_precision(x):
            y = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        # In place: y is a fresh result, and here decoding large frames peaks in memory.
        return F.silu(y, inplace=True) if silu else y


def _attention(config: DDConfig, channels: int) -> nn.Module:
    return {"vanilla": SelfAttention, "linear": LinearAttention, "none": nn.Identity}[config.attn_type](channels)


def _to_tokens(x: Tensor) -> Tensor:
    # Contiguous, because fused attention kernels refuse channels that do not lie side by side.
    return x.flatten(2).transpose(1, 2).contiguous()  # (n, c, h, w) -> (n, h * w, c)
