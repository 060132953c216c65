"""CC: how well frames match the prompt, in the space of a CLIP model (the paper's CLIP consistency)."""

import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.metric import Metric, Observed, register


def clip_consistency(text: Tensor, frames: Tensor) -> Tensor:
    """100 x the mean cosine (b,) of the prompt's features (b, d) and each frame's (b, t, d), of any length."""
    cosine = F.cosine_similarity(text.double()[:, None], frames.double(), dim=-1)  # (b, t)
    return 100 * cosine.mean(1)


def _values(observed: Observed) -> Tensor:
    return clip_consistency(observed.texts["clip.prompt"], observed.videos["clip.frames"]).float()


register(
    Metric(
        name="cc",
        column="CC",
        better=1,
        needs=("clip", "prompt"),
        about="100 x mean cosine of CLIP features of the prompt and of each frame.",
        values=_values,
        decimals=2,
    )
)
