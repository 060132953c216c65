import pytest
import torch

from aicl.evaluation.statistics import difference, mean, random_groups, share, wilson
from lvdm.errors import DataError


def test_wilson_against_published_values():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20
    estimate = wilson(81, 263)
    assert (estimate.low, estimate.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson(0, 20).low == 0.0
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    with pytest.raises(DataError, match="no share"):
        wilson(0, 0)


def test_judgements_of_one_video_do_not_count_as_videos():
    agreeing = torch.tensor([[True] * 3, [False] * 3] * 50)
    assert share(agreeing) == share(agreeing[:, 0]) == wilson(50, 100)
    mixed = share(torch.tensor([[True, True, False]] * 30))
    assert (mixed.value, mixed.low) == (pytest.approx(2 / 3), pytest.approx(wilson(20, 30).low))


def test_a_mean_has_a_normal_interval():
    estimate = mean(torch.tensor([1.0, 3.0]))
    assert (estimate.value, estimate.high) == (2.0, pytest.approx(2.0 + 1.96, abs=1e-3))
    with pytest.raises(DataError, match="two or more"):
        mean(torch.tensor([1.0]))


def test_a_paired_difference_knows_that_samples_vary_alike():
    torch.manual_seed(0)
    theirs = torch.randn(100)
    exact = difference(theirs + 2, theirs)
    assert (exact.value, exact.high - exact.low) == (pytest.approx(2, abs=1e-6), pytest.approx(0, abs=1e-5))
    ours = theirs + 2 + 0.1 * torch.randn(100)
    paired, apart = difference(ours, theirs), mean(ours)
    assert paired.value == pytest.approx(mean(ours).value - mean(theirs).value)
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)
    assert (paired.count, paired.method) == (100, "paired normal")


def test_a_paired_difference_of_judgements_counts_videos():
    lost = torch.tensor([[True, True]] * 3 + [[False, False]] * 97)
    nothing = torch.zeros(100, 2, dtype=torch.bool)
    found = difference(nothing, lost)
    assert found == difference(nothing[:, 0], lost[:, 0])
    assert (found.value, found.count, found.method) == (pytest.approx(-0.03), 100, "Agresti-Min")
    none_differs = difference(nothing, nothing)
    assert none_differs.value == 0 and none_differs.low == -none_differs.high < -0.01
    won, lost, count = torch.arange(40) < 7, torch.arange(40) >= 37, 40  # 7 and 3 differ: half of one is added to each
    reach = 1.959964 * ((7 + 3 + 1) / (count + 2) - (4 / (count + 2)) ** 2) ** 0.5 / (count + 2) ** 0.5
    found = difference(won, lost)
    assert (found.low, found.high) == pytest.approx((4 / (count + 2) - reach, 4 / (count + 2) + reach), abs=1e-6)
    assert difference(nothing[:2], ~nothing[:2]).low == -1.0  # never beyond what a share can be
    assert difference(~nothing[:2], nothing[:2]).high == 1.0
    for few, message in ((nothing[:1], "two or more"), (nothing[:5], "same samples")):
        with pytest.raises(DataError, match=message):
            difference(few, nothing[:1])


def test_the_interval_of_a_paired_difference_covers_the_truth():
    torch.manual_seed(0)
    lost, won, n = 0.06, 0.02, 100  # chances that only theirs, and only ours, is a hit
    covered = 0
    for _ in range(400):
        u = torch.rand(n)
        found = difference((u > lost) & (u < lost + won), u < lost)
        covered += found.low <= won - lost <= found.high
    assert 0.92 <= covered / 400 <= 0.99


def test_random_groups_hold_every_value_once():
    values = torch.arange(23)
    groups = random_groups(values, 5)
    assert sorted(torch.cat(groups).tolist()) == values.tolist() and {len(group) for group in groups} == {4, 5}
    assert not torch.equal(torch.cat(groups), values)  # not in order
    assert all(torch.equal(one, again) for one, again in zip(groups, random_groups(values, 5)))
    assert random_groups(torch.arange(6), 2)[0].tolist() == [2, 5, 3]  # in every version, since intervals depend on it
