"""SHA-256 of files, folders and lists: what identifies models and videos, and tells whether they are still whole."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from lvdm.errors import CheckpointError, UserError
from lvdm.files import atomic_path, write_json

CACHED_FILES = 1000  # hashes kept, the newest
_END = 64 * 1024  # bytes of a file's beginning, and of its end
SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it


def file_hash(path: str | os.PathLike[str], kind: type[UserError] = CheckpointError) -> str:
    """SHA-256 of a file, in hexadecimal. Raises an error of this kind where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror}") from error


def files_hash(folder: str | os.PathLike[str], files: Sequence[Path] | None = None) -> str:
    """SHA-256 over the names and contents of all files of a folder, or of these, in hexadecimal."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if files is None else files
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


@dataclass(frozen=True)
class FileIdentity:
    """By what a file is known again without reading all of it.

    size: in bytes. modified: when it was last written, in ns since 1970. ends: SHA-256 of its first and last 64 KiB.
    The last two are None where only the size was kept.
    """

    size: int
    modified: int | None = None
    ends: str | None = None

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Of the file that is there; None where it cannot be read."""
        try:
            status = path.stat()
            return cls(status.st_size, status.st_mtime_ns, _ends_hash(path, status.st_size, status.st_mtime_ns))
        except OSError:
            return None

    def may_be(self, path: Path) -> bool:
        """Whether the file at `path` is this one as far as one can tell: True where it is not at hand.

        A copy often has another time. So where only that differs, its two ends are read.
        """
        try:
            status = path.stat()
            if status.st_size != self.size:
                return False
            if self.ends is None or status.st_mtime_ns == self.modified:
                return True
            return _ends_hash(path, self.size, status.st_mtime_ns) == self.ends
        except OSError:
            return True

    def entries(self) -> dict[str, str]:
        """As `from_entries` reads it."""
        kept = {"source": self.size, "source_modified": self.modified, "source_ends": self.ends}
        return {name: str(value) for name, value in kept.items() if value is not None}

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Self | None:
        """What `entries` wrote, among others; None where there is none."""
        size, modified = (_number(entries.get(name)) for name in ("source", "source_modified"))
        ends = entries.get("source_ends")
        return None if size is None else cls(size, modified, None if ends is None else str(ends))


def _number(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,20}", text) else None


@lru_cache(maxsize=2**16)  # of a copied data set every sample of a training asks
def _ends_hash(path: Path, size: int, modified: int) -> str:
    """Of the first and the last bytes of a file of this size that was written at this time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(_END))
        file.seek(max(file.tell(), size - _END))
        digest.update(file.read(_END))
    return digest.hexdigest()


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
