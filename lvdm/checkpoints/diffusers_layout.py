"""VideoCrafter's UNet in diffusers' layout (`UNet3DConditionModel` with `fps_embedding`), as others have published it.

The two differ in names alone: diffusers counts levels, layers in a level and kinds of layers, the published files
number all layers in a row.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lvdm.checkpoints.families import PREFIXES
from lvdm.errors import CheckpointError
from lvdm.outside import read_object

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model"

_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "fps_embedding.linear_1": "fps_embedding.0",
    "fps_embedding.linear_2": "fps_embedding.2",
    "conv_in": "input_blocks.0.0",
    "transformer_in": "init_attn.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PLACES = {"resnets": 0, "attentions": 1, "temp_attentions": 2}  # of a layer in its stage


def find_unet(folder: Path) -> Path | None:
    """The folder of a UNet in a folder that diffusers saved: itself, or `unet` in a pipeline's; None in any other."""
    for place in (folder, folder / "unet"):
        if (place / CONFIG).is_file() and any(place.glob(f"{WEIGHTS}*")):
            return place
    return None


def read_unet(folder: Path, load: Callable[[Path], Any]) -> dict[str, Any]:
    """All entries of a folder's weights, one file or several. Raises CheckpointError where some are missing."""
    index = next((path for path in sorted(folder.glob(f"{WEIGHTS}*.index.json"))), None)
    if index is not None:
        places = read_object(index, CheckpointError).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise CheckpointError(f"{index} is damaged (it has no map to file names): download it again")
        paths = [folder / Path(name).name for name in sorted(set(places.values()))]
    else:
        paths = [next(p for ending in (".safetensors", ".bin", "*") for p in sorted(folder.glob(WEIGHTS + ending)))]
    entries: dict[str, Any] = {}
    for path in paths:
        content = load(path)
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not a mapping from entry names to tensors")
        entries |= content
    return entries


def is_diffusers(entries: Mapping[str, Tensor]) -> bool:
    """Whether entries are those of such a UNet."""
    return "conv_in.weight" in entries and any(name.startswith("down_blocks.0.temp_convs.") for name in entries)


def to_published(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries under their published names. Raises CheckpointError for a name that such a UNet does not have."""
    layers = 1 + max(
        int(found[1]) for name in entries if (found := re.match(r"down_blocks\.\d+\.resnets\.(\d+)\.", name))
    )
    return {PREFIXES["unet"] + _published(name, layers, entries): tensor for name, tensor in entries.items()}


def _published(name: str, layers: int, entries: Mapping[str, Tensor]) -> str:
    for ours, published in _ENDS.items():
        if name.startswith(f"{ours}."):
            return published + name.removeprefix(ours)
    found = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?([a-z_]+)\.(\d+)\.(.+)", name)
    if not found:
        raise CheckpointError(f"'{name}' is no entry of a VideoCrafter UNet in diffusers' layout")
    side, level, kind, layer, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        attends = any(key.startswith(f"up_blocks.{level}.attentions.") for key in entries)
        return f"output_blocks.{level * (layers + 1) + layers}.{3 if attends else 1}.{rest}"
    stage = {
        "down_blocks": f"input_blocks.{1 + level * (layers + 1) + layer}",
        "up_blocks": f"output_blocks.{level * (layers + 1) + layer}",
        "mid_block": "middle_block",
    }[side]
    if kind == "temp_convs":
        return f"{stage}.{_place(side, 'resnets', layer)}.temopral_conv.{rest}"
    if kind not in _PLACES:
        raise CheckpointError(f"'{name}' is no entry of a VideoCrafter UNet in diffusers' layout")
    if kind == "resnets":
        part, dot, end = rest.partition(".")
        rest = f"{_RESNET.get(part, part)}{dot}{end}"
    return f"{stage}.{_place(side, kind, layer)}.{rest}"


def _place(side: str, kind: str, layer: int) -> int:
    """Where a layer stands in its stage; the middle has all its layers in one."""
    return 3 * layer if side == "mid_block" and kind == "resnets" else _PLACES[kind]
