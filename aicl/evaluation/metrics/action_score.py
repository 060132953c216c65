"""Action score: the cosine of VideoMAE features between a video and a real clip of its action.

Features of any two videos are alike to a degree, so the score is read between two lines: that of two real clips of one
action, and that of real clips of two actions. The clip that it is compared with is not the reference that was shown, so
copying the reference earns nothing by itself.
"""

import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.metric import Metric, Observed, register
from aicl.evaluation.real_pairs import pairs_of_real_clips


def action_score(features: Tensor, clips: Tensor) -> Tensor:
    """100 x the cosine (b,) of features (b, d) and those of a clip each (b, d)."""
    return 100 * F.cosine_similarity(features.double(), clips.double(), dim=-1)


def _to(observed: Observed, clip: str) -> Tensor:
    return action_score(observed.videos["videomae.features"], getattr(observed, clip)["videomae.features"])


register(
    Metric(
        name="action_score",
        column="action score",
        better=1,
        needs=("videomae", "target"),
        about="100 x cosine of VideoMAE features of a video and of a real clip of its action.",
        values=lambda observed: _to(observed, "target"),
        lines=lambda observed: pairs_of_real_clips(observed, "action score", "videomae.features", action_score),
    )
)
register(
    Metric(
        name="action_score_other",
        column="action score, other action",
        better=0,
        needs=("videomae", "other"),
        about="The same with a clip of another action: chance, beside which the action score is to be read.",
        values=lambda observed: _to(observed, "other"),
    )
)
