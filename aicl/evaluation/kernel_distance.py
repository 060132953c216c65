"""Kernel distance between two sets of features: an unbiased estimate, so that sets may be small.

The squared maximum mean discrepancy under the polynomial kernel k(x, y) = (x . y / d + 1)^3, which Binkowski et al.
(2018) call the kernel inception distance and Unterthiner et al. (2018), of video features, KVD. Unlike a Frechet
distance it does not grow as sets shrink: its expectation between two sets of one distribution is 0 at any size, so an
estimate can be negative. What a small set costs is a wide interval.
"""

import torch
from torch import Tensor

from aicl.evaluation.metric import Metric, Observed
from aicl.evaluation.statistics import Estimate, normal_quantile, random_groups
from lvdm.errors import DataError

VERSION = 1
GROUPS = 20  # of the jackknife
FEWEST = 3  # videos in a set


def kernel_distance(features: Tensor, real: Tensor, *, groups: int = GROUPS, level: float = 0.95) -> Estimate:
    """The squared discrepancy of features (n, d) from real ones (m, d), with a delete-a-group jackknife interval.

    Raises DataError for fewer than three videos in a set, features of two networks, or values that are not finite.
    """
    if features.ndim != 2 or real.ndim != 2 or features.shape[1] != real.shape[1]:
        raise DataError(
            f"features {tuple(features.shape)} and {tuple(real.shape)} cannot be compared: both must be (videos, d)"
        )
    if min(len(features), len(real)) < FEWEST:
        raise DataError(
            f"a kernel distance needs three videos or more in each set, got {len(features)} and {len(real)}"
        )
    if not (features.isfinite().all() and real.isfinite().all()):
        raise DataError("features hold values that are not finite: the network or a video is broken")
    sides = [
        [part.to(torch.float64) for part in random_groups(one.detach().cpu(), min(groups, len(one)))]
        for one in (features, real)
    ]
    sums = {(a, b): _block_sums(sides[a], sides[b], same=a == b) for a, b in ((0, 0), (0, 1), (1, 1))}
    counts = [torch.tensor([len(part) for part in parts], dtype=torch.float64) for parts in sides]
    every = [torch.ones_like(count) for count in counts]
    value, variance = _discrepancy(sums, counts, every), 0.0
    for side in (0, 1):
        left_out = []
        for index in range(len(counts[side])):
            kept = [count.clone() for count in every]
            kept[side][index] = 0
            left_out.append(_discrepancy(sums, counts, kept))
        values = torch.tensor(left_out, dtype=torch.float64)
        variance += float((values - values.mean()).square().sum()) * (len(values) - 1) / len(values)
    reach = normal_quantile(level) * variance**0.5
    return Estimate(value, value - reach, value + reach, len(features), "delete-a-group jackknife")


def kernel_metric(name: str, column: str, role: str, about: str) -> Metric:
    """A metric of the kernel distance of an evaluator's "features" to those of real videos."""

    def estimate(observed: Observed) -> Estimate:
        return kernel_distance(observed.videos[f"{role}.features"], _real(observed, role))

    def lines(observed: Observed) -> dict[str, float]:
        real = _real(observed, role)
        if len(real) < 6:
            return {}
        first, second = random_groups(real, 2)
        return {f"{column} of one half of the real videos against the other": kernel_distance(first, second).value}

    return Metric(
        name=name,
        column=column,
        better=-1,
        needs=(f"{role}.features", "real"),
        about=about,
        version=VERSION,
        estimate=estimate,
        lines=lines,
        least=lambda evaluators: FEWEST,
        decimals=3,
    )


def _real(observed: Observed, role: str) -> Tensor:
    if observed.real is None:
        raise DataError("a distance between sets needs real videos")
    return observed.real.videos[f"{role}.features"]


def _block_sums(first: list[Tensor], second: list[Tensor], same: bool) -> Tensor:
    """Sums (groups, groups) of the kernel over pairs of videos, of a video with itself left out."""
    sums = torch.zeros(len(first), len(second), dtype=torch.float64)
    for row, x in enumerate(first):
        for column, y in enumerate(second):
            if same and column < row:
                sums[row, column] = sums[column, row]
                continue
            kernel = (x @ y.T / x.shape[1] + 1) ** 3
            sums[row, column] = kernel.sum() - (kernel.trace() if same and row == column else 0)
    return sums


def _discrepancy(sums: dict[tuple[int, int], Tensor], counts: list[Tensor], kept: list[Tensor]) -> float:
    """The unbiased estimate from those groups of each side whose entry in `kept` is 1."""
    n, m = (float(count @ keep) for count, keep in zip(counts, kept))
    within = kept[0] @ sums[0, 0] @ kept[0] / (n * (n - 1)) + kept[1] @ sums[1, 1] @ kept[1] / (m * (m - 1))
    return float(within - 2 * (kept[0] @ sums[0, 1] @ kept[1]) / (n * m))
