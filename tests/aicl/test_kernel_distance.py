import pytest
import torch

from aicl.evaluation.kernel_distance import kernel_distance
from lvdm.errors import DataError


def draws(count: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def by_definition(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimate, pair by pair."""

    def kernel(a, b):
        return (float(a.double() @ b.double()) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(kernel(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def test_it_is_the_unbiased_squared_discrepancy():
    x, y = draws(7, 4, 0), draws(5, 4, 1, shift=0.7)
    assert kernel_distance(x, y).value == pytest.approx(by_definition(x, y), rel=1e-9)
    assert kernel_distance(x, y, groups=3).value == pytest.approx(by_definition(x, y), rel=1e-9)


def test_the_jackknife_leaves_out_one_group_at_a_time():
    """With groups of one video each, replicates are what the definition gives without that video."""
    x, y = draws(6, 4, 0), draws(5, 4, 1, shift=0.7)
    found, variance = kernel_distance(x, y), 0.0
    for side, other, order in ((x, y, False), (y, x, True)):
        left_out = [
            by_definition(other, rest) if order else by_definition(rest, other)
            for rest in (torch.cat([side[:i], side[i + 1 :]]) for i in range(len(side)))
        ]
        values = torch.tensor(left_out)
        variance += float((values - values.mean()).square().sum()) * (len(values) - 1) / len(values)
    assert found.high - found.value == pytest.approx(1.95996 * variance**0.5, rel=1e-4)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def truth(dim: int, shift: float) -> float:
    """The squared discrepancy of standard normal features from ones moved by `shift`, from the moments of x . y."""
    q = dim * shift**2
    own = 1 + 3 / dim
    moved = 1 + 3 * q / dim + 3 * (dim + 2 * q + q * q) / dim**2 + (q**3 + 3 * q * q + 3 * q * (dim + q + 2)) / dim**3
    return own + moved - 2 * (1 + 3 * (dim + q) / dim**2)


@pytest.mark.parametrize(("dim", "count", "shift"), [(64, 6, 0.0), (64, 6, 0.5), (16, 40, 0.5)])
def test_small_sets_are_right_on_average_and_their_intervals_cover_the_truth(dim, count, shift):
    generator, expected = torch.Generator().manual_seed(0), truth(dim, shift)
    found = []
    for _ in range(100):
        x, y = (torch.randn(count, dim, generator=generator) for _ in range(2))
        found.append(kernel_distance(x, y + shift, groups=10))
    values = torch.tensor([one.value for one in found])
    assert abs(float(values.mean()) - expected) < 3 * float(values.std()) / 10
    assert (values.min() < 0) == (shift == 0)
    assert sum(one.low <= expected <= one.high for one in found) >= 88


def test_what_cannot_be_measured_is_said():
    with pytest.raises(DataError, match="three videos or more in each set, got 2 and 9"):
        kernel_distance(draws(2, 4, 0), draws(9, 4, 1))
    with pytest.raises(DataError, match="cannot be compared"):
        kernel_distance(draws(9, 4, 0), draws(9, 5, 1))
    with pytest.raises(DataError, match="not finite"):
        kernel_distance(draws(9, 4, 0), draws(9, 4, 1).log())
