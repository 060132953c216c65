"""SHA-256 of files, folders and lists: what identifies models and videos, and tells whether they are still whole."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from lvdm.errors import CheckpointError
from lvdm.files import atomic_path

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal. Raises CheckpointError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def files_hash(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over the names and contents of all files of a folder, in hexadecimal."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return text_hash(f"{path.relative_to(folder).as_posix()} {file_hash(path)}" for path in files)


def text_hash(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, in hexadecimal: what identifies a list of prompts or of videos."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_sums(folder: str | os.PathLike[str], pattern: str = "*") -> None:
    """Write SHA256SUMS: a line "hash  path" for each file below `folder` whose name matches `pattern`."""
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob(pattern) if path.is_file() and path.name != SUMS)
    lines = [f"{file_hash(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    with atomic_path(folder / SUMS) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def check_sums(folder: str | os.PathLike[str]) -> None:
    """Raise CheckpointError unless all files in `folder` are there and as `write_sums` found them."""
    folder = Path(folder)
    try:
        lines = (folder / SUMS).read_bytes().decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / SUMS} cannot be read") from error
    if not lines:
        raise CheckpointError(f"{folder / SUMS} is empty")
    for line in lines:
        found = re.fullmatch(r"([0-9a-f]{64})  ([^\0]+)", line)
        if not found or Path(found[2]).is_absolute() or ".." in Path(found[2]).parts:
            raise CheckpointError(f"{folder / SUMS} is damaged")
        if file_hash(folder / found[2]) != found[1]:
            raise CheckpointError(f"{folder / found[2]} is damaged: it does not have the checksum in {SUMS}")
