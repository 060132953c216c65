"""Frechet distance between two sets of features as Gaussians, from statistics that are gathered a batch at a time.

Everything is float64. The statistics of parts merge exactly, so that 100,000 videos need no more memory than 100, and
several processes can share the work. With FVD the features are those of a video network, see `features`.
"""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aicl.evaluation.metric import Evaluator, Metric, Observed
from aicl.evaluation.statistics import Estimate, normal_quantile, random_groups
from lvdm.errors import DataError

VERSION = 1
GROUPS = 20  # of the jackknife
FEWEST = 3  # videos in a set whose distance has an interval: one is left out, and two have a covariance


class FeatureStats:
    """Count, mean (d,) and scatter (d, d) of features: the sum over samples of (x - mean)(x - mean)^T."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStats":
        """The statistics of features (n, d)."""
        return cls(features.shape[1]).update(features)

    def update(self, features: Tensor) -> "FeatureStats":
        """Take in a batch (n, d) of any float type. Raises DataError where a value is not finite."""
        features = features.detach().to("cpu", torch.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise DataError(f"features must be (n, {len(self.mean)}), got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise DataError("features hold values that are not finite: the network or a video is broken")
        batch = FeatureStats(len(self.mean))
        if len(features):
            batch.count, batch.mean = len(features), features.mean(0)
            batch.scatter = (features - batch.mean).T @ (features - batch.mean)
        return self.merge(batch)

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """Take in the samples of another set (Chan et al. 1979): exact, and stable where means are far from zero."""
        total = self.count + other.count
        if other.count:
            difference = other.mean - self.mean
            self.scatter += other.scatter + torch.outer(difference, difference) * (self.count * other.count / total)
            self.mean = self.mean + difference * (other.count / total)
            self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """Unbiased, (d, d)."""
        return self.scatter / (self.count - 1)


def merged(parts: Sequence[FeatureStats]) -> FeatureStats:
    """The statistics of all parts together."""
    total = FeatureStats(len(parts[0].mean))
    for part in parts:
        total.merge(part)
    return total


def frechet_distance(first: FeatureStats, second: FeatureStats, *, allow_few: bool = False) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2).

    Raises DataError where a set has no more samples than features: its covariance is then singular, and the distance
    says more about the count than about the videos. `allow_few` computes it all the same (from two samples on).
    """
    dim = len(first.mean)
    if len(second.mean) != dim:
        raise DataError(f"features of {dim} and {len(second.mean)} dimensions come from different networks")
    fewest = min(first.count, second.count)
    if fewest < 2 or (fewest <= dim and not allow_few):
        raise DataError(
            f"a Frechet distance of {dim} features needs more than {dim} videos in each set, "
            f"got {first.count} and {second.count}: generate more, or allow few if only trends matter"
        )
    a, b = first.covariance, second.covariance
    # With C1 = F F^T and C2 = G G^T, tr (C1 C2)^1/2 is the sum of the singular values of F^T G. Unlike a matrix root
    # of C1 C2 this never leaves the real numbers, and it takes no square root of a difference of large numbers.
    cross = torch.linalg.svdvals(_factor(a).T @ _factor(b)).sum()
    distance = (first.mean - second.mean).square().sum() + a.trace() + b.trace() - 2 * cross
    return max(float(distance), 0.0)


def real_floor(real: Tensor, count: int, *, repeats: int = 5, seed: int = 0, allow_few: bool = False) -> float:
    """The distance of `count` random real videos to the other ones, from features (n, d), n >= 2 count.

    A Frechet distance of finite sets is biased upwards; this is what a perfect generator of `count` videos would get,
    or a little more, the set to compare with being smaller. The mean over `repeats` random splits. Raises DataError
    where there are too few real videos.
    """
    if len(real) < 2 * count:
        raise DataError(f"the real-against-real floor of {count} videos needs {2 * count} real ones, got {len(real)}")
    generator, distances = torch.Generator().manual_seed(seed), []
    for _ in range(repeats):
        order = torch.randperm(len(real), generator=generator)
        first, second = (FeatureStats.of(real[part]) for part in (order[:count], order[count:]))
        distances.append(frechet_distance(first, second, allow_few=allow_few))
    return sum(distances) / repeats


