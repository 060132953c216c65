"""Base models of diffusers, from a folder or from the Hugging Face Hub."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lvdm.bases.config import DiffusersConfig
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
    found, parts = _read_index(Path(folder))
    pipe = _read(found, Path(folder), dtype=dtype or _stored_dtypes(Path(folder), parts))
    return wrap(pipe, device)


def describe_base(folder: str | os.PathLike[str]) -> DiffusersConfig:
    """The config that `load_base` gives a pipeline, from its config files alone: no weights are read.

    Its networks are made on the meta device, its scheduler as it is, encoders and tokenizers not at all. Raises what
    `load_base` does, but nothing about damaged weights, encoders or tokenizers.
    """
    found, parts = _read_index(Path(folder))
    import diffusers

    given: dict[str, torch.nn.Module | None] = {}
    for part, (library, name) in parts.items():
        kind: Any = getattr(diffusers, str(name), None) if library == "diffusers" else None
        if isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin):
            with _readable(Path(folder) / part, str(name)), torch.device("meta"):
                maker: Any = kind  # its methods have no annotations
                given[part] = maker.from_config(maker.load_config(str(Path(folder) / part), local_files_only=True))
        elif part != "scheduler":
            given[part] = None
    bars: Any = diffusers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # it would speak of loading
    try:
        config: DiffusersConfig = wrap(_read(found, Path(folder), **given)).config
    finally:
        if shown:
            bars.enable_progress_bar()
    return config


def part_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files that a pipeline in a folder consists of, sorted: others may lie beside them, such as other layouts."""
    parts = _read_index(Path(folder))[1]
    found = [path for part in parts for path in (Path(folder) / part).rglob("*") if path.is_file()]
    return sorted([Path(folder) / INDEX, *found])


def _read_index(folder: Path) -> tuple[type[Any], dict[str, tuple[Any, Any]]]:
    """A pipeline's class, and the library and class of each part. Raises what `load_base` does for them."""
    index = read_object(folder / INDEX, CheckpointError)
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(f"{folder} is a model of diffusers, which {_INSTALL}") from error
    name = str(index.get("_class_name"))
    found: Any = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ConfigError(f"{folder} holds a {name}, which diffusers {diffusers.__version__} does not have: update it")
    parts = {
        part: (value[0], value[1])
        for part, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0]
    }
    if gone := [part for part in parts if not (folder / part).is_dir()]:
        raise CheckpointError(f"{folder} is a {name} without its {' and '.join(gone)}: fetch or copy the whole folder")
    return found, parts


def _read(found: type[Any], folder: Path, **options: Any) -> Any:
    """The pipeline of this class in a folder, with these options of diffusers, or parts. Raises CheckpointError."""
    reader: Any = found  # its methods have no annotations
    with _readable(folder, found.__name__):
        return reader.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, **options)


@contextlib.contextmanager
def _readable(folder: Path, name: str) -> Iterator[None]:
    """What diffusers says of a folder that it cannot read, in one sentence."""
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder} cannot be read as a {name}: {first}") from error


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
