"""Scoring folders of files, through the script."""

import json
import sys
from pathlib import Path

import pytest
import torch
from aicl.evaluation.puppet_set import PuppetData, draw_samples

from aicl.evaluation import folders
from aicl.puppets.actions import ACTIONS
from aicl.puppets.classifier import ClassifierConfig, PuppetClassifier
from aicl.puppets.clip import CLIPConfig, PuppetCLIP
from aicl.puppets.evaluators import save_evaluator
from aicl.puppets.programs import program_bank
from aicl.puppets.renderer import render
from lvdm.errors import ConfigError, DataError, UserError, VideoError
from lvdm.video import to_pixels, write_video
from scripts import evaluate

FRAMES, COUNT = 4, 12


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """generated/ with a manifest, real/ and networks/ of random weights."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    config = ClassifierConfig(size=64, frames=FRAMES, width=8, features=8, layers=1, heads=1)
    save_evaluator(folder / "networks", "classifier", PuppetClassifier(config))
    clip = CLIPConfig(size=64, width=32, vision_layers=1, text_layers=1, embed_dim=8)
    save_evaluator(folder / "networks", "clip", PuppetCLIP(clip))
    samples, bank = draw_samples(PuppetData(), 0, 0, COUNT), program_bank(0, 0)
    sets = {"generated": samples.targets, "references": samples.references[:, 0]}
    sets["real"] = draw_samples(PuppetData(), 1, 0, 2 * COUNT).targets
    for name, rows in sets.items():
        for number, pixels in enumerate(to_pixels(render(rows, bank, 64, FRAMES))):
            write_video(folder / name / f"{number:02d}.mp4", pixels, fps=4)
    entries = [
        {"file": f"{i:02d}.mp4", "caption": text, "label": ACTIONS[a].name, "reference": f"../references/{i:02d}.mp4"}
        for i, (text, a) in enumerate(zip(samples.prompts, samples.actions.tolist()))
    ]
    (folder / "generated" / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return folder


def run(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def score(monkeypatch, world, out, row, *more):
    arguments = ["--puppets", world / "networks", "--real", world / "real", "--row", row, "--device", "cpu"]
    run(
        monkeypatch, "score", world / "generated", *arguments, "--cache", out / "cache", "--result",
        out / f"{row}.json", *more,
    )  # fmt: skip


def test_a_folder_is_scored_and_set_in_a_table(world, tmp_path, monkeypatch, capsys):
    score(monkeypatch, world, tmp_path, "ours")
    text = capsys.readouterr().out
    for name in ("CC", "FC", "FVD", "ACC", "looks", "dynamics", "motion", "similarity"):
        assert f" {name}" in text
    assert f"FVD of {COUNT} real videos against other real ones" in text and "FC of a static video: 100.00" in text
    score(monkeypatch, world, tmp_path, "again")
    content = [json.loads((tmp_path / f"{row}.json").read_text()) for row in ("ours", "again")]
    assert content[0]["metrics"] == content[1]["metrics"]
    assert content[0]["protocol"]["generated"] == COUNT and content[0]["protocol"]["real"] == 2 * COUNT
    capsys.readouterr()
    run(monkeypatch, "table", tmp_path / "ours.json", tmp_path / "again.json")
    assert "| ours |" in (table := capsys.readouterr().out) and "| again |" in table
    score(monkeypatch, world, tmp_path, "fewer frames", "--frames", 4, "--stride", 0.5)
    with pytest.raises(DataError, match="measured differently"):
        run(monkeypatch, "table", tmp_path / "ours.json", tmp_path / "fewer frames.json")
    with pytest.raises(ConfigError, match="exists already"):
        score(monkeypatch, world, tmp_path, "ours")


def test_short_videos_are_errors_unless_allowed(world):
    videos = folders.read_generated(world / "generated", world / "generated" / "manifest.jsonl")
    reading = folders.default_reading(videos, frames=FRAMES, stride=2.0)
    with pytest.raises(VideoError, match=r"00\.mp4: .*lower the stride"):
        folders.score("row", videos, [], reading, folders.Networks())
    allowed = folders.default_reading(videos, frames=FRAMES, stride=2.0, allow_short=True)
    result = folders.score("row", videos[:2], [], allowed, folders.Networks())
    assert set(result.metrics) == {"dynamics", "motion", "motion_other"}


def test_other_motion_is_that_of_another_reference_and_class(world):
    videos = folders.read_generated(world / "generated", world / "generated" / "manifest.jsonl")
    reading = folders.default_reading(videos)
    # 10 classes in turn: the first is compared with the second, and, of two of one class, nothing is left to compare
    assert [folders._other(videos, index) for index in (0, 11)] == [1, 0]
    assert set(folders.score("row", [videos[0], videos[10]], [], reading, folders.Networks()).metrics) == {
        "dynamics",
        "motion",
    }


def test_what_sample_py_wrote_is_understood(world, tmp_path):
    source = (world / "real" / "00.mp4").read_bytes()
    for seed in (1, 0):
        (tmp_path / f"a-{seed}.mp4").write_bytes(source)
        (tmp_path / f"a-{seed}.json").write_text(
            json.dumps({"job": {"prompt": f"walks {seed}", "refs": [], "seed": seed}})
        )
    (tmp_path / "notes.json").write_text("{}")
    videos = folders.read_generated(tmp_path)
    assert [video.prompt for video in videos] == ["walks 0", "walks 1"]
    assert videos[0].path.name == "a-0.mp4" and videos[0].reference is None
    result = folders.score("row", videos, [], folders.default_reading(videos), folders.Networks())
    assert result.protocol.seeds == [0, 1] and result.protocol.stride == 1.0

    shown = world / "references" / "00.mp4"
    (tmp_path / "a-0.json").write_text(json.dumps({"job": {"prompt": "walks", "refs": [str(shown)], "seed": 0}}))
    assert [video.reference for video in folders.read_generated(tmp_path)] == [shown, None]
    (tmp_path / "a-1.json").write_text(json.dumps({"job": {"prompt": "walks", "refs": ["gone.mp4"], "seed": 1}}))
    videos = folders.read_generated(tmp_path)
    with pytest.warns(UserWarning, match=r"gone\.mp4 is not there: nothing is compared"):
        result = folders.score("row", videos, [], folders.default_reading(videos), folders.Networks())
    assert set(result.metrics) == {"dynamics"}


def test_lengths_that_differ_ask_for_a_choice(world, tmp_path):
    for number, frames in enumerate((FRAMES, FRAMES + 2)):
        write_video(tmp_path / f"{number}.mp4", torch.zeros(frames, 64, 64, 3, dtype=torch.uint8), fps=4)
        (tmp_path / f"{number}.txt").write_text("a person waves")
    videos = folders.read_generated(tmp_path)
    with pytest.raises(VideoError, match=r"0\.mp4 has 4 frames and .*1\.mp4 6: say with --frames"):
        folders.default_reading(videos)
    assert folders.default_reading(videos, frames=FRAMES).frames == FRAMES
    with pytest.raises(VideoError, match=r"0\.mp4: a clip spans 6 .*take fewer frames or allow short"):
        folders.score("row", videos, [], folders.default_reading(videos, frames=6), folders.Networks())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0x64"], "size is 0x64: both sides must be positive"),
        (["--size", "32x32"], "takes frames of 64x64 pixels, not 32x32"),
        (["--frames", "0"], "frames is 0: it must be positive"),
        (["--fps", "-1"], "fps is -1: it must be positive"),
        (["--batch-size", "0"], "batch size is 0"),
        (["--real", "nowhere"], "nowhere: is not a folder"),
        (["--result", f"{__file__}/result.json"], "result.json: cannot be written .*choose another place"),
        (["--cache", __file__], "cannot be written .*choose another place"),
    ],
)
def test_options_that_cannot_work_end_in_a_sentence(world, tmp_path, monkeypatch, options, message):
    with pytest.raises(UserError, match=message):
        score(monkeypatch, world, tmp_path, "ours", *options)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "00.mp4"}', "line 1 is no"),
        ('{"file": "missing.mp4", "caption": "x"}', "which is not there"),
        ('{"file": "00.mp4", "caption": "x", "reference": "y.mp4"}', "y.mp4, which is not there"),
    ],
)
def test_manifests_say_what_is_wrong(world, tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        folders.read_generated(world / "real", tmp_path / "m.jsonl")
