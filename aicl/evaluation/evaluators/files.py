"""Files of evaluators: found locally, never fetched."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError

from lvdm.errors import CheckpointError, ConfigError


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
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder} cannot be loaded as {kind.__name__}: {first_line}") from error
