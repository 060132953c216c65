"""Disks that are really full or read-only: small ones in memory, which root may make."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lvdm.training_runs import losses
from tests.soak import work
from tests.soak.kills import Killer

SMALLEST, LARGEST = 32 * 1024, 256 * 1024**2  # bytes


def can_mount() -> bool:
    """Whether a disk can be made here: that takes root, and a system that allows it."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode == 0
        return made and subprocess.run(["umount", folder]).returncode == 0


@contextmanager
def disk(place: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A disk of `size` bytes at `place`; yields a function that mounts it anew with other options, content kept."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True) and None
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def full_disks(killer: Killer) -> int:
    """Training, caching, checking and export on a disk that is full, read-only, and then given more room, again and
    again. Returns how often they were stopped, each time with one sentence; what they make in the end is checked."""
    folder, clips = killer.folder, str(killer.clips)
    place, stopped = folder / "disk", 0
    config = killer.config("whole_disk", 12)
    killer.complete(work.train_run, config)
    expected = losses(folder / "runs/whole_disk")
    config["run"] |= {"out": str(place / "runs")}
    with disk(place, SMALLEST) as mount:
        stopped += _until_it_fits(killer, mount, work.train_run, config)
        assert losses(place / "runs/whole_disk") == expected
        left = [path.name for path in (place / "runs/whole_disk/checkpoints").iterdir()]
        assert sorted(left) == ["step_00000004", "step_00000008", "step_00000012"], left
    model = folder / "model"
    adapter = str(next(model.glob("adapter*.safetensors")))
    for target, name, arguments in (
        (work.fill_cache, "cache", [clips]),
        (work.check_clips, "report.json", [clips]),
        (work.export_model, "out", [str(model / "base"), adapter]),
    ):
        with disk(place, SMALLEST) as mount:
            stopped += _until_it_fits(killer, mount, target, str(place / name), *arguments)
            hidden = [path for path in place.rglob(".*") if path.name != ".lock"]
            assert not hidden, f"{target.__name__} left {hidden}"
            if target is work.export_model:
                shutil.rmtree(place / name)
    return stopped


def _until_it_fits(killer: Killer, mount: Callable[[str], None], target: Callable, *arguments: Any) -> int:
    size, stopped = SMALLEST, 0
    while True:
        for options in ("ro", f"rw,size={size}"):
            log = killer.folder / "log"
            before = log.stat().st_size if log.exists() else 0
            mount(options)
            process = killer.start(target, *arguments)
            process.join(300)
            said = log.read_bytes()[before:].decode() if log.exists() else ""
            assert "Traceback" not in said, said
            if process.exitcode == 0:
                return stopped
            assert process.exitcode == 2, f"{target.__name__} ended with {process.exitcode}: {said}"
            [sentence] = [line for line in said.splitlines() if line.startswith("error: ")]
            assert "cannot be" in sentence, sentence
            stopped += 1
        size *= 4
        assert size < LARGEST
