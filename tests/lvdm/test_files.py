"""Writing: whole or not at all, one sentence from a disk that takes no more, one process in a folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lvdm.checkpoints.folder import write_part
from lvdm.errors import CheckpointError, DiskError, UserError
from lvdm.files import LOCK_FILE, atomic_path, locked, make_folder, temporary_folder, write_json
from lvdm.hashing import check_sums, write_sums
from lvdm.video import write_video
from tests.lvdm.disks import full_disk, read_only_disk

BIG = {"a": torch.zeros(100_000)}
WRITERS = {
    "text": lambda path: path.write_text("x" * 400_000),
    "safetensors": lambda path: save_file(BIG, path),
    "torch": lambda path: torch.save(BIG, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, writer):
    path = tmp_path / "file"
    path.write_text("old")
    with full_disk(50_000), pytest.raises(DiskError, match=r"file: cannot be written \(.*\); make room") as caught:
        with atomic_path(path) as temporary:
            WRITERS[writer](temporary)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["file"] and path.read_text() == "old"
    with atomic_path(path) as temporary:
        WRITERS[writer](temporary)
    assert path.stat().st_size >= 400_000


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_results_are_as_readable_as_the_umask_says_which_no_thread_sets_for_the_others(
    tmp_path, monkeypatch, umask, file, folder
):
    before, ask = os.umask(umask), os.umask
    try:
        monkeypatch.setattr(os, "umask", lambda value: pytest.fail("for a moment all files were open to everybody"))
        for name, write in WRITERS.items():
            with atomic_path(tmp_path / name) as temporary:
                write(temporary)
            assert (tmp_path / name).stat().st_mode & 0o777 == file
        with temporary_folder(tmp_path / "folder") as temporary:
            write_part(temporary, "unet", BIG)
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "folder").iterdir()} == {file}
        write_video(tmp_path / "frames", torch.zeros(2, 4, 4, 3, dtype=torch.uint8), fps=8)
        assert all((tmp_path / name).stat().st_mode & 0o777 == folder for name in ("folder", "frames"))
    finally:
        ask(before)


def test_a_full_disk_leaves_no_half_folder(tmp_path):
    for write in (save_file, lambda tensors, path: write_json(path, tensors["a"].tolist())):
        with full_disk(50_000), pytest.raises(DiskError, match=r"/model\S*: cannot be written") as caught:
            with temporary_folder(tmp_path / "model") as temporary:
                (temporary / "config.yaml").write_text("a: 1")
                write(BIG, temporary / "unet.safetensors")
        assert list(tmp_path.iterdir()) == [] and "writing-" not in str(caught.value)


def test_a_read_only_disk_is_one_sentence(tmp_path):
    with read_only_disk():
        for write in (
            lambda: write_json(tmp_path / "a.json", {}),
            lambda: make_folder(tmp_path / "a" / "b"),
            lambda: temporary_folder(tmp_path / "a").__enter__(),
            lambda: locked(tmp_path, "is training").__enter__(),
        ):
            with pytest.raises(DiskError, match="Read-only file system"):
                write()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_names_that_no_file_system_takes(tmp_path, name):
    for write in (lambda path: write_json(path, {}), lambda path: make_folder(path / "inside")):
        with pytest.raises(DiskError, match="choose another place"):
            write(tmp_path / name)


def test_names_that_are_no_utf8_can_be_written_into_json(tmp_path):
    write_json(tmp_path / "a.json", {"läuft": "a\udcffb"})
    assert "\\udcff" in (tmp_path / "a.json").read_text()
    write_json(tmp_path / "a.json", {"läuft": 1})
    assert "läuft" in (tmp_path / "a.json").read_text()


HOLDER = """
import os, sys, time
from lvdm.files import {function}
with {function}(sys.argv[1]{more}) as held:
    print({value}, flush=True)
    time.sleep(100)
"""


def hold(folder: Path, function: str, more: str = "", value: str = "held") -> tuple[subprocess.Popen, str]:
    """A process that is inside `function(folder)`, and what it prints there: what that gave, or `value`."""
    code = HOLDER.format(function=function, more=more, value=value)
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def test_a_folder_is_one_process_s_until_it_ends_however_it_ends(tmp_path):
    process, _ = hold(tmp_path / "run", "locked", ", 'is training'")
    with pytest.raises(UserError, match=f"process {process.pid} of .* is training there already; wait for it"):
        locked(tmp_path / "run", "is training").__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()
    with locked(tmp_path / "run", "is training"):
        (tmp_path / "run" / "kept").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]
    with locked(tmp_path / "new", "is training"):
        pass
    assert not (tmp_path / "new").exists()  # nothing was written there


def test_a_lock_is_not_kept_by_processes_that_were_forked(tmp_path):
    """Loaders outlive a killed training for some seconds."""
    process, child = hold(tmp_path, "locked", ", 'is training'", "os.fork() or time.sleep(100)")
    process.kill()
    process.wait()
    try:
        assert (tmp_path / LOCK_FILE).exists()
        with locked(tmp_path, "is training"):
            os.kill(int(child), 0)  # it lives
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    (killed, left), (living, written) = (hold(tmp_path / "model", "temporary_folder") for _ in range(2))
    killed.kill()
    killed.wait()
    assert Path(left).is_dir()
    with temporary_folder(tmp_path / "model") as temporary:
        (temporary / "a").touch()
    assert not Path(left).exists() and Path(written).is_dir()
    assert (tmp_path / "model" / "a").exists()
    living.kill()
    living.wait()


def test_sums_tell_every_kind_of_damage(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "sub" / "b").write_bytes(b"")
    write_sums(tmp_path)
    check_sums(tmp_path)
    sums = (tmp_path / "SHA256SUMS").read_bytes()
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path).returncode == 0
    for name, content in (("a", b"abd"), ("a", b"\0\0\0"), ("a", b""), ("sub/b", b"x")):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            check_sums(tmp_path)
        (tmp_path / name).write_bytes(kept)
    for content in (b"", b"\0" * len(sums), sums[:40], b"\xff\xfe", sums.replace(b"  a", b"  ../a"), b"x  /etc/a\n"):
        (tmp_path / "SHA256SUMS").write_bytes(content)
        with pytest.raises(CheckpointError, match="SHA256SUMS"):
            check_sums(tmp_path)
    (tmp_path / "SHA256SUMS").write_bytes(sums)
    (tmp_path / "a").unlink()
    with pytest.raises(CheckpointError, match="a cannot be read"):
        check_sums(tmp_path)
