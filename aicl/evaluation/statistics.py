"""What a sample says of the whole: estimates with their intervals, since a number is never reported alone."""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor

from lvdm.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """A value, the interval [low, high] around it, the number of samples behind it, and how the interval was found."""

    value: float
    low: float
    high: float
    count: int
    method: str


def normal_quantile(level: float) -> float:
    """How many standard errors a two-sided interval of `level` reaches: 1.96 at 0.95."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(hits: float, count: int, level: float = 0.95) -> Estimate:
    """A share with Wilson's score interval, which stays right near 0 and 1. Raises DataError without samples."""
    if not 0 <= hits <= count or count == 0:
        raise DataError(f"{hits} hits of {count} are no share")
    z = normal_quantile(level)
    share, spread = hits / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    reach = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    low = 0.0 if hits == 0 else centre - reach  # in rounding these two would miss the bound
    high = 1.0 if hits == count else centre + reach
    return Estimate(share, low, high, count, "Wilson")


def share(hits: Tensor, level: float = 0.95) -> Estimate:
    """The share of true entries of hits (n,), or (n, k) for k judgements of each video, with Wilson's interval.

    Judgements of one video are not independent, so the interval counts videos: as wide as if all k always agreed.
    """
    of_each = hits.double() if hits.ndim == 1 else hits.double().mean(1)
    return wilson(float(of_each.sum()), len(hits), level)


def mean(values: Tensor, level: float = 0.95) -> Estimate:
    """The mean of one value a video (n,), with a normal interval from their spread. Raises DataError for n < 2."""
    values = values.detach().double().cpu()
    if values.ndim != 1 or len(values) < 2:
        raise DataError(f"a mean with an interval needs two or more values in one dimension, got {tuple(values.shape)}")
    reach = normal_quantile(level) * float(values.std()) / math.sqrt(len(values))
    centre = float(values.mean())
    return Estimate(centre, centre - reach, centre + reach, len(values), "normal")


def random_groups(values: Tensor, count: int) -> tuple[Tensor, ...]:
    """Values (n, ...) in `count` groups of nearly equal size, always the same ones; for jackknives and halves.

    Random, since evaluation sets are in a regular order of classes.
    """
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return tuple(values[part] for part in order.to(values.device).tensor_split(count))


def difference(ours: Tensor, theirs: Tensor, level: float = 0.95) -> Estimate:
    """The mean of ours - theirs for the same n samples, which varies much less than two that are apart.

    Values (n,) have a normal interval. Judgements, bool (n,) or (n, k), have Agresti and Min's (2005), which adds half
    a sample to each of the two ways to differ: few or no differences do not make it vanish. Raises DataError for other
    shapes or n < 2.
    """
    if ours.shape != theirs.shape:
        raise DataError(
            f"a paired difference needs the same samples, got {tuple(ours.shape)} and {tuple(theirs.shape)}"
        )
    differences = ours.double() - theirs.double()
    if ours.dtype != torch.bool:
        return replace(mean(differences, level), method="paired normal")
    differences = differences if differences.ndim == 1 else differences.mean(1)
    count, total, squares = len(differences), float(differences.sum()), float((differences**2).sum())
    if count < 2:
        raise DataError("a paired difference needs two or more samples")
    centre = total / (count + 2)
    reach = normal_quantile(level) * math.sqrt(((squares + 1) / (count + 2) - centre**2) / (count + 2))
    return Estimate(total / count, max(centre - reach, -1.0), min(centre + reach, 1.0), count, "Agresti-Min")
