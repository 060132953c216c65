"""Loading without tolerance: every difference between a model and a file is an error that a person can read."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lvdm.checkpoints.integrity import check_values
from lvdm.errors import CheckpointError

ALIGNMENT = 64  # bytes, of PyTorch's own allocator on a CPU
GROUPS_SHOWN = 8  # of each kind of difference; a wrong family differs in hundreds of entries


def check_entries(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise CheckpointError, listing missing, unexpected and wrongly shaped entries in groups, unless both sides match.

    `expected` and `found` map entry names to tensors (on any device, meta too: only shapes are read); `what` names the
    model and the file in the message.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = {
        name: f" has {_shape(found[name])}, not {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    }
    if not (missing or unexpected or reshaped):
        return
    lines = [f"{what} do not fit: {len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} wrongly shaped"]
    for title, group in (
        ("missing", _grouped(missing)),
        ("unexpected", _grouped(unexpected)),
        ("wrongly shaped", _grouped(reshaped, reshaped)),
    ):
        if group:
            lines.append(f"  {title}:")
            lines += [f"    {line}" for line in group[:GROUPS_SHOWN]]
            if len(group) > GROUPS_SHOWN:
                lines.append(f"    and {len(group) - GROUPS_SHOWN} more groups")
    raise CheckpointError("\n".join(lines))


def load_strict(module: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Make `state` the entries of `module`, which may be on the meta device: tensors are taken over, not copied, but
    for those on a CPU that begin where PyTorch would not place them, as in a mapped file.

    Raises CheckpointError for entries that are missing, too many, of another shape or type, NaN or infinite.
    """
    expected = module.state_dict()
    check_entries(expected, state, what)
    check_values(expected, state, what)
    module.load_state_dict({name: _aligned(tensor) for name, tensor in state.items()}, strict=True, assign=True)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Itself, or a copy where PyTorch's allocator places it.

    Products may round by where a matrix begins: a loaded model would not be the saved one to the bit.
    """
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT else tensor


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _grouped(names: Iterable[str], remarks: Mapping[str, str] | None = None) -> list[str]:
    """Names that differ in their numbers only (and in no remark) become one line with a count."""
    groups: dict[str, list[str]] = {}
    for name in names:
        remark = (remarks or {}).get(name, "")
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) + remark, []).append(name + remark)
    return [members[0] if len(members) == 1 else f"{pattern} ({len(members)})" for pattern, members in groups.items()]
