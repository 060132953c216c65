"""Motion fidelity: do points move as the reference's do? (Yatim et al. 2023, "Space-time diffusion features")

Every point track of one video is compared with all of the other's, by the mean cosine of their displacements over
time, and counts with its best match; the score is the mean over the tracks of both. Displacements have one length, so
speed does not enter, and neither does place; the moment does. So it rewards a copied trajectory: two clips of one
action, out of phase, are hardly more alike by it than clips of two actions. Hence the lines and the column beside it.
Tracks come from chained optical flow here, where the authors use CoTracker. Since these can stand still, tracks that
never move are left out, and the mean is over the steps in which one of the two moves.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.metric import Metric, Observed, register
from aicl.evaluation.real_pairs import pairs_of_real_clips
from lvdm.errors import DataError


def motion_fidelity(first: Tensor, second: Tensor) -> Tensor:
    """The score (b,), -100 to 100, of tracks (b, n, t, 2) and (b, m, t, 2), pair by pair; 0 where a video is still.

    Raises DataError for tracks of different lengths.
    """
    if first.shape[2] != second.shape[2]:
        raise DataError(
            f"tracks of {first.shape[2]} and {second.shape[2]} frames cannot be compared: use equal lengths"
        )
    return torch.stack([_score(a, b) for a, b in zip(first.float(), second.float())]) if len(first) else torch.zeros(0)


def _score(first: Tensor, second: Tensor) -> Tensor:
    directions, moves = [], []
    for tracks in (first, second):  # (n, t, 2)
        steps = tracks.diff(dim=1)
        steps = steps[steps.abs().flatten(1).amax(1) > 0]
        if not len(steps):
            return first.new_zeros(())
        directions.append(F.normalize(steps, dim=-1).flatten(1))  # (n, 2 * (t - 1)); of no length stays so
        moves.append((steps.abs().amax(-1) > 0).to(first.dtype))  # (n, t - 1)
    both = moves[0] @ moves[1].T  # (n, m) steps
    either = moves[0].sum(1)[:, None] + moves[1].sum(1) - both
    likeness = directions[0] @ directions[1].T / either
    return 50 * (likeness.amax(1).mean() + likeness.amax(0).mean())


def _to(observed: Observed, clip: str) -> Tensor:
    return motion_fidelity(observed.videos["tracks.points"], getattr(observed, clip)["tracks.points"])


def _lines(observed: Observed) -> dict[str, float]:
    return pairs_of_real_clips(observed, "motion fidelity", "tracks.points", motion_fidelity)


def _metric(
    name: str,
    column: str,
    better: int,
    clip: str,
    about: str,
    lines: Callable[[Observed], dict[str, float]] | None = None,
) -> Metric:
    return Metric(
        name=name,
        column=column,
        better=better,
        needs=("tracks", clip),
        about=about,
        values=lambda observed: _to(observed, clip),
        lines=lines,
    )


register(
    _metric(
        "motion_fidelity",
        "motion fidelity",
        1,
        "reference",
        "100 x mean, over the point tracks of a video and of its reference, of each one's best cosine with the "
        "other's tracks.",
        _lines,
    )
)
register(
    _metric(
        "motion_fidelity_other",
        "motion fidelity, other action",
        0,
        "other",
        "The same with a clip of another action: chance, beside which motion fidelity is to be read.",
    )
)
