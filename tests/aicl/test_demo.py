"""scripts/demo.py with trained models in place, and without."""

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from aicl.puppets.data import PuppetConfig
from aicl.puppets.export import write_clips
from lvdm.video import probe
from tests.aicl.test_pipeline import tiny_pipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(monkeypatch):
    """The script as a module, in the repository's folder, to which its configs' paths are relative."""
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_files(folder: Path, frames: int) -> None:
    assert probe(folder / "aicl.mp4").num_frames == frames
    animation = Image.open(folder / "aicl-compare.gif")
    assert animation.n_frames == frames and animation.width > 4 * 32
    assert Image.open(folder / "aicl-compare.png").height > 4 * 32


def test_without_models_tiny_ones_are_trained_and_it_says_so(demo, tmp_path, capsys):
    out = tmp_path / "demo"
    demo.show("karate", seed=0, model=tmp_path / "none", out=out)
    printed = capsys.readouterr().out
    assert printed.count("The weights are untrained: the video is noise") == 2
    check_files(out, frames=4)
    assert {path.name for path in (out / "runs").iterdir()} == {"tiny_autoencoder", "tiny_base", "tiny_aicl"}
    proposed = next(line for line in printed.split("What to try next:")[1].splitlines() if "sample.py" in line)
    arguments = shlex.split(proposed.split("scripts/sample.py")[1])
    demo.call("sample.py", *arguments, "--out", str(tmp_path / "next.mp4"))
    assert probe(tmp_path / "next.mp4").num_frames == 4


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
        monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
        demo.main()
        return capsys.readouterr().out

    printed = run("--action", "ladder")
    assert "untrained" not in printed and "train.py" not in printed
    assert f"--refs {model}/examples/clip_00001.mp4 {model}/examples/clip_00011.mp4" in printed
    assert not (out / "old.mp4").exists() and (out.parent / "mine.mp4").exists()
    check_files(out, frames=4)
    assert f"--refs {out}/reference-1.mp4 {out}/reference-2.mp4" in run("--action", "karate")  # too few clips are there
    check_files(out, frames=4)


def test_reference_people_look_unlike_the_one_of_the_prompt(demo, tmp_path):
    drawn = []
    real = demo.draw_batch
    demo.draw_batch = lambda *arguments: drawn.append(real(*arguments)) or drawn[-1]
    clips = demo.reference_clips("ski", tmp_path / "none", tmp_path)
    assert [probe(clip).num_frames for clip in clips] == [16, 16]
    prompt = [list(demo.COLOURS).index("red"), list(demo.COLOURS).index("blue"), list(demo.BACKGROUNDS).index("green")]
    shown = demo.looks(drawn[0]["performances"]).tolist()
    assert len(shown) == 2 and not any(a == b for look in shown for a, b in zip(look, prompt))
