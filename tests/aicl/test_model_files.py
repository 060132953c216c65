"""Which model a path means: a folder of ours, a model folder, a run, one of its checkpoints; and its hashes."""

import os
from pathlib import Path

import pytest

from aicl.model_files import FOLDER_FILE, base_folder, find_model_files
from lvdm import hashing
from lvdm.errors import CheckpointError, ConfigError


def touch(*parts: str | Path) -> Path:
    path = Path(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def run(tmp_path):
    """A run that trained a base model, with two checkpoints; the newer one is meant."""
    for step in (10, 20):
        touch(tmp_path / f"run/checkpoints/step_{step:08d}/pipeline/config.yaml")
    return tmp_path / "run"


@pytest.fixture
def folder(tmp_path):
    """A folder of save_pretrained."""
    touch(tmp_path / "model/base/config.yaml")
    touch(tmp_path / "model/adapter.safetensors")
    (tmp_path / "model" / FOLDER_FILE).write_text("first_reference_until: 0.5\nguidance_scale: 3\n")
    return tmp_path / "model"


def test_a_folder_of_ours_brings_its_adapter_and_its_default(folder):
    found = find_model_files(folder)
    assert (found.base, found.adapter) == (folder / "base", folder / "adapter.safetensors")
    assert (found.first_reference_until, found.guidance_scale) == (0.5, 3.0)
    assert base_folder(folder) == folder / "base"


def test_another_adapter_replaces_both(folder, tmp_path):
    other = touch(tmp_path / "other.safetensors")
    newest = touch(tmp_path / "trained/checkpoints/step_00000030/adapter.safetensors")
    touch(tmp_path / "trained/checkpoints/step_00000002/adapter.safetensors")
    assert find_model_files(folder, other).adapter == other
    for place in (tmp_path / "trained", newest.parent, newest):
        found = find_model_files(folder, place)
        assert found.adapter == newest and (found.first_reference_until, found.guidance_scale) == (0, None)


def test_a_run_its_checkpoint_and_its_folder_mean_the_same_base(run):
    newest = run / "checkpoints/step_00000020/pipeline"
    for place in (run, newest.parent, newest):
        assert find_model_files(place).base == newest and find_model_files(place).adapter is None


def test_the_file_of_an_earlier_version_is_read(folder):
    (folder / FOLDER_FILE).write_text("base: base\nlead: 0.75\n")
    assert find_model_files(folder).first_reference_until == 0.75
    (folder / FOLDER_FILE).write_text("lead: 0.75\nfirst_reference_until: 0.5\n")
    with pytest.raises(ConfigError, match="both 'first_reference_until' and 'lead', its old name"):
        find_model_files(folder)
    (folder / FOLDER_FILE).write_text("first_reference_until: 2\n")
    with pytest.raises(ConfigError, match="must be from 0 to 1"):
        find_model_files(folder)


def test_runs_without_results_are_told(tmp_path):
    (tmp_path / "new/checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"holds no pipeline/config\.yaml"):
        find_model_files(tmp_path / "new")
    with pytest.raises(CheckpointError, match=r"holds no adapter\.safetensors"):
        find_model_files(tmp_path / "new", tmp_path / "new")


def test_a_hash_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, read = tmp_path / "a.bin", []
    file.write_bytes(b"one")
    original = hashing.file_hash
    monkeypatch.setattr(hashing, "file_hash", lambda path: read.append(path) or original(path))
    first = hashing.cached_hash(file)
    assert hashing.cached_hash(file) == first == original(file) and len(read) == 1
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert hashing.cached_hash(file) == original(file) != first and len(read) == 2
    (tmp_path / "cache/aicl/sha256.json").write_text("no json")
    assert hashing.cached_hash(file) == original(file) and len(read) == 3
    with pytest.raises(CheckpointError, match="cannot be read"):
        hashing.cached_hash(tmp_path / "none")
