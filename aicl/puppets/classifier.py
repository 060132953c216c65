"""The video classifier: a measuring evaluator for actions, looks and, with its features, Frechet distances.

Motion and looks are read by two separate networks, so that the motion features say little about clothes.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicl.puppets.actions import ACTIONS
from aicl.puppets.scene_parameters import COLOURS, LOOKS
from lvdm.errors import ConfigError

_STAGES = 4
_GRID = 4  # the last feature map is pooled to this many rows and columns


@dataclass(frozen=True)
class ClassifierConfig:
    """Clips of `frames` frames, `size` pixels high and wide; `width` channels after the first stage."""

    size: int = 64
    frames: int = 16
    width: int = 32
    features: int = 256
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        if self.size % (2**_STAGES * _GRID):
            raise ConfigError(f"classifier.size {self.size} must be a multiple of {2**_STAGES * _GRID}")
        if self.width % 8 or self.features % self.heads:
            raise ConfigError("classifier.width must be a multiple of 8, classifier.features one of classifier.heads")


class Prediction(NamedTuple):
    """What the classifier says of clips: logits, and the features they are read from."""

    action: Tensor  # (b, actions)
    looks: Tensor  # (b, 3, 8): shirt, trousers, background
    features: Tensor  # (b, features), of the motion
    frame_features: Tensor  # (b, t, 128), of the looks in each frame


class PuppetClassifier(nn.Module):
    """Frames in [-1, 1], (b, 3, t, h, w), of the configured size -> Prediction. 3.3 M parameters with the defaults."""

    def __init__(self, config: ClassifierConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ClassifierConfig()
        widths = [3, *(config.width * 2**stage for stage in range(_STAGES))]
        self.motion = nn.ModuleList(_SpaceTime(before, after) for before, after in pairwise(widths))
        self.to_token = nn.Linear(widths[-1] * _GRID**2, config.features)
        self.position = nn.Parameter(torch.randn(config.frames, config.features) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.features, config.heads, 2 * config.features, dropout=0.0, batch_first=True, norm_first=True
        )
        self.over_time = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.to_features = nn.Linear(config.features, config.features)
        self.action_head = nn.Linear(config.features, len(ACTIONS))

        channels = [3, 32, 64, 128, 128]
        self.appearance = nn.Sequential(
            *(_strided(before, after) for before, after in pairwise(channels)),
            nn.AdaptiveAvgPool2d(_GRID),
            nn.Flatten(),
            nn.Linear(128 * _GRID**2, 128),
            nn.ReLU(),
        )
        self.looks_head = nn.Linear(128, len(LOOKS) * len(COLOURS))

    def forward(self, frames: Tensor) -> Prediction:
        expected = (3, self.config.frames, self.config.size, self.config.size)
        if tuple(frames.shape[1:]) != expected:
            raise ConfigError(
                f"the classifier takes clips {expected}, not {tuple(frames.shape[1:])}: resample them first"
            )
        b, _, t, _, _ = frames.shape
        images = frames.transpose(1, 2).flatten(0, 1)  # (b * t, 3, h, w)
        x = images
        for block in self.motion:
            x = block(x, t)
        tokens = self.to_token(F.adaptive_avg_pool2d(x, _GRID).flatten(1)).unflatten(0, (b, t))  # (b, t, features)
        moved = self.over_time(tokens + self.position).mean(1)
        features = F.relu(self.to_features(moved))  # (b, features)
        frame_features = self.appearance(images).unflatten(0, (b, t))  # (b, t, 128)
        looks = self.looks_head(frame_features.mean(1)).unflatten(1, (len(LOOKS), len(COLOURS)))
        return Prediction(self.action_head(features), looks, features, frame_features)


class _SpaceTime(nn.Module):
    """A strided convolution over space, then a residual one over time."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.space = _strided(before, after)
        self.time = nn.Sequential(nn.Conv1d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU())

    def forward(self, x: Tensor, t: int) -> Tensor:
        """(b * t, c, h, w) -> (b * t, c', h / 2, w / 2)."""
        x = self.space(x).unflatten(0, (-1, t))  # (b, t, c, h, w)
        b, _, c, h, w = x.shape
        rows = x.permute(0, 3, 4, 2, 1).reshape(b * h * w, c, t)
        moved = self.time(rows).reshape(b, h, w, c, t).permute(0, 4, 3, 1, 2)
        return (x + moved).flatten(0, 1)


def _strided(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU())


def soften(frames: Tensor, amount: Tensor, noise: Tensor) -> Tensor:
    """Blur and disturb clips (b, 3, t, h, w), so that an autoencoder's softness does not confuse the classifier.

    `amount` (b,) is how much, in [0, 1]; `noise` is standard normal and shaped like `frames`.
    """
    images = frames.transpose(1, 2).flatten(0, 1)
    small = F.interpolate(images, scale_factor=0.65, mode="area")
    blurred = F.interpolate(small, size=images.shape[-2:], mode="bilinear").unflatten(0, (len(frames), -1))
    share = amount[:, None, None, None, None]
    return torch.lerp(frames, blurred.transpose(1, 2), share) + 0.06 * share * noise
