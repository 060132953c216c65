"""FC: how well frames match each other, in the space of a CLIP model (the paper's frame consistency).

FC alone rewards a frozen video, which gets exactly 100: set the FC of real videos and a measure of motion beside it.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.metric import Metric, Observed, register
from lvdm.errors import DataError

Pairs = Literal["consecutive", "all"]
STATIC = 100.0  # of a video whose frames are all the same


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


def _values(observed: Observed, pairs: Pairs) -> Tensor:
    return frame_consistency(observed.videos["clip.frames"], pairs).float()


def _metric(name: str, column: str, pairs: Pairs, about: str) -> Metric:
    return Metric(
        name=name,
        column=column,
        better=1,
        needs=("clip",),
        about=about,
        values=partial(_values, pairs=pairs),
        lines=lambda observed: {f"{column} of a static video": STATIC},
        decimals=2,
    )


register(_metric("fc", "FC", "consecutive", "100 x mean cosine of CLIP features of consecutive frames."))
register(_metric("fc_all", "FC, all pairs", "all", "100 x mean cosine of CLIP features of all pairs of frames."))
