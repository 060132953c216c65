"""Names of the Hugging Face Hub: when a path is one, what is fetched, and that every failure is a sentence."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError

from lvdm.checkpoints.hub import download, upload
from lvdm.errors import CheckpointError
from lvdm.outside import is_hub_id


@pytest.fixture(autouse=True)
def no_pipeline_of_diffusers(monkeypatch):
    """What is asked for first is no pipeline of diffusers, whose own file is not there."""

    def missing(*args, **options):
        raise EntryNotFoundError("no such file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)


def test_a_name_is_of_the_hub_only_where_the_disk_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert is_hub_id("someone/aicl-puppets") and is_hub_id("someone/aicl_v1.5")
    for path in ("checkpoints/puppets", "nowhere", "a/b/c", "./a/b", "/a/b", "../b", Path("someone/model"), "a /b", ""):
        assert not is_hub_id(path), path


def test_only_files_that_hold_no_code_are_fetched(tmp_path, monkeypatch):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert download("someone/model", revision="v1", local_files_only=True) == tmp_path
    assert (asked["name"], asked["revision"], asked["local_files_only"]) == ("someone/model", "v1", True)
    assert not any(
        Path(f"weights{end}").match(p) for p in asked["allow_patterns"] for end in (".ckpt", ".bin", ".pt", ".py")
    )


def test_what_fails_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(
        CheckpointError, match=r"someone/model is no folder here.*could not be fetched.*check the network"
    ):
        download("someone/model", cache_dir=tmp_path, local_files_only=True)  # the library itself: nothing is cached

    def refuse(*args, **options):
        raise ConnectionError("Connection refused\nby a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"could not be fetched \(Connection refused\)"):
        download("someone/model")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(CheckpointError, match=r"someone/model could not be written .*\(Connection refused\).*log in"):
        upload(tmp_path, "someone/model")
    with pytest.raises(CheckpointError, match="is no name on the Hugging Face Hub"):
        upload(tmp_path, "model")


def test_a_folder_is_put_there_whole(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda api, name, **o: calls.append((name, o)))
    monkeypatch.setattr(
        huggingface_hub.HfApi, "upload_folder", lambda api, **o: calls.append(o) or "https://hub/change"
    )
    assert upload(tmp_path, "someone/model", private=True, commit_message="mine") == "https://hub/change"
    assert calls[0] == ("someone/model", {"private": True, "exist_ok": True})
    assert (calls[1]["repo_id"], calls[1]["folder_path"], calls[1]["commit_message"]) == (
        "someone/model",
        tmp_path,
        "mine",
    )
