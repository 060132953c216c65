"""ACC: does a video classifier see the action that was asked for?

The classifier is the puppet world's, or any video classification model of `transformers` for real videos.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from aicl.evaluation.evaluators.files import import_transformers, pretrained
from aicl.puppets.classifier import Prediction, PuppetClassifier
from lvdm.errors import DataError
from lvdm.hashing import files_hash
from lvdm.video import to_pixels

VERSION = 1


def top1(scores: Tensor, labels: Tensor, among: Sequence[int] | None = None) -> Tensor:
    """Whether the best-scored class is `labels` (n,), for scores (n, classes): bool (n,).

    `among`: a forced choice among these classes; chance is 1 / len(among). Raises DataError for a label outside it.
    """
    if among is None:
        return scores.argmax(1) == labels
    choices = torch.as_tensor(list(among), device=scores.device)
    if not torch.isin(labels, choices).all():
        raise DataError("a label is not among the classes of the forced choice")
    return choices[scores[:, choices].argmax(1)] == labels


@torch.no_grad()
def puppet_verdict(classifier: PuppetClassifier, frames: Tensor) -> Prediction:
    """What the puppet classifier says of frames (n, 3, t, h, w) in [-1, 1]; float32, on the classifier's device."""
    device = next(classifier.parameters()).device
    return Prediction(*(part.float() for part in classifier(frames.to(device, torch.float32))))


class TransformersClassifier:
    """A video classification model in a local folder (`save_pretrained`'s layout), with its own preprocessing.

    Raises ConfigError where transformers is missing, CheckpointError where the folder holds no such model.
    """

    def __init__(self, folder: str | os.PathLike, device: torch.device | str = "cpu") -> None:
        transformers = import_transformers()
        self.model = pretrained(transformers.AutoModelForVideoClassification, folder).to(device).eval()
        self.processor = pretrained(transformers.AutoImageProcessor, folder)
        self.name, self.hash = Path(folder).name, files_hash(folder)
        self.classes = [self.model.config.id2label[index] for index in range(self.model.config.num_labels)]
        self._index = {_plain(name): index for index, name in enumerate(self.classes)}

    @torch.no_grad()
    def scores(self, frames: Tensor) -> Tensor:
        """Frames (n, 3, t, h, w) in [-1, 1] -> logits (n, classes). Models of fixed length get spread frames."""
        wanted = getattr(self.model.config, "num_frames", None)
        if wanted is not None and wanted != frames.shape[2]:
            frames = frames[:, :, torch.linspace(0, frames.shape[2] - 1, wanted).round().long()]
        videos = [list(clip.cpu().numpy()) for clip in to_pixels(frames)]
        inputs = self.processor(videos, return_tensors="pt")
        device = next(self.model.parameters()).device
        return self.model(**{name: value.to(device) for name, value in inputs.items()}).logits.float()

    def index(self, labels: Sequence[str]) -> Tensor:
        """Class names -> their numbers (n,); "PlayingGuitar", "playing guitar" and "playing_guitar" are the same.

        Raises DataError for a name that the model does not know.
        """
        unknown = sorted({label for label in labels if _plain(label) not in self._index})
        if unknown:
            raise DataError(f"{self.name} has no class '{unknown[0]}': its classes are like '{self.classes[0]}'")
        return torch.tensor([self._index[_plain(label)] for label in labels])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
