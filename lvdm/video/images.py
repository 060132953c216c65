"""Single images, and folders that hold a video as one image for each frame."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from lvdm.errors import VideoError

_MAX_FRAMES = 1000  # of an animated image, all of which are read
VIDEO_ENDINGS = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".gif",
)  # fmt: skip
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """An image file, upright, as uint8 (h, w, 3), RGB. Raises VideoError for one that is missing or cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return torch.from_numpy(np.array(to_rgb(ImageOps.exif_transpose(file))))
    except UnidentifiedImageError as error:
        raise VideoError(f"image {path} cannot be read: it is no picture; give a PNG, JPEG or WebP file") from error
    except IsADirectoryError as error:
        raise VideoError(f"image {path} cannot be read: it is a folder; give a PNG, JPEG or WebP file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoError(f"image {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as viewers show it, in RGB of 8 bits: transparent parts over white, grey of 16 bits scaled to 8.

    Pillow's own conversion uncovers what lies below transparent parts, and cuts 16 bits off at 255.
    """
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) // 2**8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def read_animation(path: str | os.PathLike[str]) -> tuple[Tensor, float]:
    """The frames of an animated image (.webp, .png), uint8 (t, h, w, 3), and their average rate (1/s).

    Raises VideoError for one that is missing or broken, or of more than 1,000 frames.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                count = getattr(file, "n_frames", 1)
                if count > _MAX_FRAMES:
                    raise ValueError(f"it has {count} frames, at most {_MAX_FRAMES} can be read")
                frames, milliseconds = [], 0.0
                for frame in ImageSequence.Iterator(file):
                    frames.append(np.array(to_rgb(frame)))
                    milliseconds += float(frame.info.get("duration") or 0)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoError(f"image {path} cannot be read: {error}") from error
    rate = 1000 * len(frames) / milliseconds if milliseconds else 10.0  # what browsers take where none is stated
    return torch.from_numpy(np.stack(frames)), rate


def frame_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder in their order, numbers in names counting as numbers; hidden files are left out.

    Raises VideoError where there are none, and where there are videos too: the folder is no video then.
    """
    try:
        names = sorted(os.listdir(folder), key=_runs)
    except OSError as error:
        raise VideoError(f"{folder}: cannot be read ({error.strerror}); give a folder of images") from error
    files = [Path(folder) / name for name in names if name[0] != "." and Path(name).suffix.lower() in IMAGE_ENDINGS]
    videos = [name for name in names if name[0] != "." and Path(name).suffix.lower() in VIDEO_ENDINGS]
    if videos:
        raise VideoError(f"{folder}: holds videos, such as {videos[0]}; give one of them, or a folder of frames alone")
    if not files:
        raise VideoError(f"{folder}: holds no images; give a video, or a folder of its frames as images")
    return files


def _runs(name: str) -> list[tuple[int, str]]:
    """A name cut into digits and what is between them, so that 10 is sorted after 9."""
    return [(int(run), run) if run.isdecimal() else (0, run) for run in re.split(r"(\d+)", name)]
