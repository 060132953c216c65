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
from aicl.sidecar_files import REFERENCE, companion
from lvdm.files import atomic_path
from lvdm.video import write_video


def export_row(run: TableRun, row: Row, folder: Path) -> Path:
    """Write a row's generated videos, and the clip that each is compared with, to a folder below `folder`.

    00000.mp4, 00000-reference.mp4, ... and manifest.jsonl: file, caption, label, reference, seed. What is there already
    is kept, so an interrupted export goes on. Real rows are not exported. Returns the row's folder.
    """
    source = run.source(row)
    place = folder / re.sub(r"[^A-Za-z0-9]+", "-", f"{run.title} {row.label}").strip("-")
    if source is None:
        return place
    lines, number = [], 0
    for seed in run.preset.seeds:
        samples = run.samples(seed)
        made = run.videos.videos(source, run.benchmark, seed, samples)
        for sample, video in tqdm(list(zip(samples, made)), desc=f"exporting '{row.label}'", unit="video"):
            path = place / f"{number:05d}.mp4"
            reference = companion(path, REFERENCE)
            if not path.is_file():
                pixels, rate = read_lossless(video.path)
                write_video(path, pixels, rate, overwrite=True)
            if not reference.is_file():
                pixels, _ = run.benchmark.load([row.compared(sample)])
                write_video(reference, pixels[0].cpu(), run.benchmark.fps, overwrite=True)
            entry = {"file": path.name, "caption": sample.prompt, "label": sample.label}
            lines.append(json.dumps({**entry, "reference": reference.name, "seed": sample.seed}, ensure_ascii=False))
            number += 1
    write_manifest(place, lines)
    return place


def write_manifest(folder: Path, lines: Sequence[str]) -> None:
    """Write the manifest of a folder of videos, a JSON object a line."""
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
