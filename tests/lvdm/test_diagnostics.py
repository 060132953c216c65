"""Diagnostics of a training: read back from its log, drawn as a picture, judged once."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from lvdm.training.diagnostics import _ticks, draw_histories, read_history


def test_history_is_what_the_log_says(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("step,loss,gap\n50,0.5,\n50,,0.001\n100,,nan\n150,,0.004\n200,0.4\n250,,0.0")
    assert read_history(log, "gap") == [(50, 0.001), (150, 0.004), (250, 0.0)]
    assert read_history(log, "other") == []


@pytest.mark.parametrize(
    "points", [[(1, 0.0)], [(5, -0.2), (9, -0.1)], [(100 * i, 1e-6 * i) for i in range(90)], [(3, 1e6)]]
)
def test_any_course_is_drawn(tmp_path, points):
    path = tmp_path / "diagnostics.png"
    draw_histories(path, {"gap": points, "empty": []})
    with Image.open(path) as drawn:
        assert drawn.size == (640, 280)
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert (pixels[..., 2] > pixels[..., 0] + 60).sum() > 5  # the line is blue


def test_charts_on_one_scale_have_the_axes_of_the_widest(tmp_path):
    """A course with a tenth of another's steps and values fills its own axes, and a tenth of the shared ones."""
    long, short = ([(factor * i, 1.0 * factor * i) for i in range(11)] for factor in (10, 1))
    extents = []
    for one_scale in (False, True):
        draw_histories(tmp_path / "x.png", {"long": long, "short": short}, one_scale=one_scale)
        with Image.open(tmp_path / "x.png") as drawn:
            pixels = np.asarray(drawn.convert("RGB")).astype(int)
        lines = (pixels[..., 2] > pixels[..., 0] + 60).reshape(2, 280, 640)
        extents.append([(np.ptp(line.any(0).nonzero()[0]), np.ptp(line.any(1).nonzero()[0])) for line in lines])
    (long_own, short_own), (long_shared, short_shared) = extents
    assert long_own == short_own == long_shared
    assert all(0.08 < some / every < 0.15 for some, every in zip(short_shared, long_shared))


@pytest.mark.parametrize(("low", "high"), [(0, 0.025), (-3, 40), (0, 1), (-0.001, 0), (0, 0)])
def test_ticks_are_round_and_enclose_what_is_drawn(low, high):
    ticks = _ticks(low, high)
    steps = {round(b - a, 12) for a, b in pairwise(ticks)}
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8 and len(steps) == 1
