"""What the prism reads of a reference, for eyes: its frames as a looping video, and all of them in one picture."""

import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aicl.apps.web_demo.models import ModelCard
from aicl.options import Reference
from aicl.reference_videos import read_pixels
from lvdm.files import atomic_path
from lvdm.hashing import text_hash
from lvdm.video import resize_crop, side_by_side, write_video

_HEIGHT = 72  # pixels of a frame in the picture
_ROW = 8  # frames
_making = threading.Lock()


@dataclass(frozen=True)
class Preview:
    """A clip as a model reads it: `clip` plays, `sheet` shows all frames, row by row, `poster` is the middle one."""

    clip: Path
    sheet: Path
    poster: Path

    @classmethod
    def named(cls, path: Path) -> "Preview":
        """The files that begin with `path`."""
        return cls(*(path.with_name(path.name + ending) for ending in (".mp4", "-sheet.png", "-poster.png")))


def preview(video: Path, card: ModelCard, folder: Path) -> Preview:
    """Make the preview of a video in `folder`, unless it is there. Raises VideoError for what cannot be read."""
    size, frames = card.defaults.size, card.defaults.num_frames
    status = video.stat()
    name = text_hash(map(str, (video.resolve(), status.st_mtime_ns, status.st_size, frames, size, card.fps)))[:32]
    made = Preview.named(folder / name)
    with _making:  # one at a time: a page with many clips must not take all threads
        if not all(path.is_file() for path in (made.clip, made.sheet, made.poster)):
            pixels = read_pixels(Reference(video), frames, size, card.fps)
            folder.mkdir(parents=True, exist_ok=True)
            for path, picture in ((made.sheet, _sheet(pixels)), (made.poster, pixels[len(pixels) // 2])):
                with atomic_path(path, durable=False) as temporary:
                    Image.fromarray(picture.numpy()).save(temporary)
            write_video(made.clip, pixels, card.fps, overwrite=True)
    return made


def _sheet(pixels: Tensor) -> Tensor:
    """uint8 (t, h, w, 3) -> all frames in rows, uint8 (h', w', 3)."""
    height = min(_HEIGHT, pixels.shape[1])
    small = resize_crop(pixels, (height, max(1, round(pixels.shape[2] * height / pixels.shape[1]))))
    missing = -len(small) % _ROW if len(small) > _ROW else 0
    small = torch.cat([small, small.new_full((missing, *small.shape[1:]), 255)])
    rows = [side_by_side([frame[None] for frame in row])[0] for row in small.split(_ROW)]
    gap = rows[0].new_full((4, *rows[0].shape[1:]), 255)
    return torch.cat([part for row in rows for part in (row, gap)][:-1])
