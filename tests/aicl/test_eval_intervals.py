import pytest
import torch

from aicl.evaluation.intervals import difference, mean, share, wilson
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
    lost, won = torch.tensor([[True, True]] * 3 + [[False, False]] * 97), torch.tensor([[False, False]] * 100)
    found = difference(won, lost)
    assert (found.value, found.count) == (pytest.approx(-0.03), 100)
    assert found.high - found.value == pytest.approx(1.96 * (0.03 * 0.97 / 99) ** 0.5, rel=1e-3)
    with pytest.raises(DataError, match="same samples"):
        difference(torch.zeros(3), torch.zeros(4))
