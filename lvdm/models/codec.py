"""Videos to scaled latents and back: the only place that knows the latent scale and shift.

The autoencoder sees single frames, a few at a time; very large frames can be cut into overlapping tiles.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from lvdm.errors import ConfigError, VideoError
from lvdm.models.autoencoder import AutoencoderKL, DiagonalGaussian
from lvdm.models.backbone import Compression
from lvdm.models.layers import own_precision

REFERENCE_PIXELS = 320 * 512  # the frame size that `slice_size` is counted in
OVERLAP = 4  # neighbouring tiles share 1 / OVERLAP of a tile


class LatentCodec(nn.Module):
    """Frames (b, 3, t, h, w) in [-1, 1] <-> latents (b, c, t, h / f, w / f), where latents = (z - shift) * scale.

    LVDM's published `shift_factor` is added before scaling: `shift` is its negative.

    Args:
        autoencoder: its device and dtype are the codec's.
        scale, shift: one number, or one per latent channel.
        slice_size: frames that go through the autoencoder at once if they have 512x320 pixels; of larger frames
            proportionally fewer (at least one), of smaller ones more. Bounds the memory, changes no result.
        tile: side of square tiles, in latent cells, or None for whole frames. Tiles overlap by a quarter and their
            seams are blended. Normalisation and attention see one tile at a time, so results differ slightly.

    Nothing here records gradients: the autoencoder is trained directly, never through its codec.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        scale: float | Sequence[float] = 0.18215,
        shift: float | Sequence[float] = 0.0,
        slice_size: int = 8,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("scale", scale), ("shift", shift)):
            if not isinstance(value, int | float) and len(value) != autoencoder.embed_dim:
                raise ConfigError(
                    f"latents.{name} lists {len(value)} numbers for {autoencoder.embed_dim} latent channels"
                )
        if (scale if isinstance(scale, int | float) else math.prod(scale)) == 0:
            raise ConfigError("latents.scale must not be zero")
        if slice_size < 1:
            raise ConfigError(f"slice_size must be at least 1, got {slice_size}")
        if tile is not None and tile < OVERLAP:
            raise ConfigError(f"tile must be None or at least {OVERLAP} latent cells, got {tile}")
        self.autoencoder = autoencoder
        self.scale = scale
        self.shift = shift
        self.slice_size = slice_size
        self.tile = tile

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along height and along width."""
        return self.autoencoder.factor

    @property
    def compression(self) -> Compression:
        """What one latent cell stands for."""
        return Compression(space=self.factor)

    @torch.no_grad()
    def posterior(self, frames: Tensor) -> DiagonalGaussian:
        """Gaussian over the scaled latents of frames (b, 3, t, h, w): mean and logvar are (b, c, t, h / f, w / f).

        In float32 whatever the codec's dtype. Raises VideoError if f does not divide the height and width.
        """
        b, _, t, height, width = frames.shape
        if height % self.factor or width % self.factor:
            raise VideoError(f"frames of {width}x{height} pixels: both must be multiples of {self.factor}")
        images = frames.transpose(1, 2).flatten(0, 1)  # (b * t, 3, h, w)
        moments = self._in_slices(self.autoencoder.moments, images, self.factor, 1)
        raw = DiagonalGaussian.from_moments(moments.float().unflatten(0, (b, t)).transpose(1, 2))
        scale, shift = self._scale_and_shift(moments.device)
        return DiagonalGaussian((raw.mean - shift) * scale, raw.logvar + 2 * scale.abs().log())

    def encode(
        self,
        frames: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        sample: bool = True,
    ) -> Tensor:
        """Frames (b, 3, t, h, w) -> latents (b, c, t, h / f, w / f): a sample of the posterior, or its mean."""
        posterior = self.posterior(frames)
        latents = posterior.sample(generator) if sample else posterior.mode()
        return latents.to(self.autoencoder.quant_conv.weight.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (b, c, t, h, w) -> frames (b, 3, t, h * f, w * f), near [-1, 1] but not clamped."""
        b, _, t, _, _ = latents.shape
        scale, shift = self._scale_and_shift(latents.device)
        z = latents.float() / scale + shift
        images = self._in_slices(self.autoencoder.decode, z.transpose(1, 2).flatten(0, 1), 1, self.factor)
        return images.unflatten(0, (b, t)).transpose(1, 2)

    def reconstruct(self, frames: Tensor) -> Tensor:
        """What is left of frames (b, 3, t, h, w) behind the autoencoder, of the same shape, with the posterior's mean.

        An autoencoder that is causal in time takes certain numbers of frames only: to others the last one is repeated
        until they fit, and what becomes of the repeats is dropped.
        """
        t = frames.shape[2]
        missing = self.compression.next_frames(t) - t
        whole = torch.cat([frames, frames[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2) if missing else frames
        return self.decode(self.posterior(whole).mode())[:, :, :t]

    def _scale_and_shift(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """To go with (b, c, t, h, w), in float32: as buffers they would lose digits in a bfloat16 model."""
        scale, shift = (
            _constant(value if isinstance(value, int | float) else tuple(value), device)
            for value in (self.scale, self.shift)
        )
        return scale, shift

    def _in_slices(self, function: Callable[[Tensor], Tensor], x: Tensor, cell: int, out_cell: int) -> Tensor:
        """Apply `function` to (n, c, h, w), a few images at a time; a latent cell is `cell` wide in, `out_cell` out."""
        rows, columns = x.shape[2] // cell, x.shape[3] // cell
        pixels = min(rows, self.tile or rows) * min(columns, self.tile or columns) * self.factor**2
        count = max(1, self.slice_size * REFERENCE_PIXELS // pixels)
        weight = self.autoencoder.quant_conv.weight  # its dtype and device are the codec's
        whole: Tensor | None = None
        for start in range(0, len(x), count):
            with own_precision(weight):
                images = x[start : start + count].to(weight)
                if images.is_cuda:  # where convolutions are fastest, and normalisations need no copies, channels last
                    images = images.contiguous(memory_format=torch.channels_last)
                part = self._in_tiles(function, images, cell, out_cell)
            if whole is None:
                whole = part.new_empty(len(x), *part.shape[1:])
            whole[start : start + count] = part
        if whole is None:
            raise VideoError("there are no frames to encode or decode")
        return whole

    def _in_tiles(self, function: Callable[[Tensor], Tensor], x: Tensor, cell: int, out_cell: int) -> Tensor:
        rows, columns = x.shape[2] // cell, x.shape[3] // cell
        if self.tile is None or max(rows, columns) <= self.tile:
            return function(x)
        total: Tensor | None = None
        weights: Tensor | None = None
        for top, bottom, row_weight in _tiles(rows, self.tile, out_cell, x.device):
            for left, right, column_weight in _tiles(columns, self.tile, out_cell, x.device):
                part = function(x[:, :, top * cell : bottom * cell, left * cell : right * cell]).float()
                if total is None or weights is None:
                    total = part.new_zeros(len(x), part.shape[1], rows * out_cell, columns * out_cell)
                    weights = part.new_zeros(rows * out_cell, columns * out_cell)
                weight = row_weight[:, None] * column_weight  # (tile height, tile width)
                place = (slice(top * out_cell, bottom * out_cell), slice(left * out_cell, right * out_cell))
                total[:, :, *place] += part * weight
                weights[place] += weight
        if total is None or weights is None:
            raise VideoError("a frame of no size cannot be cut into tiles")
        return (total / weights).to(x.dtype)


@lru_cache(maxsize=16)
def _constant(value: float | tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers for (b, c, t, h, w), in float32. Kept, since a copy to a GPU makes the host wait for it.

    A single number stays on the CPU, where it acts as a scalar and needs no copy.
    """
    constant = torch.tensor(value, dtype=torch.float32)
    return constant.view(-1, 1, 1, 1).to(device) if constant.ndim else constant


def _tiles(length: int, tile: int, out_cell: int, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, weights of stop - start cells) along one side, the last tile moved back to end at the border.

    Weights rise and fall linearly over the overlap and never reach zero, so that dividing by their sum is safe.
    """
    overlap = tile // OVERLAP
    starts = [*range(0, max(length - tile, 0), tile - overlap), max(length - tile, 0)]
    for start in starts:
        stop = min(start + tile, length)
        distance = torch.arange((stop - start) * out_cell, device=device) + 0.5  # to the tile's first edge, in outputs
        yield start, stop, (torch.minimum(distance, distance.flip(0)) / (overlap * out_cell)).clamp(max=1.0)
