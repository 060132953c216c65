"""Weights of measuring networks: found locally, never fetched."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from lvdm.errors import CheckpointError, ConfigError
from lvdm.hashing import file_hash, files_hash, text_hash

__all__ = ["file_hash", "files_hash", "import_transformers", "pretrained", "text_hash"]


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
