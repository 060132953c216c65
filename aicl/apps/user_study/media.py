"""The copies that a study shows: nothing about a file tells which model made it.

Every video is decoded and written again in one way. So any format that we can read plays in any browser, and file
name, dates, encoder and metadata are the same for both sides.
"""

import os
from pathlib import Path

from lvdm.errors import VideoError
from lvdm.video import VideoInfo, open_video, write_video

_MAX_BYTES = 2 * 1024**3  # of decoded frames, which are in memory at once


def copy_path(folder: str | os.PathLike[str], sha256: str) -> Path:
    """Where the copy of a video with this digest lies."""
    return Path(folder) / f"{sha256[:32]}.mp4"


def make_copy(source: str | os.PathLike[str], sha256: str, folder: str | os.PathLike[str]) -> VideoInfo:
    """Write the copy of `source` unless it is there already; returns what `source` holds.

    Raises VideoError where the video is broken or far too long for a study.
    """
    video, target = open_video(source), copy_path(folder, sha256)
    info = video.info
    if info.num_frames * info.height * info.width * 3 > _MAX_BYTES:
        raise VideoError(f"{source}: is too long to be compared by eye ({info.num_frames} frames); cut it to a clip")
    if not target.exists():
        steady, _ = video.choose(info.num_frames, fps=info.fps)  # of a varying rate: shown at the right times
        write_video(target, video.read(steady), info.fps)
        os.utime(target, (0, 0))  # a server sends this date
    return info


def look_alike(first: VideoInfo, second: VideoInfo) -> bool:
    """Whether two videos have the same size, length and frame rate, by which one could tell them apart otherwise."""
    same_rate = abs(first.fps - second.fps) < 0.05 * first.fps  # GIF rounds its times
    shape = (first.width, first.height, first.num_frames)
    return same_rate and shape == (second.width, second.height, second.num_frames)
