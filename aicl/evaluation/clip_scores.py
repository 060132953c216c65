"""CC and FC: how well frames match the prompt, and each other, in the space of a CLIP model.

CC = 100 x the mean cosine of the prompt's and each frame's features. FC = 100 x the mean cosine of frames' features,
of consecutive frames or of all pairs. FC alone rewards a frozen video, which gets exactly 100: set the FC of real
videos beside it, and a measure of dynamics (see `motion`).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.puppets.clip import PuppetCLIP
from lvdm.errors import CheckpointError, ConfigError, DataError
from lvdm.hashing import file_hash

VERSION = 1
Pairs = Literal["consecutive", "all"]
STATIC_FC = 100.0  # of a video whose frames are all the same


class FrameTextEncoder(Protocol):
    """A CLIP model with its preprocessing; `hash` identifies the weights."""

    name: str
    hash: str

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> unit vectors (b, d), float32."""
        ...

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames in [-1, 1], (b, 3, t, h, w) -> unit vectors (b, t, d), float32."""
        ...


def clip_consistency(text: Tensor, frames: Tensor) -> Tensor:
    """CC of each video (b,), from features text (b, d) and frames (b, t, d) of any length."""
    cosine = F.cosine_similarity(text.double()[:, None], frames.double(), dim=-1)  # (b, t)
    return 100 * cosine.mean(1)


def frame_consistency(frames: Tensor, pairs: Pairs = "consecutive") -> Tensor:
    """FC of each video (b,), from features (b, t, d) of any length. Raises DataError for fewer than two frames."""
    t = frames.shape[1]
    if t < 2:
        raise DataError("frame consistency needs two frames or more")
    unit = F.normalize(frames.double(), dim=-1)
    if pairs == "consecutive":
        cosine = (unit[:, 1:] * unit[:, :-1]).sum(-1)
        return 100 * cosine.mean(1)
    first, second = torch.triu_indices(t, t, offset=1)
    return 100 * (unit @ unit.transpose(1, 2))[:, first, second].mean(1)


class OpenCLIPScorer:
    """A model of open_clip by its name ("ViT-B-32-quickgelu"), with weights from a local file: nothing is fetched.

    Frames are resized (bicubic, antialiased) to cover the model's square, then centre-cropped and normalised as the
    model's own preprocessing does. Raises ConfigError for an unknown model, CheckpointError for weights that don't fit.
    """

    def __init__(self, model: str, weights: str | os.PathLike, device: torch.device | str = "cpu") -> None:
        import open_clip  # slow to import

        if model not in open_clip.list_models():
            raise ConfigError(f"open_clip has no model '{model}': choose one of open_clip.list_models()")
        if not Path(weights).is_file():
            raise CheckpointError(
                f"{weights} is not there: download the weights of {model} (open_clip's list of pretrained models says "
                "where they are) and give the file"
            )
        try:
            self.model = open_clip.create_model(model, pretrained=os.fspath(weights), device=device)
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{weights} does not hold the weights of {model}: {str(error).splitlines()[0]}"
            ) from error
        self.model.eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(model)
        self.name, self.hash, self.device = f"open_clip {model}", file_hash(weights), torch.device(device)
        visual = self.model.visual
        self.size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        self.mean, self.std = (torch.tensor(v, device=device)[:, None, None] for v in (_mean(visual), _std(visual)))

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(captions)).to(self.device)
        return self.model.encode_text(tokens, normalize=True).float()

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        b, _, t, h, w = frames.shape
        images = frames.to(self.device, torch.float32).transpose(1, 2).flatten(0, 1)
        scale = self.size / min(h, w)
        covered = (max(self.size, round(h * scale)), max(self.size, round(w * scale)))
        images = F.interpolate(images, covered, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        top, left = (covered[0] - self.size) // 2, (covered[1] - self.size) // 2
        images = images[:, :, top : top + self.size, left : left + self.size]
        images = ((images + 1) / 2 - self.mean) / self.std
        return self.model.encode_image(images, normalize=True).float().unflatten(0, (b, t))


class PuppetCLIPScorer:
    """The puppet world's own CLIP. `hash` identifies its weights."""

    name = "puppet-clip"

    def __init__(self, clip: PuppetCLIP, hash: str) -> None:
        self.clip, self.hash = clip, hash

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        return self.clip.encode_text(captions).float()

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        weight = self.clip.model.positional_embedding
        return self.clip.encode_frames(frames.to(weight.device, weight.dtype)).float()


def _mean(visual: torch.nn.Module) -> Sequence[float]:
    from open_clip import OPENAI_DATASET_MEAN

    return getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN


def _std(visual: torch.nn.Module) -> Sequence[float]:
    from open_clip import OPENAI_DATASET_STD

    return getattr(visual, "image_std", None) or OPENAI_DATASET_STD
