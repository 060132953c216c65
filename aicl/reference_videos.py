"""References as a user may give them -> rows of `Reference`, and the frames that the prism sees of each."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aicl.motion_features import ENDING, MotionFeatures
from aicl.options import Reference
from lvdm.errors import ConfigError, VideoError
from lvdm.video import (
    IMAGE_ENDINGS,
    as_tensor,
    frame_files,
    frame_indices,
    load_pixels,
    probe,
    read_animation,
    read_image,
    resize_crop,
    to_frames,
    to_rgb,
)


def reference_rows(references: Any, count: int) -> list[list[Reference]]:
    """The references of a call: one row for all of its `count` prompts or one for each; none is an empty list.

    references: one, a list of them, or a list of such lists, one for each prompt; each a `Reference` or its shorthand.
    Raises ConfigError for anything else, and for rows of different lengths.
    """
    if _is_one(references):
        return _loaded([[Reference.of(references)]])
    if not isinstance(references, Sequence):
        raise ConfigError(f"references must be one or a list of them, got {_described(references)}")
    apart = [isinstance(item, list | tuple) and not _is_frames(item) for item in references]
    rows = list(references) if apart and all(apart) else [references] if references else []
    if len(rows) not in (0, 1, count):
        raise ConfigError(f"{count} prompts need one list of references or {count}, got {len(rows)}")
    for item in (item for row in rows for item in row):
        if not _is_one(item):
            raise ConfigError(
                f"a reference must be a file, a folder of frames, pixels or motion features, got {_described(item)}"
            )
    if len({len(row) for row in rows}) > 1 or [] in rows:
        raise ConfigError(f"every prompt needs the same number of references, got {[len(row) for row in rows]}")
    return _loaded([[Reference.of(item) for item in row] for row in rows])


def is_features_file(video: Any) -> bool:
    """Whether a reference's video is a file of motion features."""
    return isinstance(video, Path) and video.suffix == ENDING


def reference_key(reference: Reference) -> tuple[str | int, str | None]:
    """What two references have in common that are the same video with the same caption."""
    video = reference.video
    return str(video) if isinstance(video, Path) else id(video), reference.caption


def captioned(rows: list[list[Reference]], prompts: list[str]) -> list[list[Reference]]:
    """References with captions, those that have none with their prompt; one row where all samples share everything."""
    several = rows * len(prompts) if len(rows) == 1 else rows
    captioned = [
        [replace(each, caption=prompt) if each.caption is None else each for each in row]
        for row, prompt in zip(several, prompts)
    ]
    keys = [[reference_key(each) for each in row] for row in captioned]
    return captioned[:1] if all(key == keys[0] for key in keys) else captioned


def stacked(videos: list[MotionFeatures]) -> MotionFeatures:
    """Features of one place in all rows: of one sample each, they become a batch. Raises ConfigError if they differ."""
    if all(video is videos[0] for video in videos):
        return videos[0]
    if any(len(video.features) != 1 or video.frames != videos[0].frames for video in videos):
        raise ConfigError("motion features of different prompts must be of one sample and of the same frames each")
    return replace(videos[0], features=torch.cat([video.features.to(videos[0].features) for video in videos]))


def check_reference(reference: Reference) -> None:
    """Raise VideoError for a file that cannot be read, or a single image: it shows no action.

    Raises ConfigError for pixels that are not uint8 (t, h, w, 3), CheckpointError for a damaged file of features.
    """
    if is_features_file(reference.video):
        MotionFeatures.load(reference.video)
        return
    if isinstance(reference.video, MotionFeatures):
        return
    if isinstance(reference.video, Path):
        name, frames = str(reference.video), _count(reference.video)
    else:
        name, frames = "reference pixels", len(_pixels(reference.video))
    if frames < 2:
        raise VideoError(f"{name}: a single frame shows no action; give a video of it as reference")


def read_clip(reference: Reference, num_frames: int, size: tuple[int, int], fps: float) -> Tensor:
    """`read_pixels` as frames (3, t, h, w) in [-1, 1]."""
    return to_frames(read_pixels(reference, num_frames, size, fps))


