"""Training the KL autoencoder on the single frames of clips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from lvdm import config as configs
from lvdm.acceleration.regions import compile_regions
from lvdm.errors import ConfigError
from lvdm.models.autoencoder import AutoencoderKL
from lvdm.training.module import TrainingModule
from lvdm.training.settings import TrainingSettings
from lvdm.video import to_pixels


@dataclass
class ReconstructionLoss:
    """Weights of the loss terms. All are means: over the frame in [-1, 1], or for `kl` over the latent's entries.

    `frames` of each clip are used, evenly spread; None takes all.
    """

    l1: float = 1.0
    mse: float = 0.0
    gradient: float = 0.0  # L1 between differences of neighbouring pixels, which keeps edges and thin limbs
    kl: float = 1e-6
    frames: int | None = None


class AutoencoderModule(TrainingModule):
    """Reconstruct frames through a sample of the posterior, which a small KL term keeps near the standard normal.

    A running mean and deviation of each latent channel become the `latents` section of the exported description: with
    them a diffusion model sees normalised latents.
    """

    latent_mean: Tensor
    latent_square: Tensor

    def __init__(self, autoencoder: AutoencoderKL, settings: TrainingSettings, loss: ReconstructionLoss):
        super().__init__(settings, {"autoencoder": autoencoder})
        if settings.compile:
            compile_regions(autoencoder)
        self.loss = loss
        self.register_buffer("latent_mean", torch.zeros(autoencoder.embed_dim))
        self.register_buffer("latent_square", torch.zeros(autoencoder.embed_dim))

    @property
    def _autoencoder(self) -> AutoencoderKL:
        return cast(AutoencoderKL, self.trained["autoencoder"])

    def losses(self, batch: dict[str, Any]) -> Tensor:
        randomness, frames = self.randomness(batch), self._frames(batch)
        b, t = frames.shape[0], frames.shape[2]
        images = frames.transpose(1, 2).flatten(0, 1)  # (b * t, 3, h, w)
        autoencoder = self._autoencoder
        if images.shape[2] % autoencoder.factor or images.shape[3] % autoencoder.factor:
            raise ConfigError(f"data.clip.size {list(images.shape[2:])} must be multiples of {autoencoder.factor}")
        posterior = autoencoder.encode(images)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = randomness.normal((t, *mean.shape[1:])).flatten(0, 1)
        output = autoencoder.decode(mean + torch.exp(0.5 * logvar) * noise).float()
        self._track(mean.detach(), logvar.detach())
        weights, error = self.loss, output - images
        terms = weights.l1 * _mean(error.abs()) + weights.mse * _mean(error.square())
        if weights.gradient:
            terms = terms + weights.gradient * sum(_mean(error.diff(dim=dim).abs()) for dim in (2, 3))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        return (terms + weights.kl * _mean(kl)).view(b, t).mean(1)

    @torch.no_grad()
    def preview(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        frames = batch["frames"]
        images = frames.transpose(1, 2).flatten(0, 1)
        autoencoder = self._autoencoder
        output = autoencoder.decode(autoencoder.encode(images).mode())
        return {
            "real": to_pixels(frames),
            "reconstruction": to_pixels(output.unflatten(0, (len(frames), -1)).transpose(1, 2)),
        }

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        """autoencoder.safetensors, and autoencoder.yaml: the sections `autoencoder` and `latents` of a model config."""
        autoencoder = self._autoencoder
        save_file(
            {name: value.detach().contiguous().cpu() for name, value in autoencoder.state_dict().items()},
            folder / "autoencoder.safetensors",
        )
        deviation = (self.latent_square - self.latent_mean.square()).clamp(min=1e-6).sqrt()
        description = {
            "autoencoder": {"ddconfig": configs.to_mapping(autoencoder.config), "embed_dim": autoencoder.embed_dim},
            "latents": {"scale": (1 / deviation).tolist(), "shift": self.latent_mean.tolist()},
        }
        configs.save(folder / "autoencoder.yaml", description)

    def _frames(self, batch: dict[str, Any]) -> Tensor:
        frames = batch["frames"]
        count = self.loss.frames
        if count is None or count >= frames.shape[2]:
            return frames
        return frames[:, :, torch.linspace(0, frames.shape[2] - 1, count).round().long()]

    def _track(self, mean: Tensor, logvar: Tensor) -> None:
        """Update the running moments of the latents, (channels,): an average over about the last 100 steps."""
        share = max(0.01, 1 / (self.global_step + 1))
        self.latent_mean.lerp_(mean.mean((0, 2, 3)), share)
        self.latent_square.lerp_((mean.square() + logvar.exp()).mean((0, 2, 3)), share)


def _mean(x: Tensor) -> Tensor:
    """Mean of everything but the batch dimension, (n,)."""
    return x.flatten(1).mean(1)
