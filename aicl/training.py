"""Training the Action Prism and the Action Integration on a frozen base model (Algorithm 1, eq. 9)."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from aicl.action_integration import IntegratedUNet, IntegrationConfig, ReferenceAttention, ReferenceContext, integrate
from aicl.action_prism import ActionPrism, PrismBlock, PrismConfig
from aicl.adapter import save_adapter
from aicl.model_files import base_folder
from aicl.reference_retrieval import VerbIndex, VerbPairSampler
from lvdm import config as configs
from lvdm.checkpoints import load_pipeline, read_model
from lvdm.data import DataConfig, read_records
from lvdm.data.caching import check_encoders, load_encoders
from lvdm.diffusion import make_generators
from lvdm.errors import ConfigError
from lvdm.models.components import build_components
from lvdm.pipeline import VideoPipeline
from lvdm.training.base import DiffusionModule
from lvdm.training.compile import compile_regions
from lvdm.training.module import DTYPES
from lvdm.training.randomness import BatchRandomness
from lvdm.training.settings import TrainingSettings
from lvdm.training.strategy import training_device
from lvdm.training.tasks import DATA_KINDS, Recipe, build_data
from lvdm.video import to_pixels


class AICLNetwork(nn.Module):
    """All that a training step differentiates, as one call: prism, integration and the frozen UNet."""

    def __init__(self, integrated: IntegratedUNet, prism: ActionPrism):
        super().__init__()
        self.integrated, self.prism = integrated, prism  # in this order: the first parameter tells the UNet's type

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        fps: Tensor | None = None,
        *,
        references: list[tuple[slice, tuple[Tensor, Tensor, Tensor | None]]],
    ) -> Tensor:
        """The UNet's prediction for x (b * n, c, t, h, w), n rows for each of b samples.

        references: the arguments of `memory`, as the denoiser passes extras: a list of one (rows, value).
        """
        [(_, arguments)] = references
        memory = self.memory(*arguments)
        return self.integrated(x, timesteps, context, fps=fps, references=memory.repeat(len(x) // len(memory.features)))

    def memory(self, latents: Tensor, context: Tensor, weights: Tensor | None = None) -> ReferenceContext:
        """R of all references of a batch in one call of the prism (eq. 4-6), ready for the UNet.

        latents (b, k, c, t, h, w), context (b, k, tokens, d), weights (b, k) or None for equal ones.
        """
        return self.integrated.memory(self.prism(latents, context), latents.shape[3], weights)


class AICLModule(DiffusionModule):
    """Algorithm 1: references -> prism -> R, and the frozen base model learns to read R, eq. 9.

    Batches are text-video-reference triples: see `lvdm.data.ClipDataset` for their keys. `reference_dropout` is the
    share of references, the first of each sample apart, that are left out, so that any number of them is familiar.
    """

    def __init__(
        self,
        pipeline: VideoPipeline,
        prism: ActionPrism,
        integrated: IntegratedUNet,
        settings: TrainingSettings,
        reference_dropout: float = 0.0,
    ):
        pipeline.components.eval()  # without gradients; the new layers are no part of it
        trained = {"prism": prism, "integration": integrated.blocks}
        network = AICLNetwork(integrated, prism)
        super().__init__(pipeline, settings, network, trained)
        if settings.compile:
            compile_regions(self.trained, (PrismBlock, ReferenceAttention))
        self._network, self.reference_dropout = (network,), reference_dropout

    def losses(self, batch: dict[str, Any]) -> Tensor:
        randomness = self.randomness(batch)
        latents = self.target_latents(batch, randomness)
        context, reference_context = self._contexts(batch)
        shown = self._reference_latents(batch)
        references = (shown, reference_context, self._weights(randomness, shown.shape[1]))
        return self.denoising_losses(latents, context, batch, randomness, references=references)

    def _weights(self, randomness: BatchRandomness, count: int) -> Tensor | None:
        """1 for references that are shown, 0 for those left out, (b, count); None where all are shown."""
        if count == 1 or not self.reference_dropout:
            return None
        shown = randomness.uniform(count) >= self.reference_dropout
        shown[:, 0] = True
        return shown.float()

    @torch.no_grad()
    def _reference_latents(self, batch: dict[str, Any]) -> Tensor:
        """The mean of the posterior, (b, k, c, t, h, w): what the prism sees at inference too."""
        if "reference_latent_mean" in batch:
            return batch["reference_latent_mean"].float()
        references = batch["references"]
        mean = self.pipeline.components.codec.posterior(references.flatten(0, 1)).mode()
        return mean.unflatten(0, references.shape[:2])

    @torch.no_grad()
    def _contexts(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Contexts of the targets (b, tokens, d) and of the references (b, k, tokens, d): the encoders run once."""
        captions = [*batch["caption"], *(text for texts in batch["reference_captions"] for text in texts)]
        cached, b = None, len(batch["caption"])
        if "context" in batch:
            cached = torch.cat([batch["context"], batch["reference_context"].flatten(0, 1)])
        context = self.context(captions, _first_frames(batch), cached)
        return context[:b], context[b:].unflatten(0, (b, -1))

    def diagnostics(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """reference_gap: how much the loss rises with another sample's references, the same noise given.

        It parts from zero when the model begins to read references, long before videos show it.
        """
        if len(batch["caption"]) < 2:
            return {}
        wrong = {
            name: value.roll(1, 0) if isinstance(value, Tensor) else [*value[-1:], *value[:-1]]
            for name, value in batch.items()
            if name.startswith("reference")
        }
        return {"reference_gap": self.losses(batch | wrong).mean() - self.losses(batch).mean()}

    @torch.no_grad()
    def preview(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The first reference, what the base model makes of the prompt, and what AICL makes of both."""
        pipe, b = self.pipeline, len(batch["caption"])
        references = self._reference_latents(batch)
        frames, size = references.shape[3], tuple(_first_frames(batch).shape[-2:])
        image = to_pixels(_first_frames(batch)[:b].unsqueeze(2))[:, 0] if pipe.takes_image else None
        positive, negative = pipe.conditions(batch["caption"], image, size=size)
        network = self._network[0]
        memory = network.memory(references, self._contexts(batch)[1])
        with_references = replace(positive, extras={"references": memory})
        patched = VideoPipeline(replace(pipe.components, unet=network.integrated), pipe.config)
        guidance, videos = pipe.config.defaults.guidance_scale, {"reference": pipe.decode(references[:, 0])}
        for label, model, branch in (("base", pipe, positive), ("ours", patched, with_references)):
            generators = make_generators(range(b))
            x_T = pipe.initial_noise(generators, frames, size)
            latents = model.sample_latents(
                [negative, branch],
                [1 - guidance, guidance],
                x_T,
                num_inference_steps=self.settings.preview_steps,
                generators=generators,
            )
            videos[label] = model.decode(latents)
        return videos

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        """adapter.safetensors: the trained parameters, which any pipeline on the same base model can load."""
        network = self._network[0]
        save_adapter(folder / "adapter.safetensors", network.prism, network.integrated, meta)


def _first_frames(batch: dict[str, Any]) -> Tensor:
    """The first frames of all targets, then of all references, (b + b * k, 3, h, w) in [-1, 1]."""
    if "first_frame" in batch:
        return torch.cat([batch["first_frame"], batch["reference_first_frame"].flatten(0, 1)])
    return torch.cat([batch["frames"][:, :, 0], batch["references"].flatten(0, 1)[:, :, 0]])


@dataclass
class AICLSections:
    """The config of task "aicl".

    base.path is a model folder, or a run of task base (its newest checkpoint); base.config builds a model with random
    weights instead, to measure speed and memory. `references` is how many accompany each target; data that brings its
    own number of references (puppets) leaves it None. `reference_dropout`: see AICLModule.
    """

    @dataclass
    class Base:
        path: str | None = None
        config: str | dict[str, Any] | None = None

    base: Base
    data: dict[str, Any]
    prism: dict[str, Any] = field(default_factory=dict)
    integration: IntegrationConfig = field(default_factory=IntegrationConfig)
    references: int | None = None
    reference_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.reference_dropout < 1.0:
            raise ConfigError(f"reference_dropout = {self.reference_dropout} is a share: choose a number in [0, 1)")
        if self.references is not None and self.references < 1:
            raise ConfigError(f"references is {self.references}: each target needs at least 1")


def build(recipe: Recipe) -> tuple[AICLModule, pl.LightningDataModule]:
    """Task "aicl": see AICLSections. Raises ConfigError for sections that do not fit together."""
    sections: AICLSections = recipe.parse(AICLSections)
    pipeline = build_base_pipeline(sections.base, recipe.training)
    torch.manual_seed(recipe.run.seed)  # the new layers start the same whatever was drawn for the base model
    prism = build_prism(sections.prism, pipeline, recipe.training)
    integrated = integrate(pipeline.components.unet, sections.integration)
    module = AICLModule(pipeline, prism, integrated, recipe.training, sections.reference_dropout)
    if sections.data.get("kind") in DATA_KINDS:
        if sections.references is not None:
            raise ConfigError("this kind of data brings its own references: set data.references, not references")
        return module, build_data(sections.data, recipe)
    data = configs.from_mapping(DataConfig, sections.data, where="data")
    if data.cache and sections.base.path is not None:
        encoders = load_encoders(base_folder(sections.base.path), "cpu")  # in float32, whatever this run computes in
        check_encoders(data.cache, encoders.codec, encoders.text)
    records = read_records(data)
    pair_sampler = VerbPairSampler(VerbIndex([record.caption for record in records]), sections.references or 1)
    return module, build_data(sections.data, recipe, pair_sampler=pair_sampler, records=records)


def build_base_pipeline(base: AICLSections.Base, settings: TrainingSettings) -> VideoPipeline:
    """The frozen base model: loaded from `base.path`, or random from `base.config`, in the precision of the run."""
    if (base.path is None) == (base.config is None):
        raise ConfigError("give either base.path (a model folder) or base.config (random weights), not both or neither")
    precision = {"device": training_device(settings), "dtype": DTYPES[settings.precision]}
    if base.path is not None:
        return load_pipeline(base_folder(base.path), **precision)
    config = read_model(base.config)
    return VideoPipeline(build_components(config, **precision), config)


def build_prism(section: dict[str, Any], pipeline: VideoPipeline, settings: TrainingSettings) -> ActionPrism:
    """The prism of section `prism`, which by default reads the base model's text features whatever their width."""
    section = {"context_dim": pipeline.config.text.width, "use_checkpoint": settings.gradient_checkpointing, **section}
    return ActionPrism(configs.from_mapping(PrismConfig, section, where="prism"))
