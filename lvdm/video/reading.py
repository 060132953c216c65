"""Video files -> pixels. Frames are numbered in the order in which they are shown, whatever the container.

Where each frame has a time stamp of its own, reading starts at the key frame before a wanted one; elsewhere (AVI,
MPEG-TS, edit lists, open groups of pictures, interlaced files) it decodes from the start, so that both give the same
frame for an index. decord can be asked for by name where it is installed and right: it does not know rotated streams,
edit lists, pixels that are not square, several streams or the colours of large files that name no colour matrix, and
returns wrong frames for open groups of pictures.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lvdm.errors import VideoError
from lvdm.video.decoding import Look, look_of, opened, shown, upright
from lvdm.video.pixels import ShortRule, frame_indices, frame_step, resize_crop, to_frames
from lvdm.video.timing import PacketTime, presentation, uneven

try:  # x86-64 only
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # what matters reaches the user as a VideoError
except ImportError:
    decord = None

log = logging.getLogger(__name__)

Reader = Literal["auto", "decord", "pyav"]

_TIMED_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # store when each frame is shown
_WHOLE = 0.95  # a smaller share of the frames that the header promises means that the end of the file is missing
_MAX_BYTES = 4 * 2**30  # of frames that are read at their full size
_BATCH_BYTES = 2**28  # of frames that decord decodes at once


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds: frames that can be shown, their average rate (1/s), and their size in pixels, upright.

    times: seconds from the first frame to each frame, float64 (num_frames,), where the rate varies; else None.
    damaged: frames that decode with errors; only `check_video` counts them.
    """

    path: Path
    num_frames: int
    fps: float
    width: int
    height: int
    times: np.ndarray | None = field(default=None, compare=False, repr=False)
    damaged: int = 0


@dataclass(frozen=True)
class Video:
    """A file whose frames have been counted, ready to be read: `open_video` makes it."""

    info: VideoInfo
    look: Look
    ticks: np.ndarray  # when each frame is shown, in units of the stream
    keys: np.ndarray  # ticks of the frames at which decoding can start; empty if only the start of the file will do
    plain: bool  # decord gives the right frame for every index

    def choose(
        self,
        num_frames: int,
        fps: float | None = None,
        stride: float | None = None,
        position: float = 0.5,
        short: ShortRule = "stretch",
    ) -> tuple[list[int], float]:
        """The frames that make a clip, see `frame_indices`, and the clip's rate (1/s)."""
        info = self.info
        rule: dict[str, Any] = {"source_fps": info.fps, "stride": stride, "target_fps": fps, "short": short}
        rule["times"] = info.times
        indices = frame_indices(info.num_frames, num_frames, position=position, **rule)
        if info.times is not None and fps is None:  # a stride through frames that are not evenly spaced
            seconds = float(info.times[indices[-1]] - info.times[indices[0]])
            return indices, (num_frames - 1) / seconds if seconds > 0 else info.fps
        step = frame_step(info.num_frames, num_frames, **rule)
        return indices, info.fps / step if step else info.fps

    def read(
        self,
        indices: Sequence[int],
        reader: Reader = "auto",
        size: tuple[int, int] | None = None,
        crop: tuple[float, float] = (0.5, 0.5),
        damaged: list[int] | None = None,
    ) -> Tensor:
        """The frames `indices` (any order, repeats allowed, each in [0, num_frames)) as uint8 (t, h, w, 3), upright.

        With `size` (h, w) each frame is made small by `resize_crop` as soon as it is decoded, so that a long clip of
        large frames takes little memory. Indices of frames that decode with errors are appended to `damaged`.
        Raises VideoError where the file is broken, an index is beyond its end, or the frames take too much memory.
        """
        path, total = self.info.path, self.info.num_frames
        indices = [int(index) for index in indices]
        outside = [index for index in indices if not 0 <= index < total]
        if outside or not indices:
            asked = f"has no frame {outside[0]}, only 0 to {total - 1}" if outside else "was asked for no frame"
            raise VideoError(f"{path}: {asked}")
        height, width = size or (self.info.height, self.info.width)
        if (needed := len(indices) * height * width * 3) > _MAX_BYTES:
            raise VideoError(
                f"{path}: {len(indices)} frames of {width}x{height} pixels take {needed / 2**30:.1f} GiB; "
                "read fewer or smaller ones"
            )
        if reader == "decord":
            return _read_with_decord(self, indices, size, crop)
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(index, []).append(place)
        clip = torch.empty(len(indices), height, width, 3, dtype=torch.uint8)
        for index, array, corrupt in self._decoded(sorted(places)):
            pixels = torch.from_numpy(np.ascontiguousarray(array))[None]
            clip[places.pop(index)] = resize_crop(pixels, size, crop) if size else pixels
            if corrupt and damaged is not None:
                damaged.append(index)
        if places:
            raise VideoError(f"{path}: frame {min(places)} cannot be decoded; re-encode the file")
        return clip

    def _decoded(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray, bool]]:
        """(index, upright pixels, whether it has errors) of the `wanted` frames (ascending), as they are decoded."""
        done = -1  # the last index that was given out
        if len(self.keys):
            for index, pixels, corrupt in self._by_time(wanted):
                yield index, pixels, corrupt
                done = index
        rest = [index for index in wanted if index > done]
        if not rest:
            return
        left = set(rest)
        with opened(self.info.path) as (container, stream):
            for index, (frame, corrupt) in enumerate(shown(container.decode(stream), stream, self.look)):
                if index in left:
                    yield index, upright(frame, self.look), corrupt
                if index == rest[-1]:
                    return

    def _by_time(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray, bool]]:
        """Like `_decoded`, from key frame to key frame; ends early where a frame is not where its stamp says."""
        with opened(self.info.path) as (container, stream):
            position = 0
            while position < len(wanted):
                start = self._key_before(wanted[position])
                container.seek(int(start), stream=stream)
                expected = None
                for frame, corrupt in shown(container.decode(stream), stream, self.look):
                    index = None if frame.pts is None else int(np.searchsorted(self.ticks, frame.pts))
                    if index is None or index >= len(self.ticks) or self.ticks[index] != frame.pts:
                        return
                    if index > wanted[position] or (expected is not None and index != expected):
                        return
                    expected = index + 1
                    if index == wanted[position]:
                        yield index, upright(frame, self.look), corrupt
                        position += 1
                        if position == len(wanted) or self._key_before(wanted[position]) > frame.pts:
                            break
                else:
                    return

    def _key_before(self, index: int) -> int:
        return int(self.keys[max(0, np.searchsorted(self.keys, self.ticks[index], side="right") - 1)])


