"""Folders whose real videos lie in class folders: floors, ceilings and the action score's clips come from them."""

import pytest
import torch

from aicl.evaluation.generated import Generated
from aicl.evaluation.metric import get_metric
from aicl.evaluation.score import choose_reading, score
from lvdm.video import write_video

COLOURS = {"Red Run": (200, 20, 20), "BlueJump": (20, 20, 200)}


class Colours:
    """Sees a video's mean colour, as the features of an action."""

    role, name, hash, version, min_frames = "videomae", "colours", "none", 1, 1

    def observe(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": frames.mean((2, 3, 4)) + 1}


@pytest.fixture
def videos(tmp_path):
    """Two generated videos a class, and two real ones in a folder each, whose names are spelled in another way."""

    def write(path, colour, shade):
        pixels = torch.tensor(colour).expand(4, 16, 16, 3) + shade
        return write_video(path, pixels.to(torch.uint8), fps=4)

    generated, real = [], []
    for label, colour in COLOURS.items():
        for number in range(2):
            path = write(tmp_path / "made" / f"{label}{number}.mp4", colour, 0)
            generated.append(Generated(path, "a prompt", label.replace(" ", "").lower()))
            real.append(write(tmp_path / "real" / label / f"{number}.mp4", colour, 10 * number))
    return generated, real


def measured(videos, tmp_path):
    generated, real = videos
    metrics = [get_metric("action_score")]
    reading = choose_reading(generated, real)
    return score("row", generated, real, reading, {"videomae": Colours()}, metrics, cache=tmp_path / "cache")


def test_the_action_score_is_that_with_real_clips_of_the_class(videos, tmp_path):
    result = measured(videos, tmp_path)
    assert result.metrics["action_score"].value > 99
    one, two = (result.lines[f"action score of two real clips of {which}"] for which in ("one action", "two actions"))
    assert one > 99 and two < 60


def test_a_reference_is_never_the_clip_that_is_compared_with(videos, tmp_path):
    """With the class's first clip shown to it, each video is compared with the second."""
    generated, real = videos
    shown = [Generated(v.path, v.prompt, v.label, real[2 * (i // 2)]) for i, v in enumerate(generated)]
    result = measured((shown, real), tmp_path)
    second = [Colours().observe(choose_reading(shown, real).read(real[1 + 2 * i])[None])["features"] for i in (0, 1)]
    own = [Colours().observe(choose_reading(shown, real).read(v.path)[None])["features"] for v in shown]
    expected = [100 * torch.cosine_similarity(own[i], second[i // 2]).item() for i in range(4)]
    assert result.metrics["action_score"].value == pytest.approx(sum(expected) / 4, abs=1e-3)
    assert "action_score" in measured((shown, real), tmp_path).metrics
    alone = [real[0], real[2]]  # nothing is left to compare with
    assert "action_score" in measured((shown, alone), tmp_path).missing


def test_folders_that_are_no_classes_are_no_classes(videos, tmp_path):
    generated, real = videos
    other = write_video(tmp_path / "real" / "Swimming" / "0.mp4", torch.zeros(4, 16, 16, 3, dtype=torch.uint8), fps=4)
    result = measured((generated, [*real, other]), tmp_path)
    assert "action_score" in result.missing and not any("real clips" in line for line in result.lines)