def read_pixels(reference: Reference, num_frames: int, size: tuple[int, int], fps: float) -> Tensor:
    """What the prism sees of a reference that is a video: uint8 (t, h, w, 3), from its middle.

    size: (h, w) in pixels. fps: the rate (1/s) at which a file is sampled; pixels and folders of frames state none and
    are taken to have this one. Raises VideoError or ConfigError for what is no reference, see `check_reference`.
    """
    check_reference(reference)
    video = reference.video
    if not isinstance(video, Path):
        pixels = _pixels(video)
        return resize_crop(pixels[frame_indices(len(pixels), num_frames, source_fps=fps)], size)
    if _is_image(video):
        pixels, rate = read_animation(video)
        chosen = frame_indices(len(pixels), num_frames, source_fps=rate, target_fps=fps)
        return resize_crop(pixels[chosen], size)
    if not video.is_dir():
        return load_pixels(video, num_frames, size, fps=fps)
    files = frame_files(video)
    images = [files[index] for index in frame_indices(len(files), num_frames, source_fps=fps)]
    return torch.cat([resize_crop(read_image(file)[None], size) for file in images])


def _loaded(rows: list[list[Reference]]) -> list[list[Reference]]:
    """The rows with each file of motion features read, once. Raises CheckpointError for one that cannot be."""
    features: dict[Path, MotionFeatures] = {}

    def load(reference: Reference) -> Reference:
        if not is_features_file(reference.video):
            return reference
        if reference.video not in features:
            features[reference.video] = MotionFeatures.load(reference.video)
        return replace(reference, video=features[reference.video])

    return [[load(reference) for reference in row] for row in rows]


def _count(video: Path) -> int:
    """The number of frames of a file or of a folder. Raises VideoError where there are none to read."""
    if _is_image(video):
        return len(read_animation(video)[0])
    return len(frame_files(video)) if video.is_dir() else probe(video).num_frames


def _is_image(video: Path) -> bool:
    return video.suffix.lower() in IMAGE_ENDINGS and video.is_file()


def _pixels(video: Any) -> Tensor:
    """Pixels in any accepted form -> uint8 (t, h, w, 3). Raises ConfigError."""
    if isinstance(video, list | tuple):
        frames = [np.asarray(to_rgb(frame) if isinstance(frame, Image.Image) else frame) for frame in video]
        if len({frame.shape for frame in frames}) != 1:
            raise ConfigError("the frames of a reference must all have one size")
        video = np.stack(frames)
    pixels = as_tensor(video)
    if pixels.dtype.is_floating_point and pixels.ndim == 4:  # the output types "np" and "pt" of pipelines
        pixels = _bytes(pixels)
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ConfigError(
            f"reference pixels must be uint8 (t, h, w, 3), or float in [0, 1] of that shape or (t, 3, h, w), "
            f"got {pixels.dtype} {tuple(pixels.shape)}"
        )
    return pixels


def _bytes(pixels: Tensor) -> Tensor:
    """Float pixels (t, h, w, 3) or (t, 3, h, w) in [0, 1] -> uint8 (t, h, w, 3). Raises ConfigError."""
    if pixels.shape[-1] != 3 and pixels.shape[1] == 3:
        pixels = pixels.movedim(1, -1)
    if pixels.numel() and not (float(pixels.min()) >= 0 and float(pixels.max()) <= 1):  # NaN included
        raise ConfigError("reference pixels as floats must lie in [0, 1]: divide them by 255, or give uint8")
    return pixels.mul(255).round().to(torch.uint8)


def _is_one(item: Any) -> bool:
    """Whether this is one reference, or the shorthand of one."""
    kinds = (Reference, str, os.PathLike, Tensor, np.ndarray, MotionFeatures)
    return isinstance(item, kinds) or (isinstance(item, list | tuple) and _is_frames(item))


def _is_frames(items: Sequence[Any]) -> bool:
    """Whether a list is one video, frame by frame."""
    return bool(items) and all(
        isinstance(item, Image.Image) or (isinstance(item, Tensor | np.ndarray) and item.ndim == 3) for item in items
    )


def _described(item: Any) -> str:
    return repr(item) if isinstance(item, int | float | bool | None) else f"a {type(item).__name__}"
