"""Folders in the naming of VBench's custom input."""

import json
import re
from pathlib import Path

import pytest
import torch

from aicl.cli import evaluate
from aicl.evaluation.vbench import PROMPTS_FILE, export_vbench, vbench_names
from lvdm.errors import DataError
from lvdm.video import probe, write_video


def prompt_of(name: str) -> str:
    """How VBench reads a prompt from a file's name."""
    return re.sub(r"-\d+$", "", Path(name).stem)


@pytest.fixture
def videos(tmp_path):
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    return [write_video(tmp_path / "made" / name, pixels, fps=4) for name in ("a.mp4", "b.mp4", "c.gif")]


def test_names_say_the_prompt_and_are_numbered():
    prompts = ["a cat runs", "a dog-2 sits", "a cat runs", "A cat runs"]
    names = vbench_names(prompts)
    assert names == ["a cat runs-0.mp4", "a dog-2 sits-0.mp4", "a cat runs-1.mp4", "A cat runs-2.mp4"]
    assert [prompt_of(name) for name in names] == prompts


def test_prompts_that_no_name_can_hold_still_get_names():
    names = vbench_names(["a/b\\c\0d", "../x", "x" * 300, "ä" * 300, "...", "x" * 250])
    assert names[0] == "a b c d-0.mp4" and names[4] == "video-0.mp4" and len(set(names)) == 6
    assert all(len(name.encode()) <= 255 and "/" not in name and not name.startswith(".") for name in names)


def test_a_folder_is_copied_with_its_prompts(videos, tmp_path):
    folder, prompts = tmp_path / "vbench", ["a cat", "a cat", "a/b"]
    said = export_vbench(list(zip(videos, prompts)), folder)
    assert said == {"a cat-0.mp4": "a cat", "a cat-1.mp4": "a cat", "a b-0.mp4": "a/b"}
    assert json.loads((folder / PROMPTS_FILE).read_text()) == said
    assert {path.name for path in folder.iterdir()} == {*said, PROMPTS_FILE}
    assert (folder / "a cat-0.mp4").read_bytes() == videos[0].read_bytes()
    converted = probe(folder / "a b-0.mp4")
    assert (converted.num_frames, converted.fps) == (4, pytest.approx(4))
    with pytest.raises(DataError, match="not empty"):
        export_vbench(list(zip(videos, prompts)), folder)


def test_nothing_is_copied_where_something_is_missing(videos, tmp_path):
    folder = tmp_path / "vbench"
    with pytest.raises(DataError, match=r"gone\.mp4 is not there: nothing was copied"):
        export_vbench([(videos[0], "a"), (tmp_path / "gone.mp4", "b")], folder)
    with pytest.raises(DataError, match="no prompt"):
        export_vbench([(videos[0], " ")], folder)
    assert not folder.exists()


def test_the_command_copies_a_folder_with_its_manifest(videos, tmp_path, capsys):
    made = tmp_path / "made"
    lines = [json.dumps({"file": name, "caption": prompt}) for name, prompt in (("a.mp4", "a cat"), ("c.gif", "a dog"))]
    (made / "manifest.jsonl").write_text("\n".join(lines))
    evaluate.main(evaluate.parser().parse_args(["vbench", str(made), str(tmp_path / "out")]))
    assert json.loads((tmp_path / "out" / PROMPTS_FILE).read_text()) == {"a cat-0.mp4": "a cat", "a dog-0.mp4": "a dog"}
    assert f"--prompt_file {tmp_path / 'out' / PROMPTS_FILE} --dimension subject_consistency" in capsys.readouterr().out
