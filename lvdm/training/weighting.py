"""A loss that looks where something moves: weights for the places of a clip's latents.

The squared error of eq. 9 counts every place alike. In most videos few places move, and a hand that is one latent cell
wide hardly counts, though it may be all that tells two actions apart.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_STILL = 1e-3  # added to all motion, so that a clip in which nothing moves is weighted evenly


@torch.no_grad()
def motion_weights(latents: Tensor, strength: float) -> Tensor:
    """Weights of the places of clean latents by how much these change from frame to frame.

    latents: (b, c, t, h, w). strength: in [0, 1], the share of the weight that follows motion; the rest is even, so no
    place weighs less than 1 - strength. Motion is the change to the frame before and to the one behind, averaged over
    channels and 3x3 neighbours. Returns float32 (b, 1, t, h, w) with a mean of 1 for each clip, so that neither slow
    clips nor the learning rate count differently; ones where there is a single frame.
    """
    b, _, t, h, w = latents.shape
    if t == 1:
        return torch.ones(b, 1, t, h, w, device=latents.device)
    change = latents.float().diff(dim=2).abs().mean(1)  # (b, t - 1, h, w)
    motion = torch.cat([change[:, :1], (change[:, 1:] + change[:, :-1]) / 2, change[:, -1:]], dim=1)
    motion = F.avg_pool2d(motion, 3, stride=1, padding=1, count_include_pad=False) + _STILL
    relative = motion / motion.mean((1, 2, 3), keepdim=True)
    return (1 - strength + strength * relative)[:, None]
