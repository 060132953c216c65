"""The files of tasks: where they lie, what can be downloaded, how they are made again, and when they go."""

import os
import shlex
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from aicl.apps.web_demo.jobs import State, Task
from aicl.options import Reference
from aicl.sampling_jobs import Job, record_file, sheet_file
from aicl.sidecar_files import COMPARISON, sidecar
from lvdm import config as configs
from lvdm.errors import DataError, UserError
from lvdm.files import write_json
from lvdm.outside import read_object

VIDEO = "video.mp4"
BASE = "-base"  # the base model's video, beside ours
FEATURES = "R.safetensors"
FILE_NAME = r"(video[a-z0-9-]{0,40}|reference-\d|R)\.(mp4|gif|png|json|safetensors)"
_TASK_FILE = "task.json"


@dataclass(frozen=True)
class SampleFiles:
    """The files of one seed; those that were not asked for, or are not there yet, do not exist."""

    seed: int
    video: Path

    @property
    def base(self) -> Path:
        """The base model's video from the same seed."""
        return sidecar(self.video, BASE)

    @property
    def comparison(self) -> Path:
        """Image, references, base model and AICL in one video."""
        return sidecar(self.video, COMPARISON)

    @property
    def downloads(self) -> list[tuple[str, Path]]:
        """(what it is, file) of all that is there."""
        named = [
            ("video, mp4", self.video),
            ("video, gif", self.video.with_suffix(".gif")),
            ("side by side, mp4", self.comparison),
            ("side by side, gif", self.comparison.with_suffix(".gif")),
            ("frames, png", sheet_file(self.video)),
            ("settings, json", record_file(self.video)),
        ]
        return [(label, path) for label, path in named if path.is_file()]


def task_folder(results: Path, task: str) -> Path:
    """Where the files of a task lie."""
    return results / task


def sample_files(task: Task) -> list[SampleFiles]:
    """The files of each seed of a task, whether they are there or not."""
    return [SampleFiles(seed, path) for seed, path in zip(task.job.seeds(), task.job.outputs())]


def clip_file(task: Task, number: int) -> Path:
    """What the prism read of reference `number` (from 1), as a video."""
    return Path(str(task.job.out)).parent / f"reference-{number}.mp4"


def features_file(task: Task) -> Path:
    """R of all references of a task."""
    return Path(str(task.job.out)).parent / FEATURES


def save_task(folder: Path, task: Task) -> None:
    """Write what a task is and how it ended. Raises DiskError."""
    about: dict[str, Any] = {
        "id": task.id,
        "session": task.session,
        "model": task.model,
        "job": configs.to_mapping(task.job),
        "total": task.total,
        "created": task.created,
        "state": str(task.state),
        "started": task.started,
        "ended": task.ended,
        "message": task.message,
        "warnings": task.warnings,
    }
    write_json(folder / _TASK_FILE, about)


def read_task(folder: Path) -> Task:
    """The task of a folder. Raises DataError for one that is missing, damaged, or of another version."""
    path = folder / _TASK_FILE
    about = read_object(path, DataError)
    try:
        job = configs.from_mapping(Job, about.pop("job"), where=str(path))
        state = State(about.pop("state"))
        return Task(**about, job=job, state=state, done=about["total"] if state is State.DONE else 0)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no task that can be read") from error


def saved_tasks(results: Path) -> list[Task]:
    """The tasks in a folder, the newest first; damaged ones are left out."""
    tasks = []
    for path in results.glob(f"*/{_TASK_FILE}"):
        try:
            tasks.append(read_task(path.parent))
        except UserError:
            continue
    return sorted(tasks, key=lambda task: -task.created)


def command_line(task: Task) -> str:
    """What to type to make the videos of a task again."""
    job = task.job
    words = ["aicl", "sample", "--model", task.model, "--prompt", job.prompt]
    if job.references:
        words += ["--references", *(str(each.video) for each in job.references)]
        words += ["--reference-captions", *(_caption(each, job.prompt) for each in job.references)]
    if job.image:
        words += ["--image", job.image]
    words += ["--seed", str(job.seed)]
    words += ["--num-samples", str(job.num_samples)] if job.num_samples > 1 else []
    for name, value in job.sampling().given().items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--compare"] if job.compare else []
    return shlex.join([*words, "--out", f"outputs/{task.id}.mp4"])


def clean(root: Path, keep_seconds: float, most_bytes: int, busy: Collection[str]) -> list[str]:
    """Remove the sessions that nobody used for `keep_seconds`, and then the oldest until `most_bytes` are left.

    Sessions whose key is in `busy` stay. Returns the keys of those that went.
    """
    now, gone = time.time(), []
    found = [(_last_use(folder), folder) for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []
    sizes = {folder: sum(_sizes(folder)) for _, folder in found}
    total = sum(sizes.values())
    for used, folder in sorted(found):
        if folder.name not in busy and (now - used > keep_seconds or total > most_bytes):
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]
            gone.append(folder.name)
    return gone


def _caption(reference: Reference, prompt: str) -> str:
    return prompt if reference.caption is None else reference.caption


def _last_use(folder: Path) -> float:
    found = (_stat(path) for path in (folder, *folder.glob("*"), *folder.glob("results/*")))
    return max((stat.st_mtime for stat in found if stat is not None), default=0.0)


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        stat = _stat(path)
        if stat is not None and S_ISREG(stat.st_mode):
            yield stat.st_size


def _stat(path: Path) -> os.stat_result | None:
    """None for what is gone by now: files under work are renamed when they are whole."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
