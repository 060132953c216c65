"""Training a base model: the denoising UNet, and the text encoder if it has none, on a frozen autoencoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lvdm.checkpoints import save_pipeline
from lvdm.diffusion import Condition, Denoiser, timesteps_from_uniform
from lvdm.models.transformers import Transformer
from lvdm.pipeline import VideoPipeline
from lvdm.training.compile import compile_regions
from lvdm.training.graphs import Captured
from lvdm.training.module import TrainingModule
from lvdm.training.randomness import BatchRandomness
from lvdm.training.settings import TrainingSettings
from lvdm.video import to_pixels


class DiffusionModule(TrainingModule):
    """What training a base model and training AICL share: latents, contexts and the denoising loss.

    `pipeline` is the model being trained or built upon; `unet` is its UNet, or what stands in for it.
    """

    captures = True

    def __init__(
        self, pipeline: VideoPipeline, settings: TrainingSettings, unet: nn.Module, trained: Mapping[str, nn.Module]
    ):
        components = pipeline.components
        super().__init__(settings, trained, frozen=[*components.modules().values(), unet])
        self._pipeline = (pipeline,)  # in a tuple, so that the frozen parts are not registered
        if settings.gradient_checkpointing:
            recompute_activations(components.unet)
        if settings.compile:
            for module in (unet, components.codec.autoencoder.encoder):
                compile_regions(module)
        network = Captured(unet) if settings.cuda_graphs else unet
        self._denoiser = Denoiser(network, components.schedule, components.prediction)

    @property
    def pipeline(self) -> VideoPipeline:
        return self._pipeline[0]

    def denoising_losses(
        self, latents: Tensor, context: Tensor, batch: dict[str, Any], randomness: BatchRandomness, **extras: Any
    ) -> Tensor:
        """Eq. 2 for each sample, (b,); eq. 9 with `references` among the extras. Latents (b, c, t, h, w) are scaled.

        With n `training.timesteps_per_sample` it is the mean over n timesteps, evenly spread from the sample's own on,
        each with a noise of its own. The UNet then has b * n rows, those of a sample one after another.
        """
        n, steps = self.settings.timesteps_per_sample, len(self.pipeline.components.schedule)
        spread = torch.arange(n, device=latents.device) / n
        u = ((batch["timestep_u"][:, None] + spread) % 1.0).flatten()
        t = timesteps_from_uniform(u, steps, self.settings.timesteps)
        noise = randomness.normal((n, *latents.shape[1:])).flatten(0, 1)
        fps = batch["fps"].repeat_interleave(n) if self.pipeline.config.defaults.fps is not None else None
        latents, context = (x.repeat_interleave(n, dim=0) if n > 1 else x for x in (latents, context))
        losses = self._denoiser.loss(latents, noise, t, Condition(context, fps, extras))
        return losses.unflatten(0, (-1, n)).mean(1)

    @torch.no_grad()
    def target_latents(self, batch: dict[str, Any], randomness: BatchRandomness) -> Tensor:
        """Scaled latents (b, c, t, h, w) of the targets: a sample of the posterior, from frames or from a cache."""
        if "latent_mean" in batch:
            mean, std = batch["latent_mean"], batch["latent_std"]
        else:
            posterior = self.pipeline.components.codec.posterior(batch["frames"])
            mean, std = posterior.mean, posterior.std
        return mean.float() + std.float() * randomness.normal(mean.shape[1:])

    def context(self, captions: Sequence[str], first_frames: Tensor, cached: Tensor | None = None) -> Tensor:
        """What the UNet is conditioned on, (n, tokens, d): texts, and first frames (n, 3, h, w) where it takes images.

        `cached` holds the features of the captions if they were computed before.
        """
        context = self.pipeline.encode_prompt(captions) if cached is None else cached
        if self.pipeline.takes_image:
            image = self.pipeline.encode_image(first_frames)
            context = torch.cat([context, image.to(context.dtype)], dim=1)
        return context


class BaseModule(DiffusionModule):
    """A text-to-video model from scratch, eq. 2; with `train_text` its text encoder learns along with the UNet."""

    def __init__(self, pipeline: VideoPipeline, settings: TrainingSettings, train_text: bool = False):
        components = pipeline.components
        components.codec.requires_grad_(False)
        trained = {"unet": components.unet}
        if train_text:
            trained["text"] = components.text
        else:
            components.text.requires_grad_(False)
        super().__init__(pipeline, settings, components.unet, trained)
        self.train_text = train_text
        encode = Captured(components.text) if settings.cuda_graphs and train_text else components.text
        self._encode = (encode,)  # in a tuple, as it is registered already
        # Frozen parts are rounded to the precision of the run when it starts; what is exported should not be.
        self._given = {
            part: module.state_dict()
            for part, module in components.modules().items()
            if not any(parameter.requires_grad for parameter in module.parameters())
        }

    def losses(self, batch: dict[str, Any]) -> Tensor:
        randomness = self.randomness(batch)
        latents = self.target_latents(batch, randomness)
        return self.denoising_losses(latents, self._context(batch, randomness), batch, randomness)

    def _context(self, batch: dict[str, Any], randomness: BatchRandomness) -> Tensor:
        """The captions' context, some of them emptied for classifier-free guidance."""
        captions, text = batch["caption"], self.pipeline.components.text
        dropped = [u < self.settings.caption_dropout for [u] in randomness.host_uniform()]
        if self.train_text:
            tokens = text.tokenize(["" if drop else caption for caption, drop in zip(captions, dropped)])
            return self._encode[0](tokens.to(self.device, non_blocking=True))
        with torch.no_grad():
            if "context" not in batch:
                return text.encode(["" if drop else caption for caption, drop in zip(captions, dropped)])
            if not any(dropped):
                return batch["context"]
            empty = text.encode([""]).to(batch["context"].dtype)
            rows = [empty if drop else row[None] for row, drop in zip(batch["context"], dropped)]
            return torch.cat(rows)

    @torch.no_grad()
    def preview(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        real = batch["frames"]
        pixels = self.pipeline(
            batch["caption"],
            num_frames=real.shape[2],
            height=real.shape[3],
            width=real.shape[4],
            num_inference_steps=self.settings.preview_steps,
            seed=list(range(len(real))),
            progress=False,
        )
        return {"real": to_pixels(real).cpu(), "generated": pixels}

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        """The whole model as a folder that `lvdm.checkpoints.load_pipeline` reads."""
        save_pipeline(self.pipeline.components, self.pipeline.config, folder / "pipeline", self._given)


def recompute_activations(unet: nn.Module) -> None:
    """Turn on gradient checkpointing in a UNet that was built without: activations are computed anew in backward."""
    unet.params.use_checkpoint = True
    for module in unet.modules():
        if isinstance(module, Transformer):
            module.use_checkpoint = True
