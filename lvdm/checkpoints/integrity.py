"""Whether tensors are what was written, and numbers that a network can use."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lvdm.errors import CheckpointError
from lvdm.files import atomic_path
from lvdm.finite import is_finite

HASH_KEY = "sha256"  # in the metadata of a safetensors file: the hash of its tensors
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 3  # names in a message


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, copied only where it does not lie in one piece on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def save_hashed(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically, with the tensors' hash in its metadata: equal content, equal bytes."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={**metadata, HASH_KEY: tensors_hash(state)})
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Bring a file's metadata, which safetensors writes in an order of chance, into that of its names, in place."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()  # as compact as it was
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))


def check_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: object) -> None:
    """Raise CheckpointError if a file's metadata has a hash and its tensors have another; older files have none."""
    if HASH_KEY in metadata and metadata[HASH_KEY] != tensors_hash(tensors):
        raise CheckpointError(f"{where} is damaged: its tensors do not have the checksum that it carries; get it again")


def check_values(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError for entries of `found` of another kind of number than `expected`, or not finite.

    Where a floating-point number is expected, any of the usual precisions will do; elsewhere the type must be the same
    up to its width. `what` names the model and the file in the message.
    """
    wrong = [name for name in expected if not _same_kind(expected[name].dtype, found[name].dtype)]
    if wrong:
        kinds = ", ".join(f"{name} is {_name(found[name])}" for name in wrong[:_SHOWN])
        raise CheckpointError(
            f"{what} do not fit: {len(wrong)} of the wrong type ({kinds}); weights are float32, float16 or bfloat16"
        )
    broken = [name for name in expected if not is_finite(found[name])]
    if broken:
        shown = ", ".join(broken[:_SHOWN])
        raise CheckpointError(
            f"{what}: {len(broken)} hold NaN or infinity ({shown}); the file is damaged or its training went wrong: "
            "get it again, or take an earlier checkpoint"
        )


def _same_kind(expected: torch.dtype, found: torch.dtype) -> bool:
    if expected.is_floating_point:
        return found in FLOATS
    return (expected == torch.bool) == (found == torch.bool) and not (found.is_floating_point or found.is_complex)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
