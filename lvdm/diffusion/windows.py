"""Videos longer than a network's own: at each step it is called on overlapping windows of frames, whose predictions are
blended (as MultiDiffusion does with parts of an image, Bar-Tal et al. 2023, arXiv 2302.08113).

Every window is given the same text and the same references. Memory is that of one window; the time grows with their
number.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lvdm.errors import ConfigError


class Windows(nn.Module):
    """A network that is called like `network`, on any number of frames, and sees `frames` of them at once.

    overlap: frames that two neighbouring windows share. Raises ConfigError unless it is less than a window.
    """

    def __init__(self, network: nn.Module, frames: int, overlap: int) -> None:
        super().__init__()
        if frames < 2 or not 0 <= overlap < frames:
            raise ConfigError(
                f"windows of {frames} frames that share {overlap}: give 2 frames or more, of which fewer are shared"
            )
        self.network, self.frames, self.overlap = network, frames, overlap

    @property
    def shares_branches(self) -> bool:
        """As of the network."""
        return bool(getattr(self.network, "shares_branches", False))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The blended predictions for x (b, c, t, h, w). A video of no more frames than a window is seen at once."""
        total = x.shape[2]
        if total <= self.frames:
            output: Tensor = self.network(x, *args, **kwargs)
            return output
        weights = blend_weights(self.frames, self.overlap).to(x.device)
        summed: Tensor | None = None
        shares = torch.zeros(total, device=x.device)
        for start in window_starts(total, self.frames, self.overlap):
            frames = slice(start, start + self.frames)
            part = self.network(x[:, :, frames], *args, **kwargs).float() * weights[:, None, None]
            summed = part.new_zeros(*part.shape[:2], total, *part.shape[3:]) if summed is None else summed
            summed[:, :, frames] += part  # at once: a captured graph gives its next output in the same memory
            shares[frames] += weights
        assert summed is not None
        return summed / shares[:, None, None]


def window_starts(total: int, frames: int, overlap: int) -> list[int]:
    """The first frame of each window; the last one ends with the video, and may share more than `overlap`."""
    starts = list(range(0, total - frames, frames - overlap))
    return [*starts, total - frames]


def blend_weights(frames: int, overlap: int) -> Tensor:
    """How much each frame of a window counts, (frames,): less and less towards the ends that it shares."""
    ramp = torch.arange(1, frames + 1, dtype=torch.float32).clamp(max=max(1, overlap))
    return torch.minimum(ramp, ramp.flip(0))
