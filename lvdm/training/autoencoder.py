"""Training an autoencoder: of the single frames of clips, or of whole clips where it is causal in time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lvdm import config as configs
from lvdm.acceleration.regions import compile_regions
from lvdm.files import atomic_path
from lvdm.models.autoencoder import AutoencoderKL
from lvdm.models.codec import LatentCodec
from lvdm.models.codec_families import AutoencoderConfig
from lvdm.training.module import TrainingModule
from lvdm.training.settings import TrainingSettings
from lvdm.video import to_pixels


@dataclass
class ReconstructionLoss:
    """Weights of the loss terms. All are means: over the frame in [-1, 1], or for `kl` over the latent's entries.

    `frames` of each clip are used, evenly spread; None takes all, as an autoencoder of whole clips needs it.
    """

    l1: float = 1.0
    mse: float = 0.0
    gradient: float = 0.0  # L1 between differences of neighbouring pixels, which keeps edges and thin limbs
    kl: float = 1e-6
    frames: int | None = None


class AutoencoderModule(TrainingModule):
    """Reconstruct frames through a sample of the posterior, which a small KL term keeps near the standard normal.

    codec: holds the autoencoder, and says how many frames it takes; config: its section of the model config. This
    library's own sees single frames; those of diffusers see clips, of 1 + a multiple of r frames (`Compression`).

    A running mean and deviation of each latent channel become the `latents` section of the exported description: with
    them a diffusion model sees normalised latents. Where averaged weights are exported, both are corrected by what the
    last batch says of the difference between the weights.
    """

    latent_mean: Tensor
    latent_square: Tensor

    def __init__(
        self, codec: LatentCodec, config: AutoencoderConfig, settings: TrainingSettings, loss: ReconstructionLoss
    ) -> None:
        autoencoder: Any = codec.autoencoder
        super().__init__(settings, {"autoencoder": autoencoder})
        if settings.compile:
            compile_regions(autoencoder)
        self._codec = (codec,)  # in a tuple, since its autoencoder is registered already
        self.config, self.loss = config, loss
        channels = autoencoder.embed_dim if self._of_frames else autoencoder.config.z_dim
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_square", torch.zeros(channels))
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # frames of the last batch, and their moments

    @property
    def _autoencoder(self) -> Any:
        return self.trained["autoencoder"]

    @property
    def _of_frames(self) -> bool:
        """Whether it sees single frames."""
        return isinstance(self._codec[0].autoencoder, AutoencoderKL)

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents of frames (b, 3, t, h, w), one latent frame after another, with
        gradients: (b * t', c, h', w'). Raises ConfigError for frames that the autoencoder cannot take."""
        self._codec[0].compression.grid(frames.shape[2], (frames.shape[3], frames.shape[4]))
        posterior = self._autoencoder.encode(_images(frames) if self._of_frames else frames)
        if self._of_frames:
            return posterior.mean.float(), posterior.logvar.float()
        found = posterior.latent_dist
        return _images(found.mean.float()), _images(found.logvar.float())

    def _decode(self, latents: Tensor, clips: int) -> Tensor:
        """The images (b * t, 3, h, w) of latents (b * t', c, h', w') of so many clips, with gradients."""
        if self._of_frames:
            images: Tensor = self._autoencoder.decode(latents)
            return images
        return _images(self._autoencoder.decode(latents.unflatten(0, (clips, -1)).transpose(1, 2)).sample)

    def losses(self, batch: dict[str, Any]) -> Tensor:
        randomness, frames = self.randomness(batch), self._frames(batch)
        b, t = frames.shape[0], frames.shape[2]
        images = _images(frames)
        mean, logvar = self._encode(frames)
        noise = randomness.normal((len(mean) // b, *mean.shape[1:])).flatten(0, 1)
        output = self._decode(mean + torch.exp(0.5 * logvar) * noise, b).float()
        self._track(frames, mean.detach(), logvar.detach())
        weights, error = self.loss, output - images
        terms = weights.l1 * _mean(error.abs()) + weights.mse * _mean(error.square())
        if weights.gradient:
            terms = terms + weights.gradient * sum(_mean(error.diff(dim=dim).abs()) for dim in (2, 3))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        return terms.view(b, t).mean(1) + weights.kl * _mean(kl).view(b, -1).mean(1)

    @torch.no_grad()
    def preview(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        frames = batch["frames"]
        output = self._decode(self._encode(frames)[0], len(frames))
        return {
            "real": to_pixels(frames),
            "reconstruction": to_pixels(output.unflatten(0, (len(frames), -1)).transpose(1, 2)),
        }

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        """autoencoder.safetensors, and autoencoder.yaml: the sections `autoencoder` and `latents` of a model config."""
        autoencoder = self._autoencoder
        weights = {name: value.detach().contiguous().cpu() for name, value in autoencoder.state_dict().items()}
        with atomic_path(folder / "autoencoder.safetensors") as temporary:
            save_file(weights, temporary)
        mean, deviation = self._latent_statistics()
        own = self.config
        if self._of_frames:
            own = AutoencoderConfig(configs.to_mapping(autoencoder.config), autoencoder.embed_dim)  # in full
        description = {
            "autoencoder": configs.to_mapping(own),
            "latents": {"scale": (1 / deviation).tolist(), "shift": mean.tolist()},
        }
        configs.save(folder / "autoencoder.yaml", description)

    def _frames(self, batch: dict[str, Any]) -> Tensor:
        frames = batch["frames"]
        count = self.loss.frames
        if count is None or count >= frames.shape[2]:
            return frames
        return frames[:, :, torch.linspace(0, frames.shape[2] - 1, count).round().long()]

    def _track(self, frames: Tensor, mean: Tensor, logvar: Tensor) -> None:
        """Update the running moments of the latents, (channels,): an average over about the last 100 steps."""
        share = max(0.01, 1 / (self.global_step + 1))
        first, second = _moments(mean, logvar)
        self.latent_mean.lerp_(first, share)
        self.latent_square.lerp_(second, share)
        if self.ema is not None:
            self._last = frames, first, second

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents, (channels,), under the weights that the module has at the moment."""
        mean, variance = self.latent_mean, _variance(self.latent_mean, self.latent_square)
        if self._last is not None:  # the running moments are of weights that are not averaged
            frames, first, second = self._last
            with torch.no_grad(), self.autocast():
                averaged = _moments(*self._encode(frames))
            mean = mean + averaged[0] - first
            variance = variance * _variance(*averaged) / _variance(first, second)
        return mean, variance.sqrt()


def _images(video: Tensor) -> Tensor:
    """(b, c, t, h, w) -> (b * t, c, h, w)."""
    return video.transpose(1, 2).flatten(0, 1)


def _moments(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moments of samples of posteriors (n, c, h, w), (c,) each."""
    return mean.mean((0, 2, 3)), (mean.square() + logvar.exp()).mean((0, 2, 3))


def _variance(first: Tensor, second: Tensor) -> Tensor:
    """The variance of what has these moments, never zero."""
    return (second - first.square()).clamp(min=1e-6)


def _mean(x: Tensor) -> Tensor:
    """Mean of everything but the batch dimension, (n,)."""
    return x.flatten(1).mean(1)
