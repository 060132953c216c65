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
    return transformers


def pretrained(kind: Any, folder: str | os.PathLike[str]) -> Any:
    """`kind.from_pretrained` of a local folder, a tokenizer or a processor; nothing is ever fetched.

    Raises CheckpointError in one sentence.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder} is no folder: download the model's files into it first")
    return _load(kind, folder)


def pretrained_model(kind: Any, folder: str | os.PathLike[str]) -> Any:
    """The same of a network. Raises CheckpointError also where weights are missing, which would be random ones."""
    if not Path(folder).is_dir():
        raise CheckpointError(f"{folder} is no folder: download the model's files into it first")
    model, report = _load(kind, folder, output_loading_info=True)
    if lacking := sorted({str(key) for name in ("missing_keys", "mismatched_keys") for key in report[name]}):
        raise CheckpointError(
            f"{folder} cannot be used as {kind.__name__}: it has no weights for {lacking[0]}"
            + (f" and {len(lacking) - 1} others" if len(lacking) > 1 else "")
            + ", so it was saved from another kind of model"
        )
    return model


def _load(kind: Any, folder: str | os.PathLike[str], **options: Any) -> Any:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its reports on weights are ours to judge, see `pretrained_model`
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(os.fspath(folder), local_files_only=True, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder} cannot be loaded as {kind.__name__}: {first_line}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
