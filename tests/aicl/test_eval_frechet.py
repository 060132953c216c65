from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aicl.evaluation.frechet import (
    FeatureStats,
    distance_with_interval,
    floor_lines,
    frechet_distance,
    frechet_metric,
    merged,
    real_floor,
)
from aicl.evaluation.metric import Observed
from lvdm.errors import DataError


def gaussian(count: int, mean: torch.Tensor, spread: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(count, len(mean), generator=generator, dtype=torch.float64) * spread


def exact(mean: torch.Tensor, covariance: torch.Tensor, count: int = 1000) -> FeatureStats:
    """Statistics with exactly this mean and covariance."""
    stats = FeatureStats(len(mean))
    stats.count, stats.mean, stats.scatter = count, mean.double(), covariance.double() * (count - 1)
    return stats


def test_closed_form_of_commuting_gaussians():
    means = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([3.0, 1.0, 2.0])
    variances = torch.tensor([1.0, 4.0, 0.25]), torch.tensor([9.0, 4.0, 0.0])
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    first, second = (exact(turn @ m.double(), turn @ v.double().diag() @ turn.T) for m, v in zip(means, variances))
    wanted = (means[0] - means[1]).square().sum() + (variances[0].sqrt() - variances[1].sqrt()).square().sum()
    assert frechet_distance(first, second) == pytest.approx(float(wanted), rel=1e-10)


def test_general_gaussians_agree_with_the_eigenvalues_of_the_product():
    generator = torch.Generator().manual_seed(1)
    roots = [torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    covariances = [root @ root.T for root in roots]
    distance = frechet_distance(*(exact(torch.zeros(6), c) for c in covariances))
    cross = np.sqrt(np.linalg.eigvals((covariances[0] @ covariances[1]).numpy()).real).sum()
    assert distance == pytest.approx(float(covariances[0].trace() + covariances[1].trace() - 2 * cross), rel=1e-8)


def test_a_set_against_itself_is_zero_even_far_from_the_origin():
    features = gaussian(300, torch.full((40,), 1e4), torch.linspace(1e-3, 10, 40), seed=2)
    distance = frechet_distance(FeatureStats.of(features), FeatureStats.of(features))
    assert 0.0 <= distance < 1e-6 * float(FeatureStats.of(features).covariance.trace())


def test_streaming_and_merging_equal_one_batch():
    features = gaussian(500, torch.full((8,), 1e3), torch.linspace(0.1, 3, 8), seed=3).float()
    streamed = FeatureStats(8)
    for part in features.split(37):
        streamed.update(part)
    halves = merged([FeatureStats.of(features[:123]), FeatureStats(8), FeatureStats.of(features[123:])])
    for stats in (streamed, halves):
        assert stats.count == 500
        torch.testing.assert_close(stats.mean, features.double().mean(0), rtol=1e-13, atol=0)
        torch.testing.assert_close(stats.covariance, torch.cov(features.double().T), rtol=1e-9, atol=1e-12)


def test_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    real, generated = (gaussian(200, torch.zeros(16), torch.linspace(1, s, 16), seed=s) for s in (2, 5))

    class Identity(torch.nn.Module):
        num_features = 16

        def forward(self, images):
            return images

    theirs = fid.FrechetInceptionDistance(feature=Identity())
    theirs.update(real, real=True)
    theirs.update(generated, real=False)
    ours = frechet_distance(FeatureStats.of(real), FeatureStats.of(generated))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_too_few_videos_are_refused_unless_overridden():
    few, many = (FeatureStats.of(gaussian(n, torch.zeros(10), torch.ones(10), seed=n)) for n in (10, 50))
    for pair in ((few, many), (many, few)):
        with pytest.raises(DataError, match="more than 10 videos"):
            frechet_distance(*pair)
    assert frechet_distance(few, many, allow_few=True) > 0
    with pytest.raises(DataError, match="different networks"):
        frechet_distance(few, FeatureStats(3))


def test_an_interval_needs_three_videos_however_few_are_allowed():
    pair, many = torch.randn(2, 1), torch.randn(40, 1)
    for features, real in ((pair, many), (many, pair)):
        with pytest.raises(DataError, match="needs three videos or more in each set, got"):
            distance_with_interval(features, real, allow_few=True)
    assert distance_with_interval(torch.randn(3, 1), many, allow_few=True).value >= 0


def test_features_must_be_finite_and_of_the_right_width():
    with pytest.raises(DataError, match="not finite"):
        FeatureStats.of(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(DataError, match=r"\(n, 2\)"):
        FeatureStats(2).update(torch.zeros(1, 3))


def test_the_floor_is_what_a_perfect_generator_gets():
    real = gaussian(2000, torch.zeros(5), torch.ones(5), seed=6)
    generated = gaussian(200, torch.zeros(5), torch.ones(5), seed=7)
    floor = real_floor(real, 200)
    assert 0 < floor < 0.3
    distance = frechet_distance(FeatureStats.of(generated), FeatureStats.of(real[:200]))
    assert floor / 3 < distance < 3 * floor
    assert real_floor(real, 1000) < floor  # the bias falls with the count
    with pytest.raises(DataError, match="needs 2002 real"):
        real_floor(real, 1001)
    assert floor_lines(real, 200) == {"fvd_floor": floor, "fvd_floor_count": 200}
    assert floor_lines(real, 1500)["fvd_floor_count"] == 1000
    with pytest.warns(UserWarning, match="more than 10 real videos, got 10"):
        assert floor_lines(real[:10], 200) == {}


def test_the_least_counts_of_the_metric_and_of_its_floor():
    metric = frechet_metric("fd", "FD", "network", "distance")
    assert metric.least({"network": SimpleNamespace()}) == 2 and metric.least({"network": SimpleNamespace(dim=5)}) == 6

    def lines(videos, real):
        seen = [{"network.features": gaussian(n, torch.zeros(3), torch.ones(3), seed=n)} for n in (videos, real)]
        return metric.lines(Observed(seen[0], real=Observed(seen[1]), allow_few=True))

    assert list(lines(2, 4)) == ["FD of 2 real videos against other real ones"]
    assert lines(1, 4) == lines(2, 3) == {}


def test_the_interval_covers_the_spread_over_new_samples():
    def draw(seed):
        return gaussian(400, torch.full((4,), 0.5), torch.full((4,), 1.5), seed=seed)

    real = gaussian(4000, torch.zeros(4), torch.ones(4), seed=99)
    values = torch.tensor([frechet_distance(FeatureStats.of(draw(s)), FeatureStats.of(real)) for s in range(40)])
    estimate = distance_with_interval(draw(0), real)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.value == pytest.approx(float(values[0]))
    reach = (estimate.high - estimate.low) / 2
    assert reach == pytest.approx(1.96 * float(values.std()), rel=0.4)


def test_the_interval_does_not_depend_on_the_order_of_classes():
    classes = 10 * torch.eye(10)[torch.arange(400) % 10] + gaussian(400, torch.zeros(10), torch.ones(10), seed=1)
    real = gaussian(1000, torch.zeros(10), torch.ones(10), seed=2)
    in_turn, in_blocks = (
        distance_with_interval(features, real) for features in (classes, classes[(torch.arange(400) % 10).argsort()])
    )
    assert in_turn.value == pytest.approx(in_blocks.value)
    assert in_turn.high - in_turn.low == pytest.approx(in_blocks.high - in_blocks.low, rel=0.5)
