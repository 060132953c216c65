"""Videos that were generated elsewhere: by `aicl sample`, or listed in a manifest, or with captions beside them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lvdm.data import read_folder
from lvdm.data.folder import video_files
from lvdm.errors import DataError
from lvdm.outside import check_text, checked_path, read_json_lines, read_object
from lvdm.video import VIDEO_ENDINGS

MANIFEST = "manifest.jsonl"  # lists the videos of a folder


@dataclass(frozen=True)
class Generated:
    """A generated video: its file, prompt, and where known its class, the reference that was shown, and its seed."""

    path: Path
    prompt: str
    label: str | None = None
    reference: Path | None = None
    seed: int | None = None


def read_generated(folder: str | os.PathLike[str], manifest: str | os.PathLike[str] | None = None) -> list[Generated]:
    """The generated videos of a folder.

    With a manifest (.jsonl), by default manifest.jsonl in the folder where that is there: its lines, {"file": ...,
    "caption": ..., "label": ..., "reference": ..., "seed": ...}, the last three optional, files relative to the folder.
    Without: every video with the JSON record that `aicl sample` writes beside it, else with a caption in a .txt file.
    Raises DataError for what is missing, other than references of records: folders are copied without them, and their
    paths may be relative to another folder.
    """
    folder = Path(folder)
    own = folder / MANIFEST
    if manifest is not None or own.is_file():
        return list(_listed(folder, Path(manifest or own)))
    sampled = [video for path in sorted(folder.glob("*.json")) if (video := _sampled(path)) is not None]
    return sampled or [Generated(Path(r.path), r.caption, r.label) for r in read_folder(folder)]


def list_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """All videos below a folder, hidden files apart, sorted. Raises DataError if there are none."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: is not a folder; give a folder of videos")
    found = video_files(folder)
    if not found:
        raise DataError(f"{folder} holds no videos with an ending of {', '.join(VIDEO_ENDINGS)}")
    return found


def _listed(folder: Path, manifest: Path) -> Iterator[Generated]:
    for number, entry in read_json_lines(manifest, DataError):
        where = f"{manifest}: line {number}"
        if missing := [name for name in ("file", "caption") if name not in entry]:
            raise DataError(f'{where} is no {{"file": ..., "caption": ...}}: it has no {missing[0]}')
        for name in ("file", "caption", "label", "reference"):
            if name in ("file", "caption") or entry.get(name) is not None:
                check_text(entry[name], f"{where}: '{name}'", DataError)
        path, prompt, seed = folder / checked_path(entry["file"], DataError), entry["caption"], entry.get("seed")
        if seed is not None and type(seed) is not int:
            raise DataError(f"{manifest}: line {number} has the seed {seed!r}, which is no whole number")
        reference = entry.get("reference")
        for file in (path, *([folder / reference] if reference else [])):
            if not file.is_file():
                raise DataError(f"{manifest}: line {number} names {file}, which is not there")
        yield Generated(path, prompt, entry.get("label") or None, folder / reference if reference else None, seed)


def _sampled(record: Path) -> Generated | None:
    """The video that `aicl sample` wrote beside a JSON file of this name, None for any other JSON file."""
    try:
        job = read_object(record, DataError)["job"]
        prompt, seed = job["prompt"], job["seed"]
        references = job["references"] if "references" in job else job["refs"]
        shown = [reference["video"] if isinstance(reference, dict) else reference for reference in references]
        files = [Path(video) for video in shown if Path(video).suffix.lower() in VIDEO_ENDINGS]
        label = job.get("label")
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        return None
    video = next((v for e in VIDEO_ENDINGS if (v := record.with_suffix(e)).is_file()), None)
    return None if video is None else Generated(video, prompt, label, files[0] if files else None, seed)
