"""Opening weight files: published pickles and safetensors, always as a flat mapping from entry name to tensor.

Nothing in a pickle is ever executed: PyTorch's restricted reader rebuilds tensors, and any other object that a trainer
left in the file (callbacks, configurations) becomes an empty `Placeholder`. Tensors are mapped from the disk, not read:
an entry takes memory only while it is used.
"""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lvdm.errors import CheckpointError

State = dict[str, torch.Tensor]

# DeepSpeed's checkpoints hold the module under "module", each name behind the wrapper's own attribute.
DEEPSPEED_PREFIX = "_forward_module."
# LitEma stores a copy of `model.*` with the dots of each name removed, and two counters.
MODEL_PREFIX, EMA_PREFIX = "model.", "model_ema."

BLOCKED_MODULES = ("os", "posix", "nt", "sys")  # PyTorch's restricted reader refuses them under any name


class Placeholder:
    """Stands for an object of a checkpoint that is no tensor: takes any arguments and state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_checkpoint(path: str | os.PathLike, *, ema: bool = False) -> State:
    """The entries of a weights file, without the wrappers that trainers put around them, mapped to memory.

    `ema=True` puts the moving averages in the place of the diffusion model's weights; the averages themselves
    (`model_ema.*`) are left out in any case. Raises CheckpointError where the file is missing, no checkpoint or
    incomplete, or holds no averages though they were asked for.
    """
    path = Path(path)
    _check_kind(path)
    content = _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)
    state = _unwrap(content, path)
    averages = {name: tensor for name, tensor in state.items() if name.startswith(EMA_PREFIX)}
    state = {name: tensor for name, tensor in state.items() if name not in averages}
    return _with_averages(state, averages, path) if ema else state


def _check_kind(path: Path) -> None:
    """Tell apart, by the first bytes, the usual wrong files: each gets a sentence of its own."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder where a weights file (.ckpt, .pt or .safetensors) is expected")
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    with path.open("rb") as file:
        head = file.read(512)
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


def _open_pickle(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # the format of torch < 1.6 cannot be mapped and is read into memory
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if mapped else []
        if programs := [name for name in foreign if name.split(".")[0] in BLOCKED_MODULES]:
            raise CheckpointError(f"{path} refers to {programs[0]}, which can run programs: do not trust this file")
        with torch.serialization.safe_globals([(type(name, (Placeholder,), {}), name) for name in foreign]):
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged or no PyTorch checkpoint: download it again") from error


def _open_safetensors(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no complete safetensors file ({error}): download it again") from error


def _unwrap(content: Any, path: Path) -> State:
    """Strip the wrappers `state_dict` (Lightning) and `module` (DeepSpeed) and keep the tensors."""
    for wrapper in ("module", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a mapping from entry names to tensors")
    state = {
        name.removeprefix(DEEPSPEED_PREFIX): value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not state:
        keys = ", ".join(map(repr, list(content)[:5])) or "nothing"
        raise CheckpointError(f"{path} holds no tensors (its first keys: {keys})")
    return state


def _with_averages(state: State, averages: State, path: Path) -> State:
    if not averages:
        raise CheckpointError(f"{path} holds no moving averages (model_ema.*): convert it without them")
    names = {EMA_PREFIX + name.removeprefix(MODEL_PREFIX).replace(".", ""): name for name in state}
    # Only trainable parameters are averaged, so an average without its weight is an error but not the reverse.
    counters = {EMA_PREFIX + "decay", EMA_PREFIX + "num_updates"}
    unknown = sorted(averages.keys() - names.keys() - counters)
    if unknown:
        raise CheckpointError(
            f"{path} averages entries that it does not hold: {', '.join(unknown[:3])} ({len(unknown)})"
        )
    return state | {names[name]: tensor for name, tensor in averages.items() if name not in counters}
