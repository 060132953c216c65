"""The puppet world's networks as evaluators: the classifier of actions and looks, and the small CLIP."""

import os
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.evaluators.clip import CLIP
from aicl.puppets.actions import INDEX, NAMES
from aicl.puppets.classifier import PuppetClassifier
from aicl.puppets.clip import PuppetCLIP
from aicl.puppets.evaluators import load_evaluator
from lvdm.checkpoints.resolve import find_export
from lvdm.errors import DataError
from lvdm.hashing import file_hash


def reduced(frames: Tensor, size: int) -> Tensor:
    """Frames (b, 3, t, h, w), where they are larger, as means of areas: (b, 3, t, size, size), nearly as drawn there.

    Smaller ones are returned as they are, since nothing that a network was trained on is as soft as they would become.
    """
    b, _, t, h, w = frames.shape
    if min(h, w) < size or h == w == size:
        return frames
    images = F.interpolate(frames.transpose(1, 2).flatten(0, 1), size=(size, size), mode="area")
    return images.unflatten(0, (b, t)).transpose(1, 2)


class PuppetClassifierEvaluator:
    """It sees "logits" (b, actions), "looks" (b, 3, 8) and "features" (b, d), those of the motion.

    path: the folder of its weights, or of the training run that made them. Raises CheckpointError for missing ones.
    """

    role, version = "classifier", 1

    def __init__(self, device: torch.device | str, path: str | os.PathLike[str]) -> None:
        folder = find_export(path, "classifier.safetensors")
        self.model = cast(PuppetClassifier, load_evaluator(folder, "classifier", device))
        self.name, self.hash = "puppet classifier", file_hash(folder / "classifier.safetensors")
        self.classes: Sequence[str] = NAMES
        self.device = torch.device(device)
        self.min_frames, self.dim = self.model.config.frames, self.model.config.features

    @torch.no_grad()
    def observe(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (b, 3, t, h, w) in [-1, 1], of the size that it was made for or larger."""
        prediction = self.model(reduced(frames.to(self.device, torch.float32), self.model.config.size))
        return {"logits": prediction.action, "looks": prediction.looks, "features": prediction.features}

    def index(self, labels: Sequence[str]) -> Tensor:
        """Names of actions -> their numbers (n,) int64. Raises DataError for an unknown one."""
        if unknown := sorted(set(labels) - INDEX.keys()):
            raise DataError(f"the puppet world has no action '{unknown[0]}': labels are its names of actions")
        return torch.tensor([INDEX[label] for label in labels])


class PuppetCLIPEvaluator(CLIP):
    """The small CLIP; path as for the classifier. Raises CheckpointError for missing weights."""

    def __init__(self, device: torch.device | str, path: str | os.PathLike[str]) -> None:
        folder = find_export(path, "clip.safetensors")
        self.model = cast(PuppetCLIP, load_evaluator(folder, "clip", device))
        self.name, self.hash = "puppet CLIP", file_hash(folder / "clip.safetensors")

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> unit vectors (b, d), float32."""
        features: Tensor = self.model.encode_text(captions)
        return features.float()

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames (b, 3, t, h, w) in [-1, 1], of the size that it was made for or larger -> unit vectors (b, t, d)."""
        weight = self.model.model.positional_embedding
        shown = reduced(frames.to(weight.device, weight.dtype), self.model.config.size)
        features: Tensor = self.model.encode_frames(shown)
        return features.float()