def floor_lines(real: Tensor, count: int, *, allow_few: bool = False) -> dict[str, float]:
    """`real_floor` of as many videos as a row has, or of half the real ones where they are fewer, for a result's lines.

    Empty, with a warning, where even that is no more than the features: then no floor can be told from real (n, d).
    """
    count = min(count, len(real) // 2)
    if count <= real.shape[1] and not allow_few:
        warnings.warn(
            f"no real-against-real floor: that of {real.shape[1]} features needs more than {2 * real.shape[1]} real "
            f"videos, got {len(real)}",
            stacklevel=2,
        )
        return {}
    return {"fvd_floor": real_floor(real, count, allow_few=allow_few), "fvd_floor_count": count}


def distance_with_interval(
    features: Tensor,
    real: Tensor,
    *,
    groups: int = GROUPS,
    level: float = 0.95,
    allow_few: bool = False,
) -> Estimate:
    """The distance of features (n, d) to real ones (m, d) with an interval from a delete-a-group jackknife.

    Each set is cut into `groups` random groups; leaving out one at a time gives the variance that either set
    contributes. A bootstrap would repeat videos, which makes covariances poorer and every replicate too large. Raises
    DataError as `frechet_distance` does, and for fewer than three videos in a set however few are allowed.
    """
    if allow_few and min(len(features), len(real)) < FEWEST:
        raise DataError(
            f"the interval of a Frechet distance needs three videos or more in each set, "
            f"got {len(features)} and {len(real)}"
        )
    parts = [_groups(one, groups) for one in (features, real)]
    whole = [merged(part) for part in parts]
    value = frechet_distance(*whole, allow_few=allow_few)
    variance = 0.0
    for side in (0, 1):
        left_out = []
        for index in range(len(parts[side])):
            rest = merged([part for other, part in enumerate(parts[side]) if other != index])
            pair = (rest, whole[1]) if side == 0 else (whole[0], rest)
            left_out.append(frechet_distance(*pair, allow_few=True))  # a group less may be just too few
        values = torch.tensor(left_out, dtype=torch.float64)
        variance += float((values - values.mean()).square().sum()) * (len(values) - 1) / len(values)
    reach = normal_quantile(level) * variance**0.5
    return Estimate(value, max(value - reach, 0.0), value + reach, len(features), "delete-a-group jackknife")


def frechet_metric(name: str, column: str, role: str, about: str, key: str = "features") -> Metric:
    """A metric of the Frechet distance between an evaluator's features of generated and of real videos.

    role, key: the features are what the evaluator of this role sees under this name.
    """

    def sets(observed: Observed) -> tuple[Tensor, Tensor]:
        if observed.real is None:
            raise DataError("a distance between sets needs real videos")
        return observed.videos[f"{role}.{key}"], observed.real.videos[f"{role}.{key}"]

    def estimate(observed: Observed) -> Estimate:
        features, real = sets(observed)
        return distance_with_interval(features, real, allow_few=observed.allow_few)

    def lines(observed: Observed) -> dict[str, float]:
        features, real = sets(observed)
        if min(len(features), len(real) // 2) < 2:
            return {}  # of one video there is no distance, however few are allowed
        floor = floor_lines(real, len(features), allow_few=observed.allow_few)
        if not floor:
            return {}
        return {f"{column} of {floor['fvd_floor_count']} real videos against other real ones": floor["fvd_floor"]}

    def least(evaluators: Mapping[str, Evaluator]) -> int:
        return int(getattr(evaluators[role], "dim", 1)) + 1

    needs = (f"{role}.{key}", "real")
    return Metric(name, column, -1, needs, about, VERSION, estimate=estimate, lines=lines, least=least)


def _groups(features: Tensor, count: int) -> list[FeatureStats]:
    return [FeatureStats.of(part) for part in random_groups(features, min(count, len(features)))]


def _factor(covariance: Tensor) -> Tensor:
    """F with F F^T = covariance; rounding can make the smallest eigenvalues negative."""
    values, vectors = torch.linalg.eigh(covariance)
    factor: Tensor = vectors * values.clamp(min=0).sqrt()
    return factor
