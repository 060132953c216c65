"""Training a base model: the denoising backbone, and the text encoder if it has none, on a frozen autoencoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lvdm.acceleration.regions import compile_regions
from lvdm.checkpoints import save_pipeline
from lvdm.diffusion import Condition, Denoiser, timesteps_from_uniform
from lvdm.models.backbone import VideoBackbone
from lvdm.pipeline import VideoPipeline
from lvdm.training.graphs import Captured
from lvdm.training.module import Batch, TrainingModule
from lvdm.training.randomness import BatchRandomness
from lvdm.training.settings import TrainingSettings
from lvdm.training.weighting import motion_weights
from lvdm.video import to_pixels


class DiffusionModule(TrainingModule):
    """The steps of which every training of a diffusion model consists; a subclass puts them in order in `losses`.

    `pipeline` is the model being trained or built upon; `backbone` is its UNet, or what stands in for it.
    """

    diffuses = True
    phases: ClassVar[dict[str, str]] = {"encode_target": "encode"}

    def __init__(
        self,
        pipeline: VideoPipeline,
        settings: TrainingSettings,
        backbone: VideoBackbone,
        trained: Mapping[str, nn.Module],
    ) -> None:
        components = pipeline.components
        super().__init__(settings, trained, frozen=[*components.modules().values(), backbone])
        self._pipeline = (pipeline,)  # in a tuple, so that the frozen parts are not registered
        pipeline.accelerate("none")  # previews are rare, and a graph would keep memory that training needs
        if settings.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()
        if settings.compile:
            for module in (backbone, components.codec.autoencoder.encoder):
                compile_regions(module)
        self._denoiser = Denoiser(self.captured(backbone), components.schedule, backbone.prediction)

    @property
    def pipeline(self) -> VideoPipeline:
        return self._pipeline[0]

    def captured(self, network: nn.Module) -> nn.Module:
        """The network, as CUDA graphs if the settings ask for them; not to be registered, since the network is."""
        return Captured(network) if self.settings.cuda_graphs else network

    @torch.no_grad()
    def encode_target(self, batch: Batch, randomness: BatchRandomness) -> Tensor:
        """Scaled latents (b, c, t, h, w) of the targets: a sample of the posterior, from frames or from a cache."""
        if "latent_mean" in batch:
            mean, std = batch["latent_mean"], batch["latent_std"]
        else:
            posterior = self.pipeline.components.codec.posterior(batch["frames"])
            mean, std = posterior.mean, posterior.std
        return mean.float() + std.float() * randomness.normal(mean.shape[1:])

    def encode_text(self, captions: Sequence[str], first_frames: Tensor, cached: Tensor | None = None) -> Tensor:
        """What the backbone is conditioned on, (n, tokens, d): texts, and first frames (n, 3, h, w) where it takes
        images. `cached` holds the features of the captions if they were computed before; else each is encoded once."""
        context = self._encode_distinct(captions) if cached is None else cached
        if self.pipeline.takes_image:
            image = self.pipeline.encode_image(first_frames)
            context = torch.cat([context, image.to(context.dtype)], dim=1)
        return context

    def _encode_distinct(self, captions: Sequence[str]) -> Tensor:
        """Of a clip and of its changed copies the captions are the same."""
        distinct = list(dict.fromkeys(captions))
        context = self.pipeline.encode_prompt(distinct)
        if len(distinct) == len(captions):
            return context
        return torch.stack([context[distinct.index(caption)] for caption in captions])

    def draw_noise(self, batch: Batch, latents: Tensor, randomness: BatchRandomness) -> tuple[Tensor, Tensor]:
        """Timesteps (b * n,) and standard normal noise (b * n, c, t, h, w), those of a sample one after another.

        n is `training.timesteps_per_sample`: the sample's own timestep and n - 1 more, evenly spread from it on, each
        with a noise of its own.
        """
        n, steps = self.settings.timesteps_per_sample, len(self.pipeline.components.schedule)
        spread = torch.arange(n, device=latents.device) / n
        u = ((batch["timestep_u"][:, None] + spread) % 1.0).flatten()
        timesteps = timesteps_from_uniform(u, steps, self.settings.timesteps)
        return timesteps, randomness.normal((n, *latents.shape[1:])).flatten(0, 1)

    def predict(
        self, batch: Batch, latents: Tensor, noise: Tensor, timesteps: Tensor, context: Tensor, **extras: Any
    ) -> Tensor:
        """The backbone's prediction (b * n, c, t, h, w) for latents (b, c, t, h, w) under noise, one row a timestep.

        context (b, tokens, d); extras: further arguments of the backbone, whose tensors have b rows too.
        """
        n = len(timesteps) // len(latents)
        fps = batch["fps"] if self.pipeline.config.defaults.fps is not None else None
        latents, context, fps, extras = repeat_rows((latents, context, fps, extras), n)
        noisy = self._denoiser.schedule.add_noise(latents, noise.float(), timesteps)
        return self._denoiser.predict(noisy, timesteps, [Condition(context, fps, extras)])

    def squared_error(self, prediction: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Eq. 9's squared error of each sample, (b,): the mean over its n predictions of `predict`, all places of the
        latents alike or weighted by how much moves there, as `training.motion_weight` says."""
        n, weight = len(timesteps) // len(latents), self.settings.motion_weight
        places = repeat_rows(motion_weights(latents, weight), n) if weight else None
        losses = self._denoiser.loss(prediction, repeat_rows(latents, n), noise, timesteps, places=places)
        return losses.unflatten(0, (-1, n)).mean(1)


