"""Floors and ceilings of measures that compare two clips: what two real clips of one action, and of two, would get."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aicl.evaluation.metric import Observed


def next_clip(labels: Sequence[str], index: int, same: bool) -> int | None:
    """The next clip, counted round, of the same or of another class; None where there is none."""
    for step in range(1, len(labels)):
        other = (index + step) % len(labels)
        if (labels[other] == labels[index]) == same:
            return other
    return None


def pairs_of_real_clips(
    observed: Observed, what: str, seen: str, compare: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """Lines of a comparison of two clips: its mean over pairs of real clips of one action, and of two actions.

    Each real clip is paired with the next of the same class and with the next of another. Empty without real videos
    whose classes are known; a line is left out where there is no such pair.
    """
    real = observed.real
    if real is None or not real.has("label") or seen not in real.videos:
        return {}
    labels, values, lines = list(real.labels or ()), real.videos[seen], {}
    for same, which in ((True, "of one action"), (False, "of two actions")):
        found = [
            (index, other) for index in range(len(labels)) if (other := next_clip(labels, index, same)) is not None
        ]
        if found:
            text = f"{what} of two real clips {which}"
            if text not in real.known:  # the same for every row
                first, second = (torch.tensor(numbers) for numbers in zip(*found))
                real.known[text] = compare(values[first], values[second]).mean()
            lines[text] = float(real.known[text])
    return lines
