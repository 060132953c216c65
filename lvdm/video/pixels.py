"""The only home of pixel ranges, resizing and the choice of frames.

pixels: uint8 (t, h, w, 3) in [0, 255], RGB.  frames: float (3, t, h, w) in [-1, 1].
"""

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lvdm.errors import ConfigError, VideoError

ShortRule = Literal["stretch", "hold", "loop", "error"]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_TICK = 1e-3  # s, to which many containers round the times of their frames


def frame_step(
    total: int,
    num_frames: int,
    *,
    source_fps: float,
    stride: float | None = None,
    target_fps: float | None = None,
    short: ShortRule = "stretch",
    times: FloatArray | None = None,
) -> float:
    """Source frames between two frames of the clip: `stride`, or source_fps / target_fps, or 1 if neither is given.

    With the "stretch" rule it is lowered where the video is too short, so source_fps / frame_step is the clip's rate.
    `times`: see `frame_indices`.
    """
    if stride is not None and target_fps is not None:
        raise ConfigError("a clip has a frame stride or a target fps, not both: remove one of them")
    if num_frames < 1 or not all(value is None or 0 < value < math.inf for value in (stride, target_fps)):
        raise ConfigError(f"num_frames={num_frames}, stride={stride}, fps={target_fps}: each must be positive")
    step = source_fps / target_fps if target_fps is not None else float(stride or 1)
    if short == "stretch" and num_frames > 1:
        room = float(total - 1 if times is None or target_fps is None else times[-1] * source_fps)
        step = min(step, room / (num_frames - 1))
    return step


def frame_indices(
    total: int,
    num_frames: int,
    *,
    source_fps: float,
    stride: float | None = None,
    target_fps: float | None = None,
    position: float = 0.5,
    short: ShortRule = "stretch",
    times: FloatArray | None = None,
) -> list[int]:
    """Which of a video's `total` frames make a clip of `num_frames`, `frame_step` apart.

    `position` in [0, 1] places the clip between the start and the end of the video. A video that is too short for it:
    "stretch" lowers the step so that the whole video is used once, at most slower (frames repeat if there are fewer
    than `num_frames`); "hold" repeats the last frame; "loop" starts again; "error" raises VideoError.

    `times`, seconds (total,), says when each frame of a video of varying rate is shown: with `target_fps` each chosen
    frame is then the one on screen at start + k / target_fps. A stride counts frames, whatever their times.
    """
    if total < 1:
        raise VideoError("a video without frames has no clip")
    step = frame_step(
        total, num_frames, source_fps=source_fps, stride=stride, target_fps=target_fps, short=short, times=times
    )
    span = (num_frames - 1) * step
    timed = times if target_fps is not None else None
    room = (total - 1 if timed is None else float(timed[-1]) * source_fps) - span
    if room < -1e-6 and short == "error":
        raise VideoError(f"a clip spans {math.ceil(span) + 1} frames but the video has {total}; lower the stride")
    start = position * max(room, 0.0)
    # Rounding down after a small push, so that 2.9999999 from floating point counts as 3.
    places = [start + number * step + 1e-6 for number in range(num_frames)]
    if timed is not None:
        lasts = float(timed[-1]) + 1 / source_fps  # the last frame is given the average time
        instants = np.array(places) / source_fps
        instants = np.mod(instants, lasts) if short == "loop" else instants
        shown = np.searchsorted(timed, instants + _TICK / 2, side="right") - 1
        return [min(max(int(index), 0), total - 1) for index in shown]
    indices = [math.floor(place) for place in places]
    return [index % total if short == "loop" else min(index, total - 1) for index in indices]


def resize_crop(pixels: Tensor, size: tuple[int, int], position: tuple[float, float] = (0.5, 0.5)) -> Tensor:
    """uint8 (t, h, w, c) -> uint8 (t, *size, c): scale to cover `size` (h, w), then crop.

    `position` = (down, right), each in [0, 1], places the crop: (0.5, 0.5) is the centre. Antialiased bilinear.
    """
    _, height, width, _ = pixels.shape
    scale = max(size[0] / height, size[1] / width)
    covered = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    if covered != (height, width):
        planes = pixels.permute(0, 3, 1, 2)  # (t, c, h, w), channels last in memory: the fast path for uint8
        planes = F.interpolate(planes, covered, mode="bilinear", antialias=True, align_corners=False)
        pixels = planes.permute(0, 2, 3, 1)
    top = round(position[0] * (covered[0] - size[0]))
    left = round(position[1] * (covered[1] - size[1]))
    return pixels[:, top : top + size[0], left : left + size[1]].contiguous()


def as_tensor(pixels: np.ndarray | Tensor) -> Tensor:
    """A NumPy array as a tensor, also one that is mirrored or read-only; a tensor as it is. Raises ConfigError."""
    if isinstance(pixels, Tensor):
        return pixels
    try:
        return torch.from_numpy(np.array(pixels, order="C"))
    except TypeError as error:
        raise ConfigError(f"pixels must be numbers, got an array of {pixels.dtype}: give uint8") from error


def to_frames(pixels: Tensor) -> Tensor:
    """uint8 (..., t, h, w, c) -> float32 in [-1, 1] (..., c, t, h, w)."""
    # In the usual memory order, or convolutions would choose other algorithms than for a batch of the same frames.
    return pixels.movedim(-1, -4).contiguous().to(torch.float32).div_(127.5).sub_(1.0)


def to_pixels(frames: Tensor) -> Tensor:
    """float in [-1, 1], clamped, (..., c, t, h, w) -> uint8 (..., t, h, w, c), rounded to the nearest value."""
    pixels = frames.detach().float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return pixels.to(torch.uint8).movedim(-4, -1).contiguous()
