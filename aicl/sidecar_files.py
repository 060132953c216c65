"""Files that our scripts write beside a video NAME.mp4: NAME-compare.mp4 and NAME-reference.mp4."""

from pathlib import Path

COMPARISON = "-compare"  # references, base model and AICL side by side
REFERENCE = "-reference"  # what the video is compared with


def sidecar(video: Path, ending: str) -> Path:
    """The file of this kind beside a video, or beside a folder of frames."""
    return video.with_stem(video.stem + ending)


def is_sidecar(path: Path) -> bool:
    """Whether a file is one of them, and its video is there."""
    return any(
        path.stem.endswith(ending) and path.with_stem(path.stem.removesuffix(ending)).is_file()
        for ending in (COMPARISON, REFERENCE)
    )
