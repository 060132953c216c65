"""Folders that DeepSpeed saved, stages 1 and 2: the module's weights, from the float32 copies of the optimizer.

`latest` names the folder of the last checkpoint; Lightning calls it `checkpoint`. In it `mp_rank_00_model_states.pt`
holds the module in the precision of the run, and the names and shapes of what was trained; each rank's
`*_optim_states.pt` a part of the float32 weights, of which all parts in order are one flat tensor for each group.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvdm.bases.loading import is_base
from lvdm.errors import CheckpointError
from lvdm.outside import read_text

MODEL_FILE = "mp_rank_00_model_states.pt"
_STAGE_3 = "zero_pp_rank_0_mp_rank_00_model_states.pt"


def read_deepspeed(folder: Path, load: Callable[[Path], Any]) -> dict[str, Tensor]:
    """The entries of the module in a folder of DeepSpeed's, float32 where the optimizer's copies are there.

    `load` opens one of its pickles. Raises CheckpointError for a folder that is none, is incomplete, or of stage 3.
    """
    place = _find(folder)
    states = load(place / MODEL_FILE)
    module = states.get("module") if isinstance(states, dict) else None
    if not isinstance(module, dict) or not all(isinstance(value, Tensor) for value in module.values()):
        raise CheckpointError(f"{place / MODEL_FILE} holds no module: it is no checkpoint of DeepSpeed")
    parts = sorted(place.glob("*_optim_states.pt"), key=_rank)
    return module | _float32(states.get("param_shapes"), [_groups(load(path), path) for path in parts], place)


def _find(folder: Path) -> Path:
    """The folder of the last checkpoint in a folder of DeepSpeed's or Lightning's."""
    places = [folder, folder / "checkpoint"]
    if (folder / "latest").is_file():
        name = read_text(folder / "latest", CheckpointError, limit=4096).strip()
        if not name or "/" in name or name in (".", ".."):
            raise CheckpointError(f"{folder / 'latest'} does not name a folder beside it: the checkpoint is damaged")
        places.insert(0, folder / name)
    for place in places:
        if (place / MODEL_FILE).is_file():
            return place
    if any((place / _STAGE_3).is_file() for place in places):
        raise CheckpointError(
            f"{folder} was saved by DeepSpeed's stage 3, in pieces: merge them with the zero_to_fp32.py that lies in it"
        )
    if is_base(folder):
        raise CheckpointError(f"{folder} is a model of diffusers, which needs no conversion: give it as the base model")
    raise CheckpointError(
        f"{folder} is a folder without {MODEL_FILE}, so no checkpoint of DeepSpeed: give a weights file"
    )


def _rank(path: Path) -> int:
    found = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(found[1]) if found else 0


def _groups(content: Any, path: Path) -> list[Tensor]:
    """One rank's parts of the flat float32 weights, one for each group of parameters."""
    state = content.get("optimizer_state_dict") if isinstance(content, dict) else None
    groups = state.get("single_partition_of_fp32_groups") if isinstance(state, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, Tensor) for group in groups):
        raise CheckpointError(
            f"{path} holds no float32 weights of stage 1 or 2: the checkpoint is damaged, or of stage 3"
        )
    return groups


def _float32(shapes: Any, ranks: list[list[Tensor]], place: Path) -> dict[str, Tensor]:
    if not ranks:
        return {}
    if not isinstance(shapes, list) or not all(isinstance(group, dict) for group in shapes):
        raise CheckpointError(f"{place / MODEL_FILE} does not say what was trained: the checkpoint is damaged")
    entries = {}
    for number, group in enumerate(shapes):
        if any(len(parts) != len(shapes) for parts in ranks):
            raise CheckpointError(f"{place}: its ranks hold other groups of weights than the module: files are missing")
        flat = torch.cat([parts[number].flatten() for parts in ranks])
        start = 0
        for name, shape in group.items():
            count = torch.Size(shape).numel()
            if start + count > len(flat):
                raise CheckpointError(f"{place} is incomplete: the float32 weights of some ranks are missing")
            entries[name] = flat[start : start + count].view(torch.Size(shape))
            start += count
    return entries
