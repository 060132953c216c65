"""A VideoMAE encoder of `transformers`: features for distances between sets, and for the action score."""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.evaluators.files import import_transformers, pretrained_model
from aicl.evaluation.metric import register_evaluator
from lvdm.hashing import files_hash

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as VideoMAE was trained


class VideoMAE:
    """A VideoMAE encoder in a local folder of `transformers`, "features" (b, d): the mean of its last tokens.

    Less blind to motion than I3D (Ge et al. 2024, "On the content bias in Frechet video distance"). It has a fixed
    number of frames; other clips are read at evenly spread frames. Raises ConfigError where transformers is missing,
    CheckpointError where the folder holds no such model.
    """

    role, version, min_frames = "videomae", 1, 2

    def __init__(self, device: torch.device | str, path: str | os.PathLike[str]) -> None:
        model = pretrained_model(import_transformers().VideoMAEModel, path)
        self.model = model.to(device).eval().requires_grad_(False)
        config = self.model.config
        self.dim, self.frames, self.size = config.hidden_size, config.num_frames, config.image_size
        self.name = f"VideoMAE {Path(path).name}, mean of the last tokens of {self.frames} spread frames"
        self.hash, self.device = files_hash(path), torch.device(device)

    @torch.no_grad()
    def observe(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (b, 3, t, h, w) in [-1, 1] -> "features" (b, d) float32; bilinear to the network's square."""
        picked = torch.linspace(0, frames.shape[2] - 1, self.frames).round().long()
        images = frames[:, :, picked].to(self.device, torch.float32).transpose(1, 2)  # (b, t, 3, h, w)
        flat = F.interpolate(images.flatten(0, 1), (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (flat.new_tensor(v)[:, None, None] for v in (_MEAN, _STD))
        videos = ((flat + 1) / 2 - mean).div(std).view(*images.shape[:3], self.size, self.size)
        return {"features": self.model(videos).last_hidden_state.mean(1).float()}


register_evaluator("videomae", VideoMAE)
