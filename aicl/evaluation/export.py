"""Rows as folders of mp4 files with a manifest, which `aicl evaluate`, the user study and other programs read."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from aicl.evaluation.generated import MANIFEST
from aicl.evaluation.lossless import read_lossless
from aicl.evaluation.row import Row
from aicl.evaluation.table_run import TableRun
from aicl.sidecar_files import REFERENCE, sidecar
from lvdm.errors import ConfigError
from lvdm.files import atomic_path
from lvdm.video import write_video


def export_row(run: TableRun, row: Row, folder: Path) -> Path:
    """Write a row's generated videos, and the clip that each is compared with, to a folder of its name below `folder`.

    00000.mp4, 00000-reference.mp4, ... and manifest.jsonl: file, caption, label, reference, seed, and which video of
    the store it is ("video"). What is there already and is still that video is kept. Returns the row's folder. Raises
    ConfigError for a row of real clips.
    """
    place = folder / slug(row.label)
    source = run.source(row)
    if source is None:
        raise ConfigError(f"row '{row.label}' is of real clips: only generated videos are exported")
    known, lines = _known(place), []
    made = [
        (sample, video)
        for seed in run.preset.seeds
        for sample, video in zip(run.samples(seed), run.videos.videos(source, run.benchmark, seed, run.samples(seed)))
    ]
    for number, (sample, video) in enumerate(tqdm(made, desc=f"exporting '{row.label}'", unit="video")):
        path, key = place / f"{number:05d}.mp4", f"{video.path.parent.name}/{video.path.name}"
        reference = sidecar(path, REFERENCE)
        if known.get(path.name) != key or not (path.is_file() and reference.is_file()):
            pixels, rate = read_lossless(video.path)
            write_video(path, pixels, rate, overwrite=True)
            pixels, _ = run.benchmark.load([row.compared(sample)])
            write_video(reference, pixels[0].cpu(), run.benchmark.fps, overwrite=True)
        entry = {"file": path.name, "caption": sample.prompt, "label": sample.label, "reference": reference.name}
        lines.append(json.dumps({**entry, "seed": sample.seed, "video": key}, ensure_ascii=False))
    write_manifest(place, lines)
    return place


def slug(text: str) -> str:
    """A text as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "row"


def _known(folder: Path) -> dict[str, str]:
    """Which video each file of an earlier export is; nothing where its manifest cannot be read."""
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
        return {entry["file"]: entry["video"] for entry in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_manifest(folder: Path, lines: Sequence[str]) -> None:
    """Write the manifest of a folder of videos, a JSON object a line."""
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