class BaseModule(DiffusionModule):
    """A text- or image-to-video model from scratch: eq. 9 without references, the usual loss of latent diffusion.

    With `train_text` its text encoder learns along with the UNet. The image encoder and the resampler of an
    image-to-video model always do: they see the first frame, or a mid-grey one where the caption is dropped, which is
    the unconditional branch of the pipeline.
    """

    drops_captions = True

    def __init__(self, pipeline: VideoPipeline, settings: TrainingSettings, train_text: bool = False) -> None:
        components = pipeline.components
        components.codec.requires_grad_(False)
        trained: dict[str, nn.Module] = {"unet": components.unet}
        if pipeline.takes_image:
            encoder, resampler = components.image_encoder, components.image_resampler
            assert encoder is not None and resampler is not None  # built with the model
            trained |= {"image_encoder": encoder, "image_resampler": resampler}
        if train_text:
            trained["text"] = components.text
        else:
            components.text.requires_grad_(False)
        super().__init__(pipeline, settings, components.unet, trained)
        self.train_text = train_text
        self._encode = (self.captured(components.text) if train_text else components.text,)  # not registered twice
        # Frozen parts are rounded to the precision of the run when it starts; what is exported should not be.
        self._given = {
            part: module.state_dict()
            for part, module in components.modules().items()
            if not any(parameter.requires_grad for parameter in module.parameters())
        }

    def losses(self, batch: Batch) -> Tensor:
        randomness = self.randomness(batch)
        latents = self.encode_target(batch, randomness)
        context = self._context(batch, randomness)
        timesteps, noise = self.draw_noise(batch, latents, randomness)
        prediction = self.predict(batch, latents, noise, timesteps, context)
        return self.squared_error(prediction, latents, noise, timesteps)

    def _context(self, batch: Batch, randomness: BatchRandomness) -> Tensor:
        """The context of captions and, where the model takes them, first frames, some of them emptied for
        classifier-free guidance."""
        dropped = [u < self.settings.caption_dropout for [u] in randomness.host_uniform()]
        context = self._text_context(batch, dropped)
        if not self.pipeline.takes_image:
            return context
        first = _first_frame(batch)
        kept = torch.tensor([not drop for drop in dropped]).to(first.device, non_blocking=True)
        image = self.trained["image_resampler"](self.trained["image_encoder"](first * kept[:, None, None, None]))
        return torch.cat([context, image.to(context.dtype)], dim=1)

    def _text_context(self, batch: Batch, dropped: Sequence[bool]) -> Tensor:
        captions, text = batch["caption"], self.pipeline.components.text
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
    def preview(self, batch: Batch) -> dict[str, Tensor]:
        cached = "frames" not in batch
        real = self.pipeline.decode(batch["latent_mean"]) if cached else to_pixels(batch["frames"]).cpu()
        pixels = self.pipeline(
            batch["caption"],
            image=to_pixels(_first_frame(batch)[:, :, None])[:, 0] if self.pipeline.takes_image else None,
            num_frames=real.shape[1],
            height=real.shape[2],
            width=real.shape[3],
            num_inference_steps=self.settings.preview_steps,
            seed=list(range(len(real))),
            progress=False,
        )
        return {"real": real, "generated": pixels}

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        """The whole model as a folder that `lvdm.checkpoints.load_pipeline` reads."""
        save_pipeline(self.pipeline.components, self.pipeline.config, folder / "pipeline", self._given)


def _first_frame(batch: Batch) -> Tensor:
    """The first frames of a batch from files or from a cache, (b, 3, h, w) in [-1, 1]."""
    frame: Tensor = batch["first_frame"] if "first_frame" in batch else batch["frames"][:, :, 0]
    return frame


def repeat_rows(values: Any, n: int) -> Any:
    """Every tensor of a structure with each of its rows n times in a row, so that row i serves rows i*n to i*n+n-1."""
    if n == 1:
        return values
    return pytree.tree_map_only(Tensor, lambda x: x.repeat_interleave(n, dim=0), values)
