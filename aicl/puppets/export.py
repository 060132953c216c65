"""The puppet world as files: mp4 clips and a caption list that `lvdm.data.read_folder` reads."""

import csv
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aicl.puppets.actions import NAMES
from aicl.puppets.data import FPS, PuppetConfig, PuppetDataModule, draw_batch
from lvdm.data.folder import MANIFEST
from lvdm.errors import DataError
from lvdm.files import atomic_path
from lvdm.video import contact_sheet, to_pixels, write_video

_BATCH = 32
_OURS = re.compile(r"clip_\d{5,}\.mp4")


def write_clips(
    folder: Path,
    config: PuppetConfig,
    clips: int,
    seed: int = 0,
    preview: Path | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Write samples 0 to `clips` - 1 of (config, seed) as folder/clip_00000.mp4, ..., and folder/captions.csv.

    The list has the columns file, caption and label (the action's name, empty for a random motion); it is written
    last, so a folder with a list is complete. `preview` is the path of a picture of up to 40 clips. Returns the list's
    path. Raises DataError if the folder has a list already, or holds anything but what an interrupted call left.
    """
    manifest = folder / MANIFEST
    if manifest.exists():
        raise DataError(f"{manifest} exists already: choose another folder, or delete it")
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (path.name.startswith(".") or _OURS.fullmatch(path.name) or path == preview):
            raise DataError(
                f"{folder} holds {path.name}, which is none of these clips: choose a new or an empty folder"
            )
    renderer = PuppetDataModule(config, _BATCH, seed)
    rows: list[dict[str, str]] = []
    shown: list[tuple[Tensor, str]] = []
    fps = FPS * config.frames / 16
    for start in range(0, clips, _BATCH):
        batch = draw_batch(config, seed, np.arange(start, min(start + _BATCH, clips)))
        batch["scene_parameters"] = batch["scene_parameters"].to(device)
        batch = renderer.prepare(batch)
        for number, pixels, action in zip(
            batch["number"].tolist(), to_pixels(batch["frames"]), batch["action"].tolist()
        ):
            name = f"clip_{number:05d}.mp4"
            write_video(folder / name, pixels.cpu(), fps, overwrite=True)
            caption = batch["caption"][number - start]
            rows.append({"file": name, "caption": caption, "label": NAMES[action] if action >= 0 else ""})
            if len(shown) < 40:
                shown.append((pixels.cpu(), caption))
    if preview is not None:
        _write_preview(preview, shown)
    with atomic_path(manifest) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", "caption", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def _write_preview(path: Path, shown: list[tuple[Tensor, str]]) -> None:
    sheet = contact_sheet([pixels for pixels, _ in shown], [caption for _, caption in shown])
    with atomic_path(path) as temporary:
        sheet.save(temporary)
