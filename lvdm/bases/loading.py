"""Base models of diffusers, from a folder or from the Hugging Face Hub."""

import contextlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lvdm.errors import CheckpointError, ConfigError
from lvdm.outside import read_object

INDEX = "model_index.json"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INSTALL = 'needs the extra "diffusers": pip install -e ".[diffusers]"'


def is_base(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a pipeline of diffusers."""
    return (Path(folder) / INDEX).is_file()


def is_part(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is one part of a pipeline of diffusers, in its place."""
    return is_base(Path(folder).parent) and (Path(folder) / "config.json").is_file()


def download_base(name: str, **options: Any) -> Path:
    """The folder of a pipeline OWNER/NAME of the Hub, of which diffusers fetches what it needs; options: its own.

    Raises ConfigError without the extra, and what the network's libraries do.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(f"{name} is a model of diffusers, which {_INSTALL}") from error
    reader: Any = diffusers.DiffusionPipeline  # its methods have no annotations
    return Path(reader.download(name, use_safetensors=True, **options))


def load_base(
    folder: str | os.PathLike[str], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Any:
    """A pipeline of diffusers from its folder, frozen, as a `DiffusersPipeline`; dtype None: each part as it is stored.

    Only safetensors are read, and no code of the folder's runs. Raises CheckpointError for a folder that diffusers
    cannot read, ConfigError without the extra, or for a pipeline that is not supported.
    """
    index = read_object(Path(folder) / INDEX, CheckpointError)
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(f"{folder} is a model of diffusers, which {_INSTALL}") from error
    name = str(index.get("_class_name"))
    found: Any = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ConfigError(f"{folder} holds a {name}, which diffusers {diffusers.__version__} does not have: update it")
    parts = {part: value for part, value in index.items() if isinstance(value, list) and value and value[0]}
    if gone := [part for part in parts if not (Path(folder) / part).is_dir()]:
        raise CheckpointError(f"{folder} is a {name} without its {' and '.join(gone)}: fetch or copy the whole folder")
    reader: Any = found  # its methods have no annotations
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        pipe = reader.from_pretrained(str(folder), dtype=dtype or _stored_dtypes(Path(folder), parts), **options)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder} cannot be read as a {name}: {first}") from error
    return wrap(pipe, device)


def _stored_dtypes(folder: Path, parts: Iterable[str]) -> dict[str, torch.dtype]:
    """The dtype of each part's largest tensor, for diffusers, which makes float32 of what it is told nothing about."""
    found = {}
    for part in parts:
        files = sorted((folder / part).glob("*.safetensors"), key=lambda path: (len(path.name), path.name))
        if not files:
            continue
        with contextlib.suppress(SafetensorError, OSError), safe_open(files[0], "pt") as file:  # diffusers will say it
            slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 (it is no mapping)
            largest = max(slices, key=lambda tensor: math.prod(tensor.get_shape()), default=None)
            if largest is not None and largest.get_dtype() in _DTYPES:
                found[part] = _DTYPES[largest.get_dtype()]
    return found


def wrap(pipe: Any, device: torch.device | str | None = None) -> Any:
    """A pipeline of diffusers that is in memory, frozen, as a `DiffusersPipeline`. Raises ConfigError, see there."""
    from lvdm.bases.pipeline import DiffusersPipeline

    base = DiffusersPipeline(pipe)
    base.components.to(device)
    base.components.eval()
    return base
