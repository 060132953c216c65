"""SHA-256 of files, folders and lists: what identifies models and videos, and tells whether they are still whole."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lvdm.errors import CheckpointError, UserError
from lvdm.files import atomic_path, write_json

CACHED_FILES = 1000  # hashes kept, the newest
SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it


def file_hash(path: str | os.PathLike[str], kind: type[UserError] = CheckpointError) -> str:
    """SHA-256 of a file, in hexadecimal. Raises an error of this kind where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror}") from error


def files_hash(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over the names and contents of all files of a folder, in hexadecimal."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return text_hash(f"{path.relative_to(folder).as_posix()} {file_hash(path)}" for path in files)


def text_hash(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, in hexadecimal: what identifies a list of prompts or of videos."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def cached_hash(path: str | os.PathLike[str]) -> str:
    """`file_hash`, kept in the user's cache folder for as long as the file keeps its place, size and time of change.

    Large weights are read once in this way, not for every video. A cache that cannot be read or written is no error.
    """
    file = Path(path).resolve()
    try:
        status = file.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    key = f"{file} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
    known = _read_cache()
    if key not in known:
        known[key] = file_hash(file)
        with suppress(OSError, UserError):
            write_json(_cache_file(), dict(list(known.items())[-CACHED_FILES:]))
    return known[key]


def _read_cache() -> dict[str, str]:
    try:
        content = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    strings = isinstance(content, dict) and all(isinstance(value, str) for value in content.values())
    return content if strings else {}


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aicl" / "sha256.json"


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
