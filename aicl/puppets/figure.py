"""Whether the figure is one piece: what the eye sees first of a video in which a hand or a head got lost.

The puppet world's background is known but for its colour, its light and whether it is striped, and the camera stands
still. So it is told from the figure by each video alone, and what is left is counted in connected components.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.metric import Metric, Observed, register, register_evaluator

_BANDS = 50.0  # radians of a striped wall's bands across the picture, see `renderer._background`
_BAND_DEPTH = 0.2
_FLOOR_STEP = 0.88  # a row that is so much darker than the one two above it is where the floor begins
_FAR = 0.05  # distance of a colour from the background's, of 1, from which it is the figure's
_TONES = (0.95, 1.05)  # what a background's tone may be multiplied by
_EDGE_TONES, _EDGE = (0.7, 1.3), 2  # the same within so many rows of the floor's edge
_SHADOW = 0.6  # and how dark a shadow may make the floor
_SPECK = 5 / 64**2  # share of the picture below which a piece is noise of the autoencoder


def figure_mask(frames: Tensor) -> Tensor:
    """Where the figure is: frames (b, 3, t, h, w) in [-1, 1] of the puppet world -> bool (b, t, h, w).

    A row of the background has the median colour of all its pixels; if the wall is striped, one with bands fits too. On
    the floor, darker tones of that colour are the figure's shadow.
    """
    pixels = (frames.float() + 1) / 2
    w = pixels.shape[-1]
    column = torch.arange(w, device=pixels.device) + 0.5
    bands = 1 - _BAND_DEPTH * (0.5 + 0.5 * torch.sin(column * (_BANDS / w)))
    plain, banded = (_rows(pixels, factor) for factor in (torch.ones_like(bands), bands))  # (b, 3, 1, h, w)
    tone = plain.mean((1, 2, 4))  # (b, h)
    steps = tone[:, 2:] / tone[:, :-2].clamp(min=1e-3) < _FLOOR_STEP
    floor = F.pad(steps.cumsum(1) > 0, (2, 0))  # (b, h): from the first such row downwards
    edge = F.pad(steps, (1, 1)).float()[:, None]
    edge = F.max_pool1d(edge, 2 * _EDGE + 1, stride=1, padding=_EDGE)[:, 0] > 0
    low = torch.where(edge, _EDGE_TONES[0], _TONES[0])
    low, high = torch.where(floor, _SHADOW, low), torch.where(edge, _EDGE_TONES[1], _TONES[1])
    misfit = [(pixels - rows).abs().amax(1).flatten(1).median(1).values for rows in (plain, banded)]
    striped = (misfit[1] < misfit[0])[:, None, None, None]
    of_plain, of_banded = (_is_far(pixels, rows, low, high) for rows in (plain, banded))
    return of_plain & (of_banded | ~striped)


def _rows(pixels: Tensor, factor: Tensor) -> Tensor:
    """Pixels (b, 3, t, h, w) as they would be if each row had one colour times `factor` (w,): (b, 3, 1, h, w)."""
    level = (pixels / factor).transpose(2, 3).flatten(3).median(-1).values
    return level[:, :, None, :, None] * factor


def _is_far(pixels: Tensor, background: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where no tone of the background's colour, between `low` and `high` (b, h) of it, is near: bool (b, t, h, w)."""
    shade = (pixels * background).sum(1) / background.square().sum(1).clamp(min=1e-3)
    shade = shade.minimum(high[:, None, :, None]).maximum(low[:, None, :, None])
    return (pixels - shade[:, None] * background).abs().amax(1) > _FAR


def count_pieces(mask: Tensor) -> Tensor:
    """Connected components (of eight neighbours), specks left out: bool (..., h, w) -> int64 (...)."""
    shape, (h, w) = mask.shape[:-2], mask.shape[-2:]
    mask = mask.reshape(-1, 1, h, w)
    labels = torch.arange(1, h * w + 1, device=mask.device, dtype=torch.float32).reshape(1, 1, h, w) * mask
    while True:  # the largest number of each component spreads to all of it
        spread = labels
        for _ in range(8):
            spread = F.max_pool2d(spread, 3, stride=1, padding=1) * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    sizes = torch.zeros(len(mask), h * w + 1, device=mask.device)
    sizes.scatter_add_(1, labels.flatten(1).long(), mask.flatten(1).float())
    return (sizes[:, 1:] > _SPECK * h * w).sum(1).reshape(shape)


class FigureEvaluator:
    """It sees "pieces" (b, t), the number of pieces that the figure of each frame has."""

    role, version, min_frames, name, hash = "figure", 1, 1, "figure's pieces", ""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    @torch.no_grad()
    def observe(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (b, 3, t, h, w) in [-1, 1]."""
        return {"pieces": count_pieces(figure_mask(frames.to(self.device)))}


def whole(pieces: Tensor) -> Tensor:
    """Share of the frames with exactly one piece: int (n, t) -> float (n,)."""
    return (pieces == 1).float().mean(1)


def _values(observed: Observed) -> Tensor:
    return whole(observed.videos["figure.pieces"])


register_evaluator("puppets_figure", FigureEvaluator)
register(
    Metric(
        name="whole_figure",
        column="whole figure %",
        better=1,
        needs=("figure.pieces",),
        about="Share of frames in which the figure is one connected piece.",
        values=_values,
        factor=100,
    )
)
