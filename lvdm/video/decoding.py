"""Containers -> upright RGB frames with square pixels, progressive and in the range and colours of a common screen."""

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import Colorspace

from lvdm.errors import VideoError
from lvdm.video.dynamic_range import HIGH_DYNAMIC_RANGE, to_standard_range

MAX_PIXELS = 2**27  # of one frame: 16k x 8k
_MAX_ASPECT = 10  # of one pixel; anything beyond is a damaged header

# A file is read as what it is, but only as one of these: playlists and scripts of other formats would open other files.
_FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,gif,flv,live_flv,asf,ogg,mxf,h264,hevc,m4v,dv,wav,mp3,aac,flac,image2"
)
_NO_MATRIX = 2  # AVCOL_SPC_UNSPECIFIED: the file does not say how its colours are coded
_DEINTERLACE = ("bwdif", "mode=send_frame:deint=interlaced")  # a frame for each frame


@dataclass(frozen=True)
class Look:
    """What has to be done to a file's frames before they look as in a player.

    width, height: of a stored frame, with square pixels. First its columns and rows are exchanged (`transpose`), then
    it is mirrored left to right (`flip_x`) and top to bottom (`flip_y`): the eight orientations of a display matrix.
    assumed_bt709: the file names no colour matrix, and its size is one at which players take that of BT.709.
    """

    width: int
    height: int
    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False
    interlaced: bool = False
    high_dynamic_range: bool = False
    assumed_bt709: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of an upright frame."""
        return (self.width, self.height) if self.transpose else (self.height, self.width)

    @property
    def turned(self) -> bool:
        """Whether the orientation is not the stored one."""
        return self.transpose or self.flip_x or self.flip_y


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple["av.container.InputContainer", "av.video.VideoStream"]]:
    """The container and the video stream that players choose; whatever goes wrong inside is a VideoError about `path`.

    The path is made absolute, so that a name such as `http:x.mp4` is never taken for a protocol.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        with av.open(os.path.abspath(path), options=options) as container:
            stream = _chosen(container)
            if stream is None:
                raise VideoError(f"{path}: holds no video stream; give a video file")
            if stream.codec_context is None:
                raise VideoError(f"{path}: no decoder knows its video format; re-encode it")
            if stream.width * stream.height > MAX_PIXELS:
                size = f"{stream.width}x{stream.height}"
                raise VideoError(f"{path}: has frames of {size} pixels, too large to be read; make it smaller")
            stream.thread_type = "NONE"  # loader workers are the parallelism
            yield container, stream
    except PermissionError as error:  # PyAV's too
        raise VideoError(f"{path}: may not be read (permission denied); give yourself the right to read it") from error
    except (av.FFmpegError, OSError, MemoryError) as error:
        if os.path.isfile(path) and not os.path.getsize(path):
            raise VideoError(f"{path}: is empty; fetch it again or remove it") from error
        raise VideoError(f"{path}: not a readable video ({_reason(error)}); re-encode or remove it") from error
    except ValueError as error:  # a NUL byte in the name, a stream that PyAV cannot describe
        if isinstance(error, VideoError):
            raise
        raise VideoError(f"{str(path)!r}: cannot be read ({_reason(error)}); rename or re-encode it") from error


def look_of(path: str | os.PathLike[str], stream: "av.video.VideoStream", frame: "av.VideoFrame") -> Look:
    """How the frames of a stream have to be shown, by its header and its first frame. Raises VideoError."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT:
        raise VideoError(f"{path}: says that its pixels are {aspect} times as wide as high; re-encode it")
    transpose, flip_x, flip_y = _orientation(frame)
    return Look(
        max(1, round(frame.width * aspect)),
        frame.height,
        transpose,
        flip_x,
        flip_y,
        interlaced=bool(frame.interlaced_frame),
        high_dynamic_range=frame.color_trc in HIGH_DYNAMIC_RANGE,
        assumed_bt709=frame.colorspace == _NO_MATRIX
        and not frame.format.is_rgb
        and (frame.width >= 1280 or frame.height > 576),  # as stored, not upright: the rule of mpv
    )


def shown(
    frames: Iterable["av.VideoFrame"], stream: "av.video.VideoStream", look: Look
) -> Iterator[tuple["av.VideoFrame", bool]]:
    """(frame, whether it was decoded with errors) for each decoded frame, deinterlaced."""
    if not look.interlaced:
        for frame in frames:
            yield frame, frame.is_corrupt
        return
    graph = av.filter.Graph()
    graph.link_nodes(graph.add_buffer(template=stream), graph.add(*_DEINTERLACE), graph.add("buffersink")).configure()
    waiting: deque[bool] = deque()  # deinterlacing holds a frame back
    for stored in _with_end(frames):
        if stored is not None:
            waiting.append(stored.is_corrupt)
        graph.push(stored)
        while waiting:
            try:
                made = graph.pull()
            except (BlockingIOError, EOFError):
                break
            assert isinstance(made, av.VideoFrame)
            yield made, waiting.popleft()


def upright(frame: "av.VideoFrame", look: Look) -> np.ndarray:
    """RGB uint8 (h, w, 3) of a frame as a player shows it; all frames of a file get the size of the first."""
    format = "rgb48le" if look.high_dynamic_range else "rgb24"
    matrix = Colorspace.ITU709 if look.assumed_bt709 else None  # None: what the frame names, else BT.601
    pixels = frame.to_ndarray(format=format, width=look.width, height=look.height, src_colorspace=matrix)
    if look.high_dynamic_range:
        pixels = to_standard_range(pixels, frame.color_trc, frame.color_primaries)
    if look.transpose:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if look.flip_y else 1, :: -1 if look.flip_x else 1]


def _with_end(frames: Iterable["av.VideoFrame"]) -> Iterator["av.VideoFrame | None"]:
    yield from frames
    yield None  # tells a filter that nothing follows


def _chosen(container: "av.container.InputContainer") -> "av.video.VideoStream | None":
    """The video stream that a player shows; cover pictures and thumbnails are none."""
    moving = [
        stream
        for stream in container.streams.video
        if not stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)
    ]
    best = container.streams.best("video")
    return next((stream for stream in moving if stream is best), next(iter(moving), None))


def _orientation(frame: "av.VideoFrame") -> tuple[bool, bool, bool]:
    """(transpose, flip_x, flip_y) of a display matrix, which takes a stored (x, y) to (a x + c y, b x + d y)."""
    side_data: Any = frame.side_data  # whose declared type is another one
    for data in side_data.keys():  # noqa: SIM118 (not a mapping)
        if data.type == SideData.DISPLAYMATRIX:
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
            if abs(b) > abs(a):  # nearer to a quarter turn
                return True, c < 0, b < 0
            return False, a < 0, d < 0
    return False, False, False


def _reason(error: BaseException) -> str:
    """The short text of an ffmpeg, system or Pillow error, without numbers and file names."""
    return (getattr(error, "strerror", None) or str(error).split("'")[0]).strip().rstrip(":").lower()
