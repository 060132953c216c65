"""Video files -> pixels. Frames are numbered in the order in which they are shown, whatever the container.

decord reads where it is installed and right: it finds frames by their time of presentation, which MP4 and Matroska
store and AVI and MPEG-TS do not, and it starts decoding at a key frame, which does not suffice for open groups of
pictures: it then returns wrong frames without an error. Nor does it know rotated streams and edit lists. PyAV reads
everything else, decoding from the start, so both readers give the same frame for an index.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from torch import Tensor

from lvdm.errors import VideoError
from lvdm.video.pixels import ShortRule, frame_indices, resize_crop, to_frames

try:  # x86-64 only
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # what matters reaches the user as a VideoError
except ImportError:
    decord = None

Reader = Literal["auto", "decord", "pyav"]
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")

_TIMED_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # store when each frame is shown
_WHOLE = 0.95  # a smaller share of the frames that the header promises means that the end of the file is missing


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds: frames that can be shown, their average rate (1/s), and their size in pixels, upright."""

    path: Path
    num_frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True)
class Video:
    """A file whose frames have been counted, ready to be read: `open_video` makes it."""

    info: VideoInfo
    quarter_turns: int  # anticlockwise, to show the frames upright
    plain: bool  # decord gives the right frame for every index

    def read(self, indices: Sequence[int], reader: Reader = "auto") -> Tensor:
        """The frames `indices` (any order, repeats allowed, each in [0, num_frames)) as uint8 (t, h, w, 3), upright.

        Raises VideoError where the file is broken or an index is beyond its end.
        """
        path, total = self.info.path, self.info.num_frames
        indices = [int(index) for index in indices]
        outside = [index for index in indices if not 0 <= index < total]
        if outside:
            raise VideoError(f"{path}: has no frame {outside[0]}, only 0 to {total - 1}")
        if reader == "decord" and (decord is None or not self.plain):
            raise VideoError(
                f"{path}: decord is not installed or cannot read this kind of file; let the reader be 'auto'"
            )
        if reader != "pyav" and decord is not None and self.plain:
            pixels = _read_with_decord(self.info, indices)
            if pixels is not None:
                return pixels
            if reader == "decord":
                raise VideoError(f"{path}: decord cannot decode the frames; let the reader be 'auto'")
        return _read_with_av(self, indices)