def open_video(path: str | os.PathLike[str]) -> Video:
    """Count the frames of a video without decoding them; the header's count is missing or wrong too often.

    Raises VideoError for a file that is missing, truncated, not a video or without frames.
    """
    path = Path(path)
    try:
        present = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or no name at all, as one with a NUL character
        present = False
    if not present:
        name = str(path) if str(path).isprintable() else repr(str(path))
        raise VideoError(f"{name}: is {'a folder' if os.path.isdir(path) else 'not there'}; give a video file")
    packets: list[PacketTime] = []
    hidden, lost, first, key_time, leading = 0, 0, None, None, False
    with opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size == 0:  # marks the end of the stream
                continue
            if first is None:
                first = next(iter(packet.decode()), None)
                if first is not None and (start := first.pts) is not None:
                    # Cut from a longer file between two key frames: what comes before the first is never shown.
                    late = [known for known in packets if known.shown is not None and known.shown < start]
                    if not any(known.key for known in late):
                        lost, packets = len(late), [known for known in packets if known not in late]
            if packet.is_discard:  # cut away by an edit list
                hidden += 1
                continue
            packets.append(PacketTime(packet.pts, packet.dts, packet.is_keyframe))
            if packet.pts is not None:
                key_time = packet.pts if packet.is_keyframe or key_time is None else key_time
                leading = leading or (
                    key_time is not None and packet.pts < key_time
                )  # needs frames from before its key frame (open GOP)
        if first is None and packets:  # a decoder with a delay, and a file shorter than it
            first = next(iter(stream.decode(None)), None)
        if first is None:
            raise VideoError(f"{path}: holds no video frames; remove it")
        look = look_of(path, stream, first)
        rate, base = float(stream.average_rate or stream.guessed_rate or 0), float(stream.time_base or 1)
        promised, lasting = stream.frames, stream.duration or 0
        timed = container.format.name in _TIMED_CONTAINERS
        single = len(container.streams.video) == 1
    if look.interlaced:  # a packet may hold a field, which is half a frame
        packets, hidden = _decoded_times(path), 0
    timing = presentation(packets, step=1 / (rate * base) if rate else 1 / base)
    count, span = len(packets), int(timing.ticks[-1] - timing.ticks[0])
    short = count + hidden + lost < _WHOLE * promised
    if timed and lasting:  # an edit list may have hidden frames from the demuxer, too
        short = short and span < _WHOLE * lasting
    if short:
        raise VideoError(f"{path}: holds only {count} of the frames that it promises, so it is cut off; fetch it again")
    fps = (count - 1) / (span * base) if span and timing.known else rate
    if fps <= 0:
        raise VideoError(f"{path}: states no frame rate; re-encode the file")
    times = (timing.ticks - timing.ticks[0]) * base if uneven(timing.ticks) else None
    ordered = timed and timing.exact and not (hidden or leading or look.interlaced)
    keys = np.array([packet.shown for packet in packets if packet.key] if ordered else [], dtype=np.int64)
    square = look.size == (first.height, first.width)
    altered = look.turned or look.high_dynamic_range or look.assumed_bt709
    plain = ordered and square and single and not (lost or altered or timing.ticks[0] < 0)
    height, width = look.size
    return Video(VideoInfo(path, count, fps, width, height, times), look, timing.ticks, keys, plain)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """What a file holds, see `open_video`. Raises VideoError."""
    return open_video(path).info


