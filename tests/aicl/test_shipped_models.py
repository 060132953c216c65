"""The models that come with the repository: each folder is whole, stands by itself, and makes videos.

Those are the folders of checkpoints/ that git keeps.
"""

import re
import warnings
from pathlib import Path

import pytest
import torch

from aicl import AICLPipeline
from aicl.model_files import FolderConfig
from lvdm.checkpoints.folder import expected_parts, read_model_config
from lvdm.data import read_folder
from lvdm.errors import ConfigError
from lvdm.hashing import SUMS, check_sums
from lvdm.video import read_frames, read_image

ROOT = Path(__file__).resolve().parents[2]
NAMES = re.findall(r"^!/checkpoints/(\w+)/$", (ROOT / ".gitignore").read_text(encoding="utf-8"), flags=re.M)
MOST_BYTES = 100_000_000  # of a file that hosts of git repositories take


@pytest.fixture(params=NAMES)
def folder(request):
    return ROOT / "checkpoints" / request.param


def test_its_files_are_whole_and_none_lies_elsewhere(folder):
    check_sums(folder)
    listed = {line.split()[1] for line in (folder / SUMS).read_text().splitlines()}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert listed == {name for name in files if name.endswith(".safetensors")}
    assert all(path.stat().st_size < MOST_BYTES and not path.is_symlink() for path in files.values())
    said = FolderConfig.read(folder)
    assert said is not None and {said.adapter, f"{said.base}/config.yaml", "adapter.domain.json"} <= files.keys()
    parts = expected_parts(read_model_config(folder / said.base))
    assert {f"{said.base}/{part}.safetensors" for part in parts} <= listed  # a copy of the folder is a whole model


def test_it_makes_videos_of_its_examples(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as an adapter, or a statistic, that belongs to another model
        pipe = AICLPipeline.from_pretrained(folder)
    assert pipe.domain is not None
    clips = read_folder(folder / "examples")
    shown, clip = clips[0], next(each for each in clips[1:] if each.label == clips[0].label)
    image = Path(clip.path).with_suffix(".png") if pipe.base.takes_image else None
    options = {"references": [shown.path], "num_inference_steps": 1, "num_frames": 4, "progress": False}
    video = pipe(clip.caption, image=image, **options)
    assert video.shape == (1, 4, 64, 64, 3) and video.float().std() > 1
    with pytest.raises(ConfigError, match=r"-to-video model: .* \(--image\)"):
        pipe(clip.caption, image=None if image else torch.zeros(64, 64, 3, dtype=torch.uint8), **options)


def test_examples_and_autoencoder_are_those_of_the_first_model(folder):
    """The same bytes, which git keeps once; images are the first frames of the clips."""
    first = ROOT / "checkpoints" / NAMES[0]
    clips = [path.relative_to(first) for path in (first / "examples").iterdir()]
    assert len(clips) == 21
    for path in (Path("base/autoencoder.safetensors"), *clips):
        assert (folder / path).read_bytes() == (first / path).read_bytes(), path
    for path in (folder / "examples").glob("*.png"):
        assert torch.equal(read_image(path), read_frames(path.with_suffix(".mp4"), [0])[0]), path
