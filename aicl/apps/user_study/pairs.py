"""Which videos are compared, and the plan by which each evaluator sees them."""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from aicl.evaluation.generated import read_generated
from aicl.sidecar_files import is_sidecar
from lvdm.data.folder import read_folder, video_files
from lvdm.data.manifest_rows import MANIFEST_ENDINGS, read_rows
from lvdm.errors import DataError
from lvdm.outside import check_text, checked_path
from lvdm.video import VIDEO_ENDINGS

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Pair:
    """Two videos of one prompt. `group` (a base model, a data set) gets a row of its own in the report."""

    prompt: str
    ours: Path
    baseline: Path
    group: str = ""


def read_manifest(path: str | os.PathLike[str]) -> list[Pair]:
    """The rows of a .jsonl or .csv file: prompt, ours, baseline and optionally group.

    Videos are relative to the manifest's folder. Raises DataError for a missing or repeated row, column or file.
    """
    path = Path(path)
    if path.suffix.lower() not in MANIFEST_ENDINGS:
        raise DataError(f"{path}: is neither .csv nor .jsonl; give the pairs in one of these")
    seen: dict[Pair, int] = {}
    for line, row in read_rows(path, ("prompt", "ours", "baseline")):
        pair = _pair(path, line, row)
        if pair in seen:
            raise DataError(f"{path}: line {line} repeats line {seen[pair]}; remove one of them")
        seen[pair] = line
    if not seen:
        raise DataError(f"{path}: lists no pairs; each line needs prompt, ours and baseline")
    return list(seen)


def read_folders(
    ours: str | os.PathLike[str], baseline: str | os.PathLike[str], captions: str | os.PathLike[str] | None = None
) -> list[Pair]:
    """Videos of the same name in two folders, at any depth; a caption's label becomes the pair's group.

    Comparisons and references that our scripts wrote beside a video are none of them.

    Prompts stand in a `captions` file as `lvdm.data.read_folder` takes it. Without one they are found as
    `aicl evaluate` finds them: in our folder's manifest.jsonl, in what aicl sample wrote beside our videos,
    or in .txt files. Raises DataError where a video lacks its counterpart or its prompt.
    """
    ours, baseline = Path(ours), Path(baseline)
    names = {folder: _videos(folder) for folder in (ours, baseline)}
    for here, there in ((ours, baseline), (baseline, ours)):
        if alone := sorted(names[here] - names[there]):
            raise DataError(
                f"{there}: lacks {alone[0]}, which is in {here} ({_times(len(alone), 'such file')}); "
                "both folders need the same names"
            )
    prompts = _prompts(ours, captions)
    if missing := sorted(names[ours] - set(prompts)):
        where = captions or ours
        raise DataError(f"{where}: has no caption for {missing[0]} ({_times(len(missing), 'such file')})")
    return [Pair(prompt, ours / name, baseline / name, group or "") for name, (prompt, group) in prompts.items()]


def _prompts(folder: Path, captions: str | os.PathLike[str] | None) -> dict[str, tuple[str, str | None]]:
    """(prompt, label) by the names of videos, relative to their folder."""
    if captions is not None:
        return {record.key: (record.caption, record.label) for record in read_folder(folder, captions)}
    found = read_generated(folder)
    return {video.path.relative_to(folder).as_posix(): (video.prompt, video.label) for video in found}


@lru_cache(maxsize=1024)
def order(seed: int, evaluator: int, count: int) -> tuple[int, ...]:
    """The numbers of all `count` pairs in the order in which an evaluator sees them.

    By hashes instead of a random generator, so that no change of version can reorder a study that is under way.
    """
    return _shuffled(f"order/{seed}/{evaluator}", count)


@lru_cache(maxsize=1024)
def our_sides(seed: int, evaluator: int, count: int) -> tuple[Side, ...]:
    """For each pair, by its number, the side on which an evaluator sees our video.

    Half of the pairs (but for an odd one) have it on the left. Evaluators 1 and 2, 3 and 4, ... see opposite sides, so
    each pair is balanced over evaluators, too.
    """
    couple, second = divmod(evaluator - 1, 2)
    ranks = _shuffled(f"sides/{seed}/{couple}", count)
    return tuple("left" if (rank % 2 == 0) != bool(second) else "right" for rank in ranks)


def _shuffled(key: str, count: int) -> tuple[int, ...]:
    def digest(number: int) -> bytes:
        return hashlib.sha256(f"{key}/{number}".encode()).digest()

    return tuple(sorted(range(count), key=digest))


def _pair(manifest: Path, line: int, row: dict[str, Any]) -> Pair:
    values = {name: row.get(name) or "" for name in ("prompt", "ours", "baseline", "group")}
    for name, value in values.items():
        if isinstance(value, str):
            check_text(value, f"{manifest}: line {line}: '{name}'", DataError)
        if not isinstance(value, str) or (name != "group" and not value.strip()):
            raise DataError(f"{manifest}: line {line} needs '{name}' as text; each line has prompt, ours and baseline")
    for name in ("ours", "baseline"):
        if not (manifest.parent / checked_path(values[name], DataError)).is_file():
            raise DataError(f"{manifest}: line {line} names {values[name]}, which is not in {manifest.parent}")
    ours, baseline = (manifest.parent / values[name] for name in ("ours", "baseline"))
    return Pair(values["prompt"].strip(), ours, baseline, values["group"].strip())


def _videos(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; give a folder of videos")
    files = {file for file in video_files(folder) if not is_sidecar(file)}
    if not files:
        raise DataError(f"{folder}: holds no videos; known endings are {', '.join(VIDEO_ENDINGS)}")
    return {file.relative_to(folder).as_posix() for file in files}


def _times(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
