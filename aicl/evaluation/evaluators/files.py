<<<<<<< HEAD:aicl/evaluation/evaluators/files.py
"""Files of evaluators: found locally, never fetched, and known by their SHA-256."""
=======
"""Weights of measuring networks: found locally, never fetched."""
>>>>>>> main:aicl/evaluation/weights.py

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from lvdm.errors import CheckpointError, ConfigError
from lvdm.hashing import file_hash, files_hash, text_hash

<<<<<<< HEAD:aicl/evaluation/evaluators/files.py

def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal. Raises CheckpointError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def files_hash(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over the names and contents of all files of a folder, in hexadecimal.

    Raises CheckpointError where one of them cannot be read.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return text_hash(f"{path.relative_to(folder).as_posix()} {file_hash(path)}" for path in files)


def text_hash(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, in hexadecimal: what identifies a list of prompts or of videos."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
=======
__all__ = ["file_hash", "files_hash", "import_transformers", "pretrained", "text_hash"]
>>>>>>> main:aicl/evaluation/weights.py


def require_file(path: str | os.PathLike[str], what: str, advice: str) -> Path:
    """The path of weights that are there. Raises CheckpointError, in one sentence that says what to do."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} ({what}) is not there: {advice}")
    return path


def import_transformers() -> ModuleType:
    """The library `transformers`, or a ConfigError that says how to get it."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("this network needs the library transformers: pip install transformers") from error
    return transformers  # type: ignore[no-any-return]


def pretrained(kind: Any, folder: str | os.PathLike[str]) -> Any:
    """`kind.from_pretrained` of a local folder; nothing is ever fetched. Raises CheckpointError in one sentence."""
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder} is no folder: download the model's files into it first")
    try:
        return kind.from_pretrained(os.fspath(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder} cannot be loaded as {kind.__name__}: {first_line}") from error
