"""Weights of measuring networks: found locally, never fetched, and known by their hash."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from lvdm.errors import CheckpointError, ConfigError


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal. Raises CheckpointError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def files_hash(folder: str | os.PathLike) -> str:
    """SHA-256 over the names and contents of all files of a folder, in hexadecimal."""
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return text_hash(f"{path.relative_to(folder).as_posix()} {file_hash(path)}" for path in files)


def text_hash(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, in hexadecimal: what identifies a list of prompts or of videos."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def import_transformers() -> ModuleType:
    """The library, or a ConfigError that says how to get it."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("this network needs the library transformers: pip install transformers") from error
    return transformers


def pretrained(kind: Any, folder: str | os.PathLike) -> Any:
    """`kind.from_pretrained` of a local folder; the network is never asked. Raises CheckpointError."""
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder} is no folder: download the model's files there first")
    try:
        return kind.from_pretrained(os.fspath(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be loaded as {kind.__name__}: {str(error).splitlines()[0]}") from error
