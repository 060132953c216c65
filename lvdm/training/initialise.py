"""Weights that the training of a base model starts from: those of the same model, or what fits of another one."""

import re
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from lvdm.checkpoints import load_strict
from lvdm.checkpoints.folder import read_model_config, read_part
from lvdm.checkpoints.integrity import check_values
from lvdm.errors import CheckpointError
from lvdm.models.components import Components

# What LVDM does in one block, VideoCrafter does in two: of frames, which these entries are, and along them.
_VIDEOCRAFTER_NAMES = {
    "spatial_norm": "norm1", "spatial_attn": "attn1", "cross_norm": "norm2", "cross_attn": "attn2", "ff_norm": "norm3",
}  # fmt: skip


def initialise(components: Components, folder: Path) -> None:
    """Give all parts but the autoencoder the weights of the model folder `folder`, in float32.

    Raises CheckpointError where it is missing, damaged or of other sizes.
    """
    for part, module in components.modules().items():
        if part != "autoencoder":
            initialise_part(module, folder, part)


def initialise_part(module: nn.Module, folder: Path, part: str) -> None:
    """Give one part of a model the weights that `folder` has of it, in float32.

    Raises CheckpointError where they are missing, damaged or of other sizes.
    """
    state = read_part(folder, part, dtype=torch.float32)
    load_strict(module, state, f"the entries of {part} in {folder} and those of model.config")


def initialise_what_fits(components: Components, folder: Path) -> dict[str, float]:
    """The same from a model of another layout: entries of the same name and shape are taken, the rest stays as it is.

    An LVDM's attention within frames and to the text is taken over by a VideoCrafter. Returns, and logs, the share of
    each part's numbers that were taken. Raises CheckpointError where the folder is missing or damaged, or nothing fits.
    """
    lvdm = read_model_config(folder).family == "lvdm"
    shares = {}
    for part, module in components.modules().items():
        if part == "autoencoder":
            continue
        state: dict[str, Tensor] = {}
        if any(folder.glob(f"{part}*.safetensors")):
            state = read_part(folder, part, dtype=torch.float32)
        expected = module.state_dict()
        if lvdm and part == "unet":
            state |= {_videocrafter_name(name): value for name, value in state.items()}
        taken = {n: value for n, value in state.items() if n in expected and value.shape == expected[n].shape}
        check_values({name: expected[name] for name in taken}, taken, f"the entries of {part} in {folder}")
        module.load_state_dict(expected | taken)
        shares[part] = sum(v.numel() for v in taken.values()) / sum(v.numel() for v in expected.values())
    if not any(shares.values()):
        raise CheckpointError(f"nothing in {folder} fits model.config: training cannot start from it")
    told = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    rank_zero_info(f"weights taken from {folder}: {told}; the others are random")
    return shares


def _videocrafter_name(name: str) -> str:
    return re.sub(r"(?<=\.)(\w+)(?=\.)", lambda part: _VIDEOCRAFTER_NAMES.get(part[1], part[1]), name)
