"""Videos made on the spot whose frames can be told apart: frame i is grey of level `grey(i)`, with a white corner."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import torch

from lvdm.data import ClipRecord
from lvdm.video import write_video


def grey(index: int) -> int:
    return 20 + (index * 6) % 200


def pixels(frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """uint8 (frames, height, width, 3), white in the top left eighth."""
    video = torch.empty(frames, height, width, 3, dtype=torch.uint8)
    for index in range(frames):
        video[index] = grey(index)
    video[:, : height // 4, : width // 4] = 255
    return video


def encode(
    path: Path,
    frames: int = 40,
    codec: str = "libx264",
    size: tuple[int, int] = (32, 48),
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Write `pixels(frames)` at 25 fps, or shown at `times` in ms, with any codec and container."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=25, options={"g": "12", "bf": "2"} | (options or {}))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p" if max(size[0] % 2, size[1] % 2) == 0 else "yuv444p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(pixels(frames, *size).numpy()):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def patched(source: Path, path: Path, box: bytes, offset: int, value: bytes) -> Path:
    """A copy of an MP4 with `value` written `offset` bytes after the name of a box."""
    data = bytearray(source.read_bytes())
    start = data.index(box) + len(box) + offset
    data[start : start + len(value)] = value
    path.write_bytes(data)
    return path


def rotated(source: Path, path: Path, quarter_turns: int) -> Path:
    """A copy of an MP4 whose header asks players to turn it clockwise."""
    return oriented(source, path, {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[quarter_turns])


def oriented(source: Path, path: Path, turn: tuple[int, int, int, int]) -> Path:
    """A copy of an MP4 whose header takes a stored point (x, y) to (a x + c y, b x + d y), turn = (a, b, c, d)."""
    (a, b, c, d), one = turn, 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    return patched(source, path, b"tkhd", 40, matrix)


def trimmed(source: Path, path: Path, start: int, duration: int) -> Path:
    """A copy of an MP4 whose edit list shows [start, start + duration) ms; `encode` writes 12800 ticks a second."""
    data = source.read_bytes()
    at = data.index(b"elst") + 12
    delay = struct.unpack(">i", data[at + 4 : at + 8])[0]  # where the first frame is shown
    return patched(source, path, b"elst", 8, struct.pack(">Ii", duration, delay + start * 12800 // 1000))


def truncated(source: Path, path: Path, share: float) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def records(folder: Path, count: int, frames: int = 12) -> list[ClipRecord]:
    """Short, small videos of different lengths and their records."""
    made = []
    for index in range(count):
        path = write_video(folder / f"{index}.mp4", pixels(frames + index, 20, 28), fps=10)
        made.append(ClipRecord(path, f"caption {index}", f"class {index % 2}", path.name))
    return made
