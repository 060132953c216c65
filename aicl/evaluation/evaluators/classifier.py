"""A video classifier of `transformers`: does it see the action that was asked for?"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from aicl.evaluation.evaluators.files import import_transformers, pretrained, pretrained_model
from aicl.evaluation.metric import register_evaluator
from lvdm.errors import DataError
from lvdm.hashing import files_hash
from lvdm.video import to_pixels


class TransformersClassifier:
    """A video classification model in a local folder (`save_pretrained`'s layout), with its own preprocessing.

    It sees "logits" (b, classes). Raises ConfigError where transformers is missing, CheckpointError where the folder
    holds no such model.
    """

    role, version, min_frames = "classifier", 1, 1

    def __init__(self, device: torch.device | str, path: str | os.PathLike[str]) -> None:
        transformers = import_transformers()
        model = pretrained_model(transformers.AutoModelForVideoClassification, path)
        self.model = model.to(device).eval().requires_grad_(False)
        self.processor = pretrained(transformers.AutoImageProcessor, path)
        self.name, self.hash, self.device = f"classifier {Path(path).name}", files_hash(path), torch.device(device)
        config = self.model.config
        self.classes: Sequence[str] = [config.id2label[index] for index in range(config.num_labels)]
        self._index = {plain_label(name): index for index, name in enumerate(self.classes)}

    @torch.no_grad()
    def observe(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (b, 3, t, h, w) in [-1, 1] -> "logits" (b, classes). Models of a fixed length get spread frames."""
        wanted = getattr(self.model.config, "num_frames", None)
        if wanted is not None and wanted != frames.shape[2]:
            frames = frames[:, :, torch.linspace(0, frames.shape[2] - 1, wanted).round().long()]
        videos = [list(clip.cpu().numpy()) for clip in to_pixels(frames)]
        inputs = self.processor(videos, return_tensors="pt")
        return {"logits": self.model(**{name: x.to(self.device) for name, x in inputs.items()}).logits.float()}

    def index(self, labels: Sequence[str]) -> Tensor:
        """Class names -> their numbers (n,) int64; "PlayingGuitar", "playing guitar", "playing_guitar" are the same.

        Raises DataError for a name that the model does not know.
        """
        unknown = sorted({label for label in labels if plain_label(label) not in self._index})
        if unknown:
            raise DataError(f"{self.name} has no class '{unknown[0]}': its classes are like '{self.classes[0]}'")
        return torch.tensor([self._index[plain_label(label)] for label in labels])


def plain_label(name: str) -> str:
    """A class name without case, spaces and punctuation, so that spellings can be compared."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


register_evaluator("classifier", TransformersClassifier)
