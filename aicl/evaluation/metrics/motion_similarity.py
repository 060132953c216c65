"""Motion similarity: how much a video's motion resembles the reference's, wherever and whenever it happens.

Histograms of flow directions (eight, weighted by speed) in the nine fields of a 3x3 grid around what moves (see
`motion_histogram`) are compared over all frames: 100 x the largest cosine over shifts in time (wrapping around) and
over mirroring. So it does not depend on colours, on the place or size of the mover, on the overall speed, on
handedness, nor, for periodic actions, on the phase. It does depend on camera yaw. Read it beside the similarity to a
clip of another action: what the two share is chance.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.evaluators.flow import mirrored_histogram
from aicl.evaluation.metric import Metric, Observed, register
from aicl.evaluation.real_pairs import pairs_of_real_clips
from lvdm.errors import DataError


def motion_similarity(first: Tensor, second: Tensor) -> Tensor:
    """100 x the similarity (b,) of motion histograms (b, t, fields, directions), pair by pair; 0 for a still video.

    Raises DataError for histograms of different lengths.
    """
    if first.shape[1:] != second.shape[1:]:
        raise DataError(
            f"motions of {first.shape[1]} and {second.shape[1]} steps cannot be compared: use equal lengths"
        )
    first = F.normalize(first.double().flatten(1), dim=1)
    best = first.new_zeros(len(first))
    for version in (second.double(), mirrored_histogram(second.double())):
        for shift in range(second.shape[1]):
            other = F.normalize(version.roll(shift, 1).flatten(1), dim=1)
            best = torch.maximum(best, (first * other).sum(1))
    return 100 * best


def _to_reference(observed: Observed) -> Tensor:
    return motion_similarity(observed.videos["flow.histogram"], observed.reference["flow.histogram"]).float()


def _to_another_action(observed: Observed) -> Tensor:
    return motion_similarity(observed.videos["flow.histogram"], observed.other["flow.histogram"]).float()


register(
    Metric(
        name="motion_similarity",
        column="motion similarity",
        better=1,
        needs=("flow", "reference"),
        about="100 x similarity of the flow histograms of a video and of its reference.",
        values=_to_reference,
        lines=lambda observed: pairs_of_real_clips(observed, "motion similarity", "flow.histogram", motion_similarity),
    )
)
register(
    Metric(
        name="motion_similarity_other",
        column="motion similarity, other action",
        better=0,
        needs=("flow", "other"),
        about="The same with a clip of another action: chance, beside which motion similarity is to be read.",
        values=_to_another_action,
    )
)
