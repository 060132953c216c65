"""What a published checkpoint is, told from its entries, and which of them belong to which part.

The models themselves are in the modules `lvdm.checkpoints.family_*`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from lvdm.errors import CheckpointError
from lvdm.registry import Registry

# Published name spaces, each of one part of our pipeline.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "autoencoder": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
    "image_encoder": "embedder.",
    "image_resampler": "image_proj_model.",
}

# Noise schedules: the ancestors store them, we rebuild them from the config. What a part itself holds beyond need is
# dropped where that part is converted.
SCHEDULE = re.compile(
    r"betas|alphas_cumprod(_prev)?|sqrt_(one_minus_|recip_|recipm1_)?alphas_cumprod|log_one_minus_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)|lvlb_weights|scale_arr|logvar"
)


Entries = Mapping[str, torch.Tensor]
"""Names and tensors of a published file; of a UNet with or without its prefix."""


@dataclass(frozen=True)
class Family:
    """A published model: the config in `configs/models` that fits it, its backbone's family, and its name for people.

    holds: whether a UNet's entries are of this model, told from marks that survive a change of width, so that a
    differently sized model of the family is recognised too. The first model that says yes is taken.
    """

    config: str
    unet: str
    title: str
    holds: Callable[[Entries], bool] = field(repr=False)


@dataclass(frozen=True)
class UNetLayout:
    """How the UNets of a backbone family are published.

    names: published name -> ours, dotted pieces of entry names that are replaced in this order. holds: whether entries
    are of this family. target: what `unet_config` in the published YAML files names, and guidance_scale: what the
    published scripts sample with and save_fps: at which rate they write videos; for `read_published_config`.
    """

    names: Mapping[str, str]
    holds: Callable[[Entries], bool]
    target: str
    guidance_scale: float
    save_fps: int


MODULES = "lvdm.checkpoints.family_"  # each adds its models and its UNets' layout
FAMILIES: Registry[Family] = Registry("published model", MODULES)
LAYOUTS: Registry[UNetLayout] = Registry("UNet family", MODULES)


def add_families(*families: Family) -> None:
    """Make published models known, under the names of their configs."""
    for family in families:
        FAMILIES.register(family.config)(family)


def detect_family(entries: Entries) -> Family | None:
    """The published model whose UNet these entries look like (with or without prefix), or None."""
    return next((family for family in FAMILIES.values() if family.holds(entries)), None)


def first_kernel(entries: Entries) -> int:
    """The dimensions of a UNet's first convolution, 4 or 5, which families differ in; 0 where there is none."""
    return next((tensor.ndim for name, tensor in entries.items() if name.endswith("input_blocks.0.0.weight")), 0)


def has(entries: Entries, mark: str) -> bool:
    """Whether some entry's name contains `mark`."""
    return any(mark in name for name in entries)


def split_parts(entries: Mapping[str, torch.Tensor], source: str) -> dict[str, dict[str, torch.Tensor]]:
    """Sort the entries of a whole published checkpoint by part (the keys of `PREFIXES`), prefixes removed.

    A file that holds a UNet alone, whose entries have no prefix, is one of one part.
    Raises CheckpointError for entries of no known part.
    """
    if any(name.startswith("input_blocks.0.") for name in entries):
        return {"unet": dict(entries)}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    foreign = []
    for name, tensor in entries.items():
        part = next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if part is not None:
            parts.setdefault(part, {})[name.removeprefix(PREFIXES[part])] = tensor
        elif not SCHEDULE.fullmatch(name):
            foreign.append(name)
    if "unet" not in parts:
        raise CheckpointError(
            f"{source} is no LVDM or VideoCrafter checkpoint: none of its {len(entries)} entries begins with "
            f"'{PREFIXES['unet']}' (its first: {next(iter(entries), 'none')})"
        )
    if foreign:
        raise CheckpointError(
            f"{source} has {len(foreign)} entries of no known part: {', '.join(foreign[:5])}"
            f"{' ...' if len(foreign) > 5 else ''}"
        )
    return parts