def read_frames(path: str | os.PathLike[str], indices: Sequence[int], reader: Reader = "auto") -> Tensor:
    """`open_video` and `Video.read` in one: frames of a file as uint8 (t, h, w, 3), RGB, upright. Raises VideoError."""
    return open_video(path).read(indices, reader)


def load_clip(path: str | os.PathLike[str], num_frames: int, size: tuple[int, int], **options: Any) -> Tensor:
    """A clip as frames in [-1, 1] (3, t, h, w): `load_pixels`, whose options it takes."""
    return to_frames(load_pixels(path, num_frames, size, **options))


def load_pixels(
    path: str | os.PathLike[str],
    num_frames: int,
    size: tuple[int, int],
    fps: float | None = None,
    stride: float | None = None,
    position: float = 0.5,
    crop: tuple[float, float] = (0.5, 0.5),
    short: ShortRule = "stretch",
    reader: Reader = "auto",
) -> Tensor:
    """A clip as uint8 (t, h, w, 3): `frame_indices` chooses the frames, `resize_crop` the window.

    Frames that decode with errors are warned about. Raises VideoError.
    """
    video = open_video(path)
    damaged: list[int] = []
    indices, _ = video.choose(num_frames, fps, stride, position, short)
    pixels = video.read(indices, reader, size, crop, damaged)
    if damaged:
        log.warning("%s", damage(path, damaged))
    return pixels


def damage(path: str | os.PathLike[str], frames: Sequence[int]) -> str:
    """The sentence about frames of a file that decode with errors."""
    listed = ", ".join(map(str, sorted(frames)[:5])) + (", ..." if len(frames) > 5 else "")
    return f"{path}: {len(frames)} frames decode with errors ({listed}); the file is damaged, fetch it again"


def check_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Decode the whole file and count the frames that decode with errors (`VideoInfo.damaged`).

    Raises VideoError if any frame that it holds cannot be decoded at all. Damage that the decoder conceals without a
    word, as a few wrong bytes in an old format, is not found.
    """
    info, decoded, damaged = open_video(path).info, 0, 0
    with opened(path) as (container, stream):
        for frame in container.decode(stream):
            decoded += 1
            damaged += frame.is_corrupt
    if decoded < info.num_frames:
        raise VideoError(f"{path}: only {decoded} of {info.num_frames} frames can be decoded; re-encode the file")
    return replace(info, damaged=damaged)


def _decoded_times(path: Path) -> list[PacketTime]:
    """The times of all frames by decoding them, for files whose packets are no frames."""
    with opened(path) as (container, stream):
        return [PacketTime(frame.pts, frame.dts, key=False) for frame in container.decode(stream)]


def _read_with_decord(
    video: Video, indices: list[int], size: tuple[int, int] | None, crop: tuple[float, float]
) -> Tensor:
    info = video.info
    if decord is None or not video.plain:
        raise VideoError(
            f"{info.path}: decord is not installed or cannot read this kind of file; let the reader be 'auto'"
        )
    try:
        file = decord.VideoReader(os.path.abspath(info.path), num_threads=1)
        if len(file) != info.num_frames:  # it sees other frames, so other numbers
            raise RuntimeError
        batch, parts = max(1, _BATCH_BYTES // (info.height * info.width * 3)), []
        for start in range(0, len(indices), batch):
            pixels = torch.from_numpy(file.get_batch(indices[start : start + batch]).asnumpy())
            if pixels.shape[1:3] != (info.height, info.width):
                raise RuntimeError
            parts.append(resize_crop(pixels, size, crop) if size else pixels)
    except (decord.DECORDError, RuntimeError) as error:  # it fails on some small sizes, too
        raise VideoError(f"{info.path}: decord cannot decode the frames; let the reader be 'auto'") from error
    return torch.cat(parts)
