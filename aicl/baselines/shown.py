"""References as all baselines take them: clean latents, and the contexts of their captions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aicl.evaluation.generate import shown_pixels
from aicl.evaluation.method import Work
from aicl.evaluation.sample import Clip, Sample
from lvdm.bases.config import DiffusersConfig
from lvdm.errors import ConfigError
from lvdm.models.components import ModelConfig
from lvdm.video import to_frames

_ENCODED_AT_ONCE = 64  # clips


def check_text_to_video(config: ModelConfig) -> None:
    """Raise ConfigError for an image-to-video model: what the image is in a training for a clip, nobody has said.

    Also for a model of diffusers, on whose networks and schedulers no baseline was tried.
    """
    if isinstance(config, DiffusersConfig):
        raise ConfigError("baselines are for this library's own models, and this is one of diffusers")
    if config.takes_image:
        raise ConfigError("baselines are for text-to-video models, this one takes an image")


@torch.no_grad()
def latents_of(work: Work, clips: Sequence[Clip]) -> Tensor:
    """Scaled latents (n, c, t, h, w), float32, of clips as the model sees them: the posterior's mean, as AICL reads."""
    codec, device = work.pipeline.base.components.codec, work.pipeline.device
    parts = []
    for start in range(0, len(clips), _ENCODED_AT_ONCE):
        videos = shown_pixels(work.pipeline, work.benchmark, clips[start : start + _ENCODED_AT_ONCE])
        parts.append(codec.posterior(to_frames(torch.stack(videos)).to(device)).mode().float())
    return torch.cat(parts)


def references_of(work: Work, samples: Sequence[Sample]) -> Tensor:
    """Latents (b, k, c, t, h, w) of the k references of each sample."""
    clips = [list(work.shown(sample)) for sample in samples]
    return latents_of(work, [clip for row in clips for clip in row]).unflatten(0, (len(samples), -1))
