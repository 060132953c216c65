"""What a visitor may send: a video of a few seconds, or an image. Everything else gets a sentence."""

import secrets
from collections.abc import Iterable
from pathlib import Path

from aicl.apps.web_demo.sessions import Session, Slot
from aicl.options import Reference
from aicl.reference_videos import check_reference
from lvdm.errors import DataError, UserError, VideoError
from lvdm.files import make_folder
from lvdm.video import probe, read_image

MAX_BYTES = 50 * 2**20  # of one file
MAX_SECONDS = 60.0
MAX_FRAMES = 3600
MAX_SIDE = 4096  # pixels
MAX_FILES = 40  # of one session
MAX_NAME = 80  # characters

# How files of each kind begin: (offset, bytes, ending). Nothing else is given to a decoder.
_VIDEOS = (
    (4, b"ftyp", ".mp4"),
    (0, b"\x1aE\xdf\xa3", ".webm"),  # Matroska, too
    (0, b"GIF8", ".gif"),
    (8, b"AVI ", ".avi"),
)
_IMAGES = ((0, b"\x89PNG\r\n", ".png"), (0, b"\xff\xd8\xff", ".jpg"), (8, b"WEBP", ".webp"))
VIDEO_KINDS = "MP4, MOV, WebM, MKV, GIF or AVI"
IMAGE_KINDS = "PNG, JPEG or WebP"


def reserve(session: Session, name: str) -> tuple[Path, str]:
    """A new place for a file that is about to come, and the name that the page calls it by.

    Raises DataError where the session has sent too much already.
    """
    folder = make_folder(session.uploads)
    if sum(1 for _ in folder.iterdir()) >= MAX_FILES:
        raise DataError(
            f"you have sent {MAX_FILES} files, which is all that is kept for one visitor: try again tomorrow"
        )
    shown = "".join(letter for letter in name if letter.isprintable()).strip()[-MAX_NAME:] or "your clip"
    return folder / f".{secrets.token_hex(8)}", shown


def accept_video(session: Session, file: Path, name: str) -> Slot:
    """Check a file that arrived at a place of `reserve`, keep it, and add it to the references.

    Raises DataError or VideoError with the visitor's name of the file; then it is removed.
    """
    try:
        kept = _kept(file, _kind(file, _VIDEOS, f"a video ({VIDEO_KINDS})", name))
        try:
            _check_video(kept, name)
            slot = Slot(kept.stem, str(kept), name, "your own clip")
            session.add([slot])
        except UserError as error:
            kept.unlink(missing_ok=True)
            raise type(error)(str(error).replace(str(kept), name)) from error
    finally:
        file.unlink(missing_ok=True)
    return slot


def accept_image(session: Session, file: Path, name: str) -> None:
    """The same for the first frame of an image-to-video model."""
    try:
        kept = _kept(file, _kind(file, _IMAGES, f"an image ({IMAGE_KINDS})", name))
        try:
            _check_sides(read_image(kept).shape[:2], name)
        except UserError as error:
            kept.unlink(missing_ok=True)
            raise type(error)(str(error).replace(str(kept), name)) from error
        session.set_image(kept, name)
    finally:
        file.unlink(missing_ok=True)


def _kind(file: Path, kinds: Iterable[tuple[int, bytes, str]], wanted: str, name: str) -> str:
    with file.open("rb") as opened:
        begin = opened.read(16)
    for offset, mark, ending in kinds:
        if begin[offset : offset + len(mark)] == mark:
            return ending
    raise DataError(f"{name} is not {wanted}: choose another file")


def _kept(file: Path, ending: str) -> Path:
    return file.rename(file.with_name(file.name.lstrip(".") + ending))


def _check_video(path: Path, name: str) -> None:
    info = probe(path)
    _check_sides((info.height, info.width), name)
    if info.num_frames > MAX_FRAMES or info.num_frames / info.fps > MAX_SECONDS:
        seconds = info.num_frames / info.fps
        raise VideoError(
            f"{name} lasts {seconds:.0f} seconds ({info.num_frames} frames): cut it to the action, at most "
            f"{MAX_SECONDS:.0f} seconds and {MAX_FRAMES} frames"
        )
    check_reference(Reference(path))


def _check_sides(size: Iterable[int], name: str) -> None:
    height, width = size
    if max(height, width) > MAX_SIDE:
        raise VideoError(f"{name} is {width}x{height} pixels large: make it smaller, at most {MAX_SIDE} on a side")
