"""CLIP-I: how much a video looks like its reference. AICL should take the action from it and leave the looks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.metric import Metric, Observed, register
from lvdm.errors import DataError


def clip_i(features: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """100 x cosine of each video's looks (n, t, d) with its reference's (n, t', d), and with all other references.

    Looks are the mean of the unit frame features. Returns (own (n,), others (n,)), others being the mean over all
    references but those equal to its own: own - others near zero means that nothing but the subject is shared. A video
    whose reference all others share has `others` equal to own. Raises DataError for fewer than two videos.
    """
    if len(features) < 2 or len(features) != len(references):
        raise DataError(f"{len(features)} videos and {len(references)} references: give two or more, one for each")
    looks, shown = (F.normalize(F.normalize(x.double(), dim=-1).mean(1), dim=-1) for x in (features, references))
    cosine = 100 * looks @ shown.T  # (videos, references)
    own = cosine.diagonal()
    clip = torch.unique(shown, dim=0, return_inverse=True)[1]  # (n,): one clip may be shown to several
    different = (clip[:, None] != clip).double()
    counts = different.sum(1)
    others = (cosine * different).sum(1) / counts.clamp(min=1)
    return own, others.where(counts > 0, own)


def _values(observed: Observed, which: int) -> Tensor:
    return clip_i(observed.videos["clip.frames"], observed.reference["clip.frames"])[which]


register(
    Metric(
        name="clip_i",
        column="CLIP-I",
        better=0,
        needs=("clip", "reference"),
        about="100 x cosine of the mean CLIP frame features of a video and of its reference.",
        values=lambda observed: _values(observed, 0),
    )
)
register(
    Metric(
        name="clip_i_other",
        column="CLIP-I, other references",
        better=0,
        needs=("clip", "reference", "other"),
        about="The same with the other videos' references: chance. Well above it, looks were copied.",
        values=lambda observed: _values(observed, 1),
    )
)
