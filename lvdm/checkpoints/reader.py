"""Opening weight files: published pickles and safetensors, always as a flat mapping from entry name to tensor.

Nothing in a pickle is ever executed: PyTorch's restricted reader rebuilds tensors, and any other object that a trainer
left in the file (callbacks, configurations) becomes an empty `Placeholder`. Tensors are mapped from the disk, not read:
an entry takes memory only while it is used.
"""

import os
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from lvdm.checkpoints.deepspeed import read_deepspeed
from lvdm.checkpoints.diffusers_layout import find_unet, is_diffusers, read_unet, to_published
from lvdm.errors import CheckpointError
from lvdm.outside import checked_path, open_tensors

State = dict[str, torch.Tensor]

# What DeepSpeed, torch.compile and DistributedDataParallel put into names.
_WRAPPERS = re.compile(r"(?:(?<=^)|(?<=\.))(?:_forward_module|_orig_mod)\.")
_PARALLEL = re.compile(r"^((?:(?:diffusion_|first_stage_|cond_stage_)?model\.)*)(?:module\.)+")
# LitEma stores a copy of `model.*` with the dots of each name removed, and two counters.
MODEL_PREFIX, EMA_PREFIX = "model.", "model_ema."
_COUNTERS = {EMA_PREFIX + "decay", EMA_PREFIX + "num_updates"}
_TEXT_BYTES = frozenset(b"\t\n\r") | frozenset(range(32, 127))

BLOCKED_MODULES = ("os", "posix", "nt", "sys")  # PyTorch's restricted reader refuses them under any name


class Placeholder:
    """Stands for an object of a checkpoint that is no tensor: takes any arguments and state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_checkpoint(path: str | os.PathLike[str], *, ema: bool = False, known: Collection[str] = ()) -> State:
    """The entries of a weights file, without the wrappers that trainers put around them, mapped to memory.

    `path` is a .ckpt, .pt or .safetensors file, or a folder that DeepSpeed or diffusers saved; a UNet in diffusers'
    layout gets its published names. What wrappers of a module leave in names (`module.`, `_orig_mod.`,
    `_forward_module.`) is removed. `ema=True` puts the moving averages in the place of the diffusion model's weights;
    the averages themselves (`model_ema.*`) are left out in any case. A file of averages alone gives these; since their
    names have lost their dots, `known` must list the model's published names.
    Raises CheckpointError where the file is missing, no checkpoint or incomplete, or holds no averages though they were
    asked for.
    """
    path = checked_path(path, CheckpointError)
    if path.is_dir():
        unet = find_unet(path)
        content = read_unet(unet, _open_file) if unet else read_deepspeed(path, _open_pickle)
    else:
        content = _open_file(path)
    state = _unwrap(content, path)
    if is_diffusers(state):
        return to_published(state)
    averages = {name: tensor for name, tensor in state.items() if name.startswith(EMA_PREFIX)}
    weights = {name: tensor for name, tensor in state.items() if name not in averages}
    if averages and not any(name.startswith(MODEL_PREFIX) for name in weights):
        return weights | _averages_alone(averages, known, path)
    return _with_averages(weights, averages, path) if ema else weights


def _open_file(path: Path) -> Any:
    _check_kind(path)
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def _check_kind(path: Path) -> None:
    """Tell apart, by the first bytes, the usual wrong files: each gets a sentence of its own."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if not head:
        raise CheckpointError(f"{path} is empty: download it again")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint: download the file itself ('resolve', not 'blob')"
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is truncated ({path.stat().st_size:,} bytes, no end record): download it again")
    if path.suffix != ".safetensors" and all(byte in _TEXT_BYTES for byte in head):
        raise CheckpointError(f"{path} is a text file, not a checkpoint: give the .ckpt, .pt or .safetensors file")


def _open_pickle(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # the format of torch < 1.6 cannot be mapped and is read into memory
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if mapped else []
        if programs := [name for name in foreign if name.split(".")[0] in BLOCKED_MODULES]:
            raise CheckpointError(f"{path} refers to {programs[0]}, which can run programs: do not trust this file")
        with torch.serialization.safe_globals([(type(name, (Placeholder,), {}), name) for name in foreign]):
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a pickle that is cut short or changed makes its reader fail in any way there is
        raise CheckpointError(f"{path} is damaged or no PyTorch checkpoint: download it again") from error


def _open_safetensors(path: Path) -> State:
    with open_tensors(path, CheckpointError, remedy="download it again") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def _unwrap(content: Any, path: Path) -> State:
    """Strip the wrappers `state_dict` (Lightning) and `module` (DeepSpeed), or `ema` alone, and keep the tensors."""
    for wrapper in ("module", "state_dict", "ema", "ema_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a mapping from entry names to tensors")
    return _unwrapped_names(content, path)


def _unwrapped_names(content: Mapping[Any, Any], path: Path) -> State:
    """The tensors, without what wrappers left in their names."""
    state = {
        name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not state:
        keys = ", ".join(repr(key)[:60] for key in list(content)[:5]) or "nothing"
        raise CheckpointError(f"{path} holds no tensors (its first keys: {keys})")
    names = {name: _PARALLEL.sub(r"\1", _WRAPPERS.sub("", name)) for name in state}
    if len(set(names.values())) < len(names):
        raise CheckpointError(f"{path} holds entries twice, with and without the prefix of a wrapper: keep one of them")
    return {names[name]: value for name, value in state.items()}


def _averages_alone(averages: State, known: Collection[str], path: Path) -> State:
    """The weights in a file of averages alone. Raises CheckpointError where the names cannot be told."""
    if not known:
        raise CheckpointError(f"{path} holds only moving averages: say of which model, with --family or --config")
    names = {EMA_PREFIX + name.removeprefix(MODEL_PREFIX).replace(".", ""): name for name in known}
    unknown = sorted(averages.keys() - names.keys() - _COUNTERS)
    if unknown:
        shown = f"{', '.join(unknown[:3])} ({len(unknown)})"
        raise CheckpointError(f"{path} averages entries that the model does not have: {shown}")
    return {names[name]: tensor for name, tensor in averages.items() if name not in _COUNTERS}


def _with_averages(state: State, averages: State, path: Path) -> State:
    if not averages:
        raise CheckpointError(f"{path} holds no moving averages (model_ema.*): convert it without them")
    names = {EMA_PREFIX + name.removeprefix(MODEL_PREFIX).replace(".", ""): name for name in state}
    # Only trainable parameters are averaged, so an average without its weight is an error but not the reverse.
    unknown = sorted(averages.keys() - names.keys() - _COUNTERS)
    if unknown:
        raise CheckpointError(
            f"{path} averages entries that it does not hold: {', '.join(unknown[:3])} ({len(unknown)})"
        )
    return state | {names[name]: tensor for name, tensor in averages.items() if name not in _COUNTERS}
