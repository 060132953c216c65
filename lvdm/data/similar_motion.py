"""How alike two clips move, from their frames alone: no pose, no label, no network."""

import torch
import torch.nn.functional as F
from torch import Tensor

_GRID = 4  # places along each side: fine enough to tell arms from legs, coarse enough for another camera


@torch.no_grad()
def motion_similarity(target: Tensor, references: Tensor) -> Tensor:
    """The correlation of where and when clips change, in [-1, 1].

    target: (b, c, t, h, w); references: (b, k, c, t, h, w), frames or latents of the same length. Clips correlate that
    change in the same parts of the picture at the same time, so phase, pace and side count, looks hardly do. Returns
    (b, k) float32; 0 for a clip in which nothing changes.
    """
    both = torch.cat([target[:, None], references], dim=1).float()
    change = both.diff(dim=3).abs().mean(2)  # (b, 1 + k, t - 1, h, w)
    cells = F.adaptive_avg_pool2d(change.flatten(0, 2)[:, None], _GRID).reshape(*change.shape[:2], -1)
    centred = F.normalize(cells - cells.mean(2, keepdim=True), dim=2)
    return (centred[:, :1] * centred[:, 1:]).sum(2)
