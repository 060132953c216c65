"""What is said of how long a stage still takes."""

from aicl.evaluation.time_left import TimeLeft


def test_what_others_make_meanwhile_does_not_enter_the_estimate(monkeypatch):
    now, said = iter([0.0, 10.0]), []
    monkeypatch.setattr("aicl.evaluation.time_left.monotonic", lambda: next(now))
    clock = TimeLeft(40, said.append, "generating")
    for count in (0, 10, 0, 10):
        clock.done(count)
    assert said == ["generating: 1 s each, about 20 s to go"]