def open_video(path: str | os.PathLike) -> Video:
    """Count the frames of a video without decoding them; the header's count is missing or wrong too often.

    The rate is the average over the file, so a variable frame rate is treated as a constant one.
    Raises VideoError for a file that is missing, truncated, not a video or without frames.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: is {'a folder' if path.is_dir() else 'not there'}; give a video file")
    count, hidden, times, first, key_time, leading = 0, 0, [], None, None, False
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size == 0:  # marks the end of the stream
                continue
            if first is None:
                first = next(iter(packet.decode()), None)
            if packet.is_discard:  # cut away by an edit list
                hidden += 1
                continue
            count += 1
            if packet.pts is not None:
                times.append(packet.pts)
                key_time = packet.pts if packet.is_keyframe or key_time is None else key_time
                leading = leading or packet.pts < key_time  # needs frames from before its key frame (open GOP)
        if first is None and count:  # a decoder with a delay, and a file shorter than it
            first = next(iter(stream.decode(None)), None)
        rate = stream.average_rate or stream.guessed_rate
        ticks = max(times) - min(times) if times else 0
        seconds = float(ticks * stream.time_base)
        timed = container.format.name in _TIMED_CONTAINERS
        short = count + hidden < _WHOLE * stream.frames
        if timed and stream.duration:  # an edit list may have hidden frames from the demuxer, too
            short = short and ticks < _WHOLE * stream.duration
    if first is None:
        raise VideoError(f"{path}: holds no video frames; remove it")
    if short:
        raise VideoError(f"{path}: holds only {count} of the frames that it promises, so it is cut off; fetch it again")
    fps = (len(times) - 1) / seconds if seconds else float(rate or 0)
    if fps <= 0:
        raise VideoError(f"{path}: states no frame rate; re-encode the file")
    turns = round(first.rotation / 90) % 4
    width, height = (first.height, first.width) if turns % 2 else (first.width, first.height)
    return Video(VideoInfo(path, count, fps, width, height), turns, plain=timed and not (turns or hidden or leading))


def probe(path: str | os.PathLike) -> VideoInfo:
    """What a file holds, see `open_video`. Raises VideoError."""
    return open_video(path).info


def read_frames(path: str | os.PathLike, indices: Sequence[int], reader: Reader = "auto") -> Tensor:
    """`open_video` and `Video.read` in one: frames of a file as uint8 (t, h, w, 3), RGB, upright. Raises VideoError."""
    return open_video(path).read(indices, reader)


def load_clip(
    path: str | os.PathLike,
    num_frames: int,
    size: tuple[int, int],
    fps: float | None = None,
    stride: float | None = None,
    position: float = 0.5,
    crop: tuple[float, float] = (0.5, 0.5),
    short: ShortRule = "stretch",
    reader: Reader = "auto",
) -> Tensor:
    """A clip as frames in [-1, 1] (3, t, h, w): `frame_indices` chooses the frames, `resize_crop` the window."""
    video = open_video(path)
    indices = frame_indices(
        video.info.num_frames,
        num_frames,
        source_fps=video.info.fps,
        target_fps=fps,
        stride=stride,
        position=position,
        short=short,
    )
    return to_frames(resize_crop(video.read(indices, reader), size, crop))


def check_video(path: str | os.PathLike) -> VideoInfo:
    """Decode the whole file; raises VideoError if any frame that it holds cannot be decoded.

    Damage that the decoder conceals, as a few wrong bytes in an old format, is not an error.
    """
    info = open_video(path).info
    with _opened(path) as (container, stream):
        decoded = sum(1 for _ in container.decode(stream))
    if decoded < info.num_frames:
        raise VideoError(f"{path}: only {decoded} of {info.num_frames} frames can be decoded; re-encode the file")
    return info


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple["av.container.InputContainer", "av.video.VideoStream"]]:
    """The container and its first video stream; whatever goes wrong inside is a VideoError about `path`."""
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: holds no video stream; give a video file")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # loader workers are the parallelism
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: not a readable video ({_reason(error)}); re-encode or remove it") from error


def _read_with_decord(info: VideoInfo, indices: list[int]) -> Tensor | None:
    """None where decord fails, as it does on some small sizes, too: PyAV then decides whether the file is broken."""
    try:
        video = decord.VideoReader(os.fspath(info.path), num_threads=1)
        if len(video) != info.num_frames:  # it sees other frames, so other numbers
            return None
        pixels = torch.from_numpy(video.get_batch(indices).asnumpy())
    except (decord.DECORDError, RuntimeError):
        return None
    return pixels if pixels.shape[1:3] == (info.height, info.width) else None


def _read_with_av(video: Video, indices: list[int]) -> Tensor:
    wanted, last, found = set(indices), max(indices), {}
    with _opened(video.info.path) as (container, stream):
        width, height = None, None
        for index, frame in enumerate(container.decode(stream)):
            width, height = width or frame.width, height or frame.height
            if index in wanted:  # a stream may change its size: keep that of the first frame
                pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
                found[index] = np.rot90(pixels, video.quarter_turns)
            if index == last:
                break
    if wanted - found.keys():
        missing = min(wanted - found.keys())
        raise VideoError(f"{video.info.path}: frame {missing} cannot be decoded; re-encode the file")
    return torch.from_numpy(np.stack([found[index] for index in indices]))


def _reason(error: Exception) -> str:
    """The short text of an ffmpeg, system or Pillow error, without numbers and file names."""
    return (getattr(error, "strerror", None) or str(error).split("'")[0]).strip().rstrip(":").lower()
