"""A few of the kills of `make soak`, so that each kind is tried whenever the tests run."""

import pytest

from tests.soak.kills import Killer


@pytest.mark.slow
def test_what_is_killed_goes_on_as_if_nothing_had_happened(tmp_path):
    killer = Killer(tmp_path, seed=1)
    killer.trainings(1, steps=8)
    killer.caches(1)
    killer.checks(1)
    killer.exports(1)
    killer.studies(1)
    assert dict(killer.figures.kills) == {"training": 1, "caching": 1, "checking": 1, "export": 1, "user study": 1}
