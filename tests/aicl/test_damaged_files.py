"""Adapters and files of motion features that are damaged, no numbers or of other shapes; exports without room."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aicl.adapter import Fingerprint, load_adapter, read_adapter, save_adapter
from aicl.cli import export
from aicl.motion_features import MotionFeatures
from lvdm.errors import CheckpointError, ConfigError, DiskError
from lvdm.hashing import check_sums
from lvdm.training.module import TrainingModule
from lvdm.training.settings import TrainingSettings
from tests.aicl.test_adapter import build
from tests.aicl.test_pipeline import tiny_pipeline
from tests.aicl.tiny_models import tiny_unet
from tests.lvdm.disks import full_disk, read_only_disk


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, *build())
    return path


def rewrite(path: Path, tensors=None, **metadata) -> None:
    """The same file with other tensors, or other entries of its metadata (None: left out)."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata() | metadata
    about = {name: value for name, value in about.items() if value is not None}
    save_file(tensors if tensors is not None else load_file(path), path, metadata=about)


def test_a_changed_bit_of_an_adapter_is_noticed(adapter):
    content = bytearray(adapter.read_bytes())
    content[-3] ^= 1
    adapter.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its tensors do not have the checksum"):
        read_adapter(adapter)


def test_adapters_from_before_there_were_checksums_load(adapter):
    rewrite(adapter, sha256=None)
    assert load_adapter(adapter, tiny_unet("videocrafter"))[2].family == "videocrafter"


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_an_adapter_that_is_no_number_or_of_another_type_is_an_error(adapter, number):
    tensors = load_file(adapter)
    name = "prism.text_in.weight"
    unet = tiny_unet("videocrafter")
    for bad, message in (
        (tensors[name].index_fill(0, torch.tensor([0]), number), rf"hold NaN or infinity \({name}\)"),
        (tensors[name].int(), "1 of the wrong type"),
    ):
        rewrite(adapter, tensors | {name: bad}, sha256=None)
        with pytest.raises(CheckpointError, match=message):
            load_adapter(adapter, unet)
    rewrite(adapter, tensors)
    load_adapter(adapter, unet)  # the failures left the UNet as it was


@pytest.mark.parametrize(
    "about", ["", "{", "[]", "1", "null", "[" * 100_000, "9" * 9999, '{"format": 1}', '{"format": {}}']
)
def test_adapters_that_say_nonsense_about_themselves(adapter, about):
    rewrite(adapter, aicl=about)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        read_adapter(adapter)
    assert "\n" not in str(caught.value)


@pytest.fixture
def features(tmp_path):
    features = MotionFeatures(torch.randn(1, 4, 4, 2, 2), (4,), Fingerprint("abc", [1.0, 2.0]), ["a.mp4"])
    features.save(tmp_path / "r.safetensors")
    return tmp_path / "r.safetensors"


def about_features(**changes) -> str:
    about = {"format": 1, "frames": [4], "sources": ["a.mp4"], "prism": {"structure": "abc", "samples": [1.0, 2.0]}}
    return json.dumps(about | changes)


def test_features_carry_a_checksum(features):
    assert MotionFeatures.load(features).frames == (4,)
    content = bytearray(features.read_bytes())
    content[-3] ^= 1
    features.write_bytes(content)
    with pytest.raises(CheckpointError, match="do not have the checksum"):
        MotionFeatures.load(features)
    features.unlink()
    save_file({"features": torch.zeros(1, 4, 4, 2, 2)}, features, metadata={"aicl_references": about_features()})
    assert MotionFeatures.load(features).sources == ["a.mp4"]  # older files have none


@pytest.mark.parametrize(
    "tensor",
    [torch.full((1, 4, 4, 2, 2), torch.nan), torch.zeros(1, 4, 4, 2, 2).int(), torch.zeros(4, 4, 2, 2),
     torch.zeros(1, 5, 4, 2, 2), torch.zeros(0, 4, 4, 2, 2)],
)  # fmt: skip
def test_features_of_other_kinds(features, tensor):
    rewrite(features, {"features": tensor}, sha256=None)
    with pytest.raises(CheckpointError, match=r"NaN|wrong type|frames of features"):
        MotionFeatures.load(features)


@pytest.mark.parametrize(
    "about",
    ["", "{", "[]", "3", "null", "[" * 100_000, "{}", about_features(frames=4), about_features(frames=["4"]),
     about_features(frames=[-4, 8]), about_features(frames=[10**12]), about_features(sources=[1]),
     about_features(prism=3), about_features(prism={"structure": 1, "samples": []}), about_features(format="1")],
)  # fmt: skip
def test_features_that_say_nonsense_about_themselves(features, about):
    rewrite(features, aicl_references=about)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        MotionFeatures.load(features)
    assert "\n" not in str(caught.value)


def test_an_export_is_whole_or_not_there(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    inside = {path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*")}
    adapter = str(next((tmp_path / "model").glob("adapter*.safetensors")))
    arguments = ["--base", str(tmp_path / "model/base"), "--adapter", adapter, "--out", str(tmp_path / "out")]
    args = export.parser().parse_args(arguments)
    size = max(path.stat().st_size for path in (tmp_path / "model").rglob("*.safetensors"))
    with full_disk(size // 2), pytest.raises(DiskError, match=r"cannot be written .*; make room"):
        export.main(args)
    with read_only_disk(), pytest.raises(DiskError, match="Read-only"):
        export.main(args)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    export.main(args)
    written = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")}
    assert written == inside | {Path("SHA256SUMS")}
    check_sums(tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists already"):
        export.main(args)
    shutil.rmtree(tmp_path / "out")


def test_dropping_captions_is_refused_where_it_does_nothing():
    with pytest.raises(ConfigError, match=r"training.caption_dropout is for base models only"):
        TrainingModule(TrainingSettings(steps=1, batch_size=1, caption_dropout=0.1), {})
