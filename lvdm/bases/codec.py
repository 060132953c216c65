"""An autoencoder of diffusers as a `LatentCodec`: of single frames, or causal in time."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lvdm.errors import VideoError
from lvdm.models.autoencoder import DiagonalGaussian
from lvdm.models.backbone import Compression
from lvdm.models.codec import LatentCodec
from lvdm.models.layers import own_precision

_OF_FRAMES = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")  # see single frames when they encode


class DiffusersCodec(LatentCodec):
    """Frames (b, 3, t, h, w) in [-1, 1] <-> latents (b, c, t', h / f, w / f), scaled as the network sees them.

    A causal autoencoder has t' = 1 + (t - 1) / r latent frames, see `compression`; other numbers of frames are refused.
    scale, shift: latents = (z - shift) * scale, from the autoencoder's config. slice_size: frames that an autoencoder
    of single frames takes at once; causal ones bound their memory by tiles, see `bound_memory`.
    """

    def __init__(self, vae: Any) -> None:
        nn.Module.__init__(self)
        self.autoencoder = vae
        self.slice_size, self.tile = 16, None
        self.scale, self.shift = _scale_and_shift(vae.config)
        self.of_frames = type(vae).__name__ in _OF_FRAMES

    @property
    def vae(self) -> Any:
        """The autoencoder, as the class of diffusers that it is."""
        return self.autoencoder

    @property
    def factor(self) -> int:
        return self.compression.space

    @property
    def compression(self) -> Compression:
        vae, config = self.vae, self.vae.config
        if self.of_frames:
            return Compression(space=2 ** (len(config.block_out_channels) - 1))
        if "scale_factor_spatial" in config:
            return Compression(config.scale_factor_spatial, config.scale_factor_temporal)
        if config.get("temporal_compression_ratio"):
            return Compression(2 ** (len(config.block_out_channels) - 1), int(config.temporal_compression_ratio))
        return Compression(vae.spatial_compression_ratio, vae.temporal_compression_ratio)

    def bound_memory(self, bound: bool = True) -> None:
        """Encode and decode in tiles from now on, whose seams are blended; not `bound`: whole again."""
        name = "enable_tiling" if bound else "disable_tiling"
        if hasattr(self.vae, name):
            getattr(self.vae, name)()

    @torch.no_grad()
    def posterior(self, frames: Tensor) -> DiagonalGaussian:
        """See `LatentCodec.posterior`. Raises VideoError for frames that do not come out even, in space or time."""
        height, width = frames.shape[3:]
        if height % self.factor or width % self.factor:
            raise VideoError(f"frames of {width}x{height} pixels: both must be multiples of {self.factor}")
        if (frames.shape[2] - 1) % self.compression.time:
            raise VideoError(
                f"{frames.shape[2]} frames do not fit: this autoencoder takes 1 more than a multiple of "
                f"{self.compression.time} frames"
            )
        weight = next(self.autoencoder.parameters())
        with own_precision(weight):
            if self.of_frames:
                parts = [self._encode(part) for part in _images(frames.to(weight), self.slice_size)]
                mean, logvar = (
                    torch.cat(each).unflatten(0, (len(frames), -1)).transpose(1, 2) for each in zip(*parts, strict=True)
                )
            else:
                mean, logvar = self._encode(frames.to(weight))
        scale, shift = self._scaling(mean.device)
        return DiagonalGaussian((mean.float() - shift) * scale, logvar.float() + 2 * scale.abs().log())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `LatentCodec.decode`; (b, c, t', h, w) -> (b, 3, t, h * f, w * f)."""
        weight = next(self.autoencoder.parameters())
        scale, shift = self._scaling(latents.device)
        z = (latents.float() / scale + shift).to(weight)
        with own_precision(weight):
            if self.of_frames:
                name = type(self.autoencoder).__name__
                options = {"num_frames": z.shape[2]} if name == "AutoencoderKLTemporalDecoder" else {}
                size = z.shape[2] if options else self.slice_size  # the temporal decoder looks at all frames at once
                images: Tensor = torch.cat([self.vae.decode(part, **options).sample for part in _images(z, size)])
                return images.unflatten(0, (len(z), -1)).transpose(1, 2)
            if getattr(self.vae.config, "timestep_conditioning", False):
                decoded: Tensor = self.vae.decode(z, z.new_zeros(len(z))).sample
            else:
                decoded = self.vae.decode(z).sample
            return decoded

    def _scaling(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel, or of all, (c or 1, 1, 1, 1)."""
        scale, shift = (torch.tensor(value, device=device).view(-1, 1, 1, 1) for value in (self.scale, self.shift))
        return scale, shift

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance that the autoencoder gives for its kind of input."""
        found = self.vae.encode(x).latent_dist
        return found.mean, found.logvar


def _images(video: Tensor, count: int) -> Iterator[Tensor]:
    """(b, c, t, h, w) as images (n, c, h, w), at most `count` at a time."""
    yield from video.transpose(1, 2).flatten(0, 1).split(count)


def _scale_and_shift(config: Any) -> tuple[Any, Any]:
    """latents = (z - shift) * scale: by one factor, or by mean and standard deviation of each channel, or both."""
    factor = getattr(config, "scaling_factor", None) or 1.0
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return factor, getattr(config, "shift_factor", None) or 0.0
    return [factor / each for each in std], list(mean)


def frames_that_fit(frames: int, compression: Compression) -> int:
    """The largest number of frames, at most `frames`, that a causal autoencoder takes: 1 + a multiple of its factor."""
    return 1 + math.floor((frames - 1) / compression.time) * compression.time
