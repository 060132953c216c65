"""`aicl quickstart`: which model and clips it takes, and what it leaves behind."""

import shlex
from pathlib import Path

import pytest
from PIL import Image

from aicl.cli import parse, verb_module
from aicl.puppets.actions import UNSEEN
from aicl.puppets.data import PuppetConfig
from aicl.puppets.export import write_clips
from lvdm.errors import CheckpointError
from lvdm.video import probe
from tests.aicl.test_pipeline import tiny_pipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(monkeypatch):
    """The verb's module, in the repository's folder, to which its paths are relative."""
    monkeypatch.chdir(ROOT)
    return verb_module("quickstart")


def check_files(folder: Path, frames: int) -> None:
    assert probe(folder / "aicl.mp4").num_frames == frames
    animation = Image.open(folder / "aicl-compare.gif")
    assert animation.n_frames == frames and animation.width > 4 * 32
    assert Image.open(folder / "aicl-compare.png").height > 4 * 32


def test_shipped_models_and_clips_are_used_and_only_its_folder_is_replaced(demo, tmp_path, monkeypatch, capsys):
    model, out = tmp_path / "puppets", tmp_path / "outputs" / "demo"
    tiny_pipeline().save_pretrained(model)
    unseen = PuppetConfig(actions="unseen", in_turn=True, program_share=0.0)
    write_clips(model / "examples", unseen, clips=12)  # two of the first two actions, one of the others
    out.mkdir(parents=True)
    for old in (out / "old.mp4", out.parent / "mine.mp4"):
        old.touch()
    monkeypatch.setattr(demo, "MODEL", model)
    monkeypatch.setattr(demo, "OUT", out)

    def run(*arguments: str) -> str:
        demo.main(parse("quickstart", arguments))
        return capsys.readouterr().out

    printed = run("--action", "ladder")
    assert f"--references {model}/examples/clip_00001.mp4 {model}/examples/clip_00011.mp4" in printed
    assert not (out / "old.mp4").exists() and (out.parent / "mine.mp4").exists()
    check_files(out, frames=4)
    proposed = next(line for line in printed.split("What to try next:")[1].splitlines() if "aicl sample" in line)
    arguments = shlex.split(proposed.split("aicl sample")[1])
    demo.call("sample", "--model", str(model), *arguments, "--out", str(tmp_path / "next.mp4"))
    assert probe(tmp_path / "next.mp4").num_frames == 4

    with pytest.raises(CheckpointError, match="has 1 clips of karate"):
        run("--action", "karate")


def test_a_checkout_without_the_model_is_told_apart(demo, tmp_path):
    with pytest.raises(CheckpointError, match="there is no model in"):
        demo.show("karate", seed=0, model=tmp_path / "none", out=tmp_path)


def test_every_unseen_action_has_its_example_clips(demo):
    for action in UNSEEN:
        assert [probe(clip).num_frames for clip in demo.reference_clips(action, ROOT / "checkpoints/puppets")] == [
            16,
            16,
        ]
