"""Vectors by which clips are compared in an action library: what is said, what moves, and what it looks like.

text: the base model's text encoder at a caption's end, as CLIP has it. motion: the Action Prism's R (eq. 4-6), pooled.
appearance: the autoencoder's latents, averaged over time. All have length 1, so their products are cosines.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from aicl.adapter import Fingerprint
from aicl.clock import Clock
from aicl.options import Reference
from aicl.pipeline import AICLPipeline
from aicl.reference_encoder import ReferenceEncoder
from lvdm import config as configs
from lvdm.errors import ConfigError

Vectors = NDArray[np.float32]

VERSION = 1  # of how vectors are made; raised when the same clips come to have other ones
_MOTION_GRID, _LOOKS_GRID = 8, 4  # places along each side that R and latents are pooled to


class Embedder:
    """Makes the vectors of texts and clips with a pipeline, whose adapter they belong to."""

    def __init__(self, pipe: AICLPipeline) -> None:
        """Raises ConfigError for a pipeline without an adapter: nothing would read motion."""
        if pipe.prism is None:
            raise ConfigError("there is no adapter, so the motion of clips cannot be read: give one with --adapter")
        self.pipe, self.prism = pipe, pipe.prism
        self._encode = ReferenceEncoder(pipe.base, pipe.prism)

    def identity(self) -> dict[str, Any]:
        """What two libraries must have in common to be one: the prism, the text encoder, and how clips are cut."""
        defaults = self.pipe.defaults
        return {
            "version": VERSION,
            "prism": configs.to_mapping(Fingerprint.of(self.prism)),
            "text": configs.to_mapping(Fingerprint.of(self.pipe.base.components.text)),
            "clip": [defaults.num_frames, defaults.height, defaults.width, defaults.save_fps],
        }

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """Captions or prompts -> (n, d). Raises ConfigError for a base model that reads no text."""
        context = self.pipe.base.encode_prompt(texts).float().cpu()  # (n, tokens, d)
        if not context.shape[1]:
            raise ConfigError("this base model reads no text, so captions cannot be compared: use another model")
        return _unit(context[torch.arange(len(context)), self.pipe.base.components.text.ends(texts, context)])

    @torch.no_grad()
    def clips(self, videos: Sequence[Any]) -> tuple[Vectors, Vectors]:
        """Videos, in any form that a reference may have, -> motion (n, d) and appearance (n, e).

        Captions play no part, so that the same clip has the same vectors whatever is said of it. Raises VideoError for
        one that cannot be read, ConfigError for what is no video.
        """
        defaults = self.pipe.defaults
        rows = [[Reference(video, "")] for video in videos]
        size, fps = (defaults.height, defaults.width), defaults.save_fps
        encoded, latents = self._encode(rows, defaults.num_frames, size, fps, Clock(self.pipe.device))
        return motion_vectors(encoded.features), appearance_vectors(latents[:, 0])


def motion_vectors(features: Tensor) -> Vectors:
    """R of one reference each, (n, t, c, h, w) -> (n, 2 * c * 8 * 8): its mean and spread over time at 8x8 places.

    Two clips of one action begin at different moments of it, so the course in time is left out.
    """
    pooled = F.adaptive_avg_pool2d(features.float().flatten(0, 1), _MOTION_GRID).unflatten(0, features.shape[:2])
    return _unit(torch.cat([pooled.mean(1), pooled.std(1)], dim=1).flatten(1).cpu())


def appearance_vectors(latents: Tensor) -> Vectors:
    """Latents (n, c, t, h, w) -> (n, c * 4 * 4): their mean over time at each of 4x4 places."""
    return _unit(F.adaptive_avg_pool2d(latents.float().mean(2), _LOOKS_GRID).flatten(1).cpu())


def _unit(vectors: Tensor) -> Vectors:
    unit: Vectors = F.normalize(vectors, dim=1).numpy().astype(np.float32)
    return unit
