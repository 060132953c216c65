"""Algorithm 1: training the Action Prism and the Action Integration on a frozen base model."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from aicl.action_integration import ReferenceAttention
from aicl.action_prism import ActionPrism
from aicl.adapter import at_rate, save_adapter
from aicl.guidance import branches
from aicl.integrated_backbone import IntegratedBackbone
from aicl.training_features import disturb_features
from aicl.training_pairs import PairMaker, ReferenceSettings
from lvdm.acceleration.regions import compile_regions
from lvdm.diffusion import make_generators
from lvdm.pipeline import VideoPipeline
from lvdm.training.base import DiffusionModule
from lvdm.training.module import Batch
from lvdm.training.randomness import BatchRandomness
from lvdm.training.settings import TrainingSettings
from lvdm.video import to_pixels

_DIAGNOSED = 8  # timesteps at least in one measurement of the diagnostics
_JUDGED_AFTER, _LEAST_GAP = 1000, 1.0  # steps, and percent of the loss: by then every training that works is far above


class AICLModule(DiffusionModule):
    """References -> prism -> R, and the frozen base model learns to read R (III, Algorithm 1).

    Batches are text-video-reference triples: see `lvdm.data.ClipDataset` for their keys. `reference_dropout` is the
    share of references, the first of each sample apart, that are left out, so that any number of them is familiar.
    `pairs` finishes the references of a batch, see PairMaker. `fps`, the clips' rate (1/s), is kept in the adapter.
    """

    phases: ClassVar[dict[str, str]] = DiffusionModule.phases | {"encode_references": "encode"}

    def __init__(
        self,
        pipeline: VideoPipeline,
        prism: ActionPrism,
        integrated: IntegratedBackbone,
        settings: TrainingSettings,
        reference_dropout: float = 0.0,
        pairs: PairMaker | None = None,
        fps: float | None = None,
    ) -> None:
        pipeline.components.eval()  # without gradients; the new layers are no part of it
        super().__init__(pipeline, settings, integrated, {"prism": prism, "integration": integrated.blocks})
        if settings.compile:
            compile_regions(self.trained, (type(prism.blocks[0]), ReferenceAttention))
        self.reference_dropout, self.fps = reference_dropout, fps
        self.pairs = pairs or PairMaker(ReferenceSettings())
        self._measured_before: dict[str, Any] | None = None  # the references of the last diagnosed batch of one
        self._parts = (self.captured(prism), prism, integrated)  # in a tuple, since they are registered already

    def losses(self, batch: Batch) -> Tensor:
        """Algorithm 1: the loss of each sample, (b,), whose mean the optimiser descends."""
        batch = self.pairs.leave_out_captions(self.pairs(batch))
        randomness = self.randomness(batch)
        target = self.encode_target(batch, randomness)  # (b, c, t, h, w)
        references = self.encode_references(batch)  # (b, k, c, t, h, w)
        target_text, reference_text = self.encode_captions(batch)  # (b, tokens, d), (b, k, tokens, d)
        R = self.prism(references, reference_text)  # eq. 4-6: (b, k * t, channels, h, w)
        timesteps, noise = self.draw_noise(batch, target, randomness)
        R = disturb_features(R, self.pairs.settings, randomness)
        shown = self.integrated.reference_context(R, references.shape[3], self._weights(references, randomness))
        image = self.image_extras(batch, target)
        prediction = self.predict(batch, target, noise, timesteps, target_text, references=shown, **image)  # eq. 7
        return self.squared_error(prediction, target, noise, timesteps)  # eq. 9

    @property
    def prism(self) -> Any:
        """The prism, called as `ActionPrism` is: in training maybe as CUDA graphs."""
        return self._parts[0]

    @property
    def integrated(self) -> IntegratedBackbone:
        return self._parts[2]

    @torch.no_grad()
    def encode_references(self, batch: Batch) -> Tensor:
        """The mean of the posterior, (b, k, c, t, h, w): what the prism sees at inference too."""
        if "reference_latent_mean" in batch:
            return batch["reference_latent_mean"].float()
        references = batch["references"]
        mean = self.pipeline.components.codec.posterior(references.flatten(0, 1)).mode()
        return mean.unflatten(0, references.shape[:2])

    @torch.no_grad()
    def encode_captions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Contexts of the targets (b, tokens, d) and of the references (b, k, tokens, d): the encoders run once."""
        captions = [*batch["caption"], *(text for texts in batch["reference_captions"] for text in texts)]
        cached, b = None, len(batch["caption"])
        if "context" in batch:
            cached = torch.cat([batch["context"], batch["reference_context"].flatten(0, 1)])
        context = self.encode_text(captions, _first_frames(batch), cached)
        return context[:b], context[b:].unflatten(0, (b, -1))

    @torch.no_grad()
    def image_extras(self, batch: Batch, target: Tensor) -> dict[str, Tensor]:
        """What an image-to-video network gets beside the context of the first frames of targets (b, c, t, h, w);
        (b, ...) each."""
        num_frames = self.pipeline.components.codec.compression.frames(target.shape[2])
        return self.pipeline.image_extras(_first_frames(batch)[: len(target)], num_frames)

    def _weights(self, references: Tensor, randomness: BatchRandomness) -> Tensor | None:
        """1 for references (b, k, ...) that are shown, 0 for those left out, (b, k); None where all are shown."""
        count = references.shape[1]
        if count == 1 or not self.reference_dropout:
            return None
        shown = randomness.uniform(count) >= self.reference_dropout
        shown[:, 0] = True
        return shown.float()

    def diagnostics(self, batch: Batch) -> dict[str, Tensor]:
        """What a wrong reference costs, the same noise given, as a mean over 8 timesteps or more.

        reference_gap: how much the loss rises with another sample's references. reference_gap_percent: the same as a
        share of the loss, which can be compared between models. Both part from zero when the model begins to read
        references, long before videos show it. Batches of one take the references of the batch measured before.
        """
        batch = self.pairs(batch)
        shown = {name: value for name, value in batch.items() if name.startswith("reference")}
        b, wrong = len(batch["caption"]), self._measured_before
        self._measured_before = shown if b == 1 else None
        if b > 1:
            wrong = {n: v.roll(1, 0) if isinstance(v, Tensor) else [*v[-1:], *v[:-1]] for n, v in shown.items()}
        if wrong is None:
            return {}
        right_loss, wrong_loss = [], []
        rounds = math.ceil(_DIAGNOSED / b)
        for i in range(rounds):
            u = (batch["timestep_u"] + i / rounds) % 1.0
            again = batch | {"timestep_u": u, "noise_seed": batch["noise_seed"] + i}
            right_loss.append(self.losses(again).mean())
            wrong_loss.append(self.losses(again | wrong).mean())
        right = torch.stack(right_loss).mean()
        gap = torch.stack(wrong_loss).mean() - right
        return {"reference_gap": gap, "reference_gap_percent": 100 * gap / right}

    def judge_diagnostics(self, histories: Mapping[str, Sequence[tuple[int, float]]]) -> str | None:
        """Whether references are still not read after a thousand steps."""
        points = histories["reference_gap_percent"]
        if len(points) < 3 or points[-1][0] < _JUDGED_AFTER:
            return None
        gap = statistics.median(value for _, value in points[-5:])
        if gap >= _LEAST_GAP:
            return None
        return (
            f"after {points[-1][0]} steps a wrong reference raises the loss by {gap:.2f}% only "
            "(reference_gap_percent): references are hardly read; try, in this order, weaker geometry of self-pairs, a "
            "higher training.lr, training.timesteps=sqrt, more training.timesteps_per_sample"
        )

    @torch.no_grad()
    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """The first reference, what the base model makes of the prompt, and what AICL makes of both."""
        batch, pipe, b = self.pairs(batch), self.pipeline, len(batch["caption"])
        references = self.encode_references(batch)
        frames = pipe.components.codec.compression.frames(references.shape[3])
        height, width = _first_frames(batch).shape[-2:]
        size = (height, width)
        image = to_pixels(_first_frames(batch)[:b].unsqueeze(2))[:, 0] if pipe.takes_image else None
        fps = at_rate(pipe.config.defaults, self.fps).fps  # as the adapter will be sampled
        positive, negative = pipe.conditions(batch["caption"], image, size=size, fps=fps, num_frames=frames)
        R = self.prism(references, self.encode_captions(batch)[1])
        shown = self.integrated.reference_context(R, references.shape[3])
        patched = pipe.with_unet(self.integrated)
        guidance, videos = pipe.config.defaults.guidance_scale, {"reference": pipe.decode(references[:, 0])}
        embedded = pipe.tell_guidance(guidance)
        for label, model, context in (("base", pipe, None), ("ours", patched, shown)):
            generators = make_generators(range(b))
            x_T = pipe.initial_noise(generators, frames, size)
            latents = model.sample_latents(
                *branches(negative, positive, context, guidance, None, embedded),
                x_T,
                num_inference_steps=self.settings.preview_steps,
                generators=generators,
            )
            videos[label] = model.decode(latents)
        if embedded:
            pipe.tell_guidance(None)  # as training goes on
        return videos

    def export(self, folder: Path, meta: dict[str, Any]) -> None:
        """adapter.safetensors: the trained parameters, which any pipeline on the same base model can load."""
        _, prism, integrated = self._parts
        rate = {} if self.fps is None else {"fps": self.fps}
        save_adapter(folder / "adapter.safetensors", prism, integrated, meta | rate)


def _first_frames(batch: Batch) -> Tensor:
    """The first frames of all targets, then of all references, (b + b * k, 3, h, w) in [-1, 1]."""
    if "first_frame" in batch:
        return torch.cat([batch["first_frame"], batch["reference_first_frame"].flatten(0, 1)])
    return torch.cat([batch["frames"][:, :, 0], batch["references"].flatten(0, 1)[:, :, 0]])
