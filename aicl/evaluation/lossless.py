"""Generated videos on disk without loss, as files that players show: FFV1 in Matroska.

What is measured later is what was generated, bit for bit, and the same pixels always give the same file.
"""

import os
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lvdm.errors import VideoError
from lvdm.files import atomic_path

ENDING = ".mkv"
_FORMAT = "bgr0"
# Four slices is what the smallest videos allow; level 3 adds a checksum to each, so damage is noticed.
_OPTIONS = {"level": "3", "slices": "4", "slicecrc": "1"}


def write_lossless(path: str | os.PathLike[str], pixels: Tensor, fps: float) -> None:
    """Write uint8 pixels (t, h, w, 3) at `fps`, atomically, in place of any file that is there."""
    rate = Fraction(fps).limit_denominator(1000)
    _, height, width, _ = pixels.shape
    with atomic_path(path) as temporary:
        # bitexact: no date, random number or version of a library in the file
        with av.open(os.fspath(temporary), "w", format="matroska", options={"fflags": "+bitexact"}) as file:
            stream = file.add_stream("ffv1", rate=rate, options=dict(_OPTIONS))
            stream.height, stream.width, stream.pix_fmt, stream.thread_count = height, width, _FORMAT, 1
            for image in pixels.numpy():
                file.mux(stream.encode(_frame(image)))
            file.mux(stream.encode())


def read_lossless(path: str | os.PathLike[str]) -> tuple[Tensor, float]:
    """uint8 pixels (t, h, w, 3) and the rate (1/s) of a file of `write_lossless`. Raises VideoError if it is broken."""
    try:
        with av.open(os.fspath(path)) as file:
            stream = file.streams.video[0]
            stream.thread_count = 1
            frames = [_image(frame) for frame in file.decode(stream)]
            rate = float(stream.average_rate or 0)
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise VideoError(f"{Path(path)} cannot be read: delete it, and it is generated again") from error
    if not frames or not rate:
        raise VideoError(f"{Path(path)} holds no frames: delete it, and it is generated again")
    return torch.from_numpy(np.stack(frames)), rate


# PyAV's own conversions set up a scaler for each frame, which takes longer than coding a small one.


def _frame(image: NDArray[np.uint8]) -> av.VideoFrame:
    """An RGB image (h, w, 3) as a frame of the format that FFV1 takes."""
    height, width, _ = image.shape
    frame = av.VideoFrame(width, height, _FORMAT)
    plane = frame.planes[0]
    rows = np.zeros((height, plane.line_size // 4, 4), np.uint8)
    rows[:, :width, :3] = image[..., ::-1]
    plane.update(rows)  # type: ignore[arg-type]  # declared for bytes, it takes any buffer
    return frame


def _image(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The reverse. Raises VideoError for a frame of another format."""
    if frame.format.name != _FORMAT:
        raise VideoError(f"a frame of {frame.format.name} is none that was written here")
    plane = frame.planes[0]
    rows = np.frombuffer(cast(memoryview, plane), np.uint8).reshape(frame.height, plane.line_size // 4, 4)
    return rows[:, : frame.width, 2::-1].copy()
