"""What a published checkpoint is, told from its entries, and which of them belong to which part."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lvdm.errors import CheckpointError

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


@dataclass(frozen=True)
class Family:
    """A published model: the config in `configs/models` that fits it, its UNet's family, and its name for people."""

    config: str
    unet: str
    title: str


LVDM = Family("lvdm_t2v_256", "lvdm", "LVDM text-to-video")
VIDEOCRAFTER1 = Family("videocrafter1_t2v_512", "videocrafter", "VideoCrafter 1 text-to-video, 320x512")
VIDEOCRAFTER1_1024 = Family("videocrafter1_t2v_1024", "videocrafter", "VideoCrafter 1 text-to-video, 576x1024")
VIDEOCRAFTER2 = Family("videocrafter2_t2v_512", "videocrafter", "VideoCrafter 2 text-to-video")
VIDEOCRAFTER1_I2V = Family("videocrafter1_i2v_512", "videocrafter", "VideoCrafter 1 image-to-video")
FAMILIES = {
    family.config: family for family in (LVDM, VIDEOCRAFTER1, VIDEOCRAFTER1_1024, VIDEOCRAFTER2, VIDEOCRAFTER1_I2V)
}


def detect_family(entries: Mapping[str, torch.Tensor]) -> Family | None:
    """The published model whose UNet these entries look like (with or without prefix), or None.

    Only marks that survive a change of width are read, so a differently sized model of a family is recognised too.
    """
    first = next((tensor for name, tensor in entries.items() if name.endswith("input_blocks.0.0.weight")), None)
    if first is None:
        return None
    if first.ndim == 5:  # LVDM stores its spatial convolutions as 1x3x3 kernels
        return LVDM
    if first.ndim != 4:
        return None
    if any(".to_k_ip." in name for name in entries):
        return VIDEOCRAFTER1_I2V
    if any(".temopral_conv." in name for name in entries):
        return VIDEOCRAFTER2
    if not any("init_attn." in name for name in entries):
        return None  # an image model such as Stable Diffusion
    return VIDEOCRAFTER1_1024 if any("fps_embedding." in name for name in entries) else VIDEOCRAFTER1


def split_parts(entries: Mapping[str, torch.Tensor], source: str) -> dict[str, dict[str, torch.Tensor]]:
    """Sort the entries of a whole published checkpoint by part (the keys of `PREFIXES`), prefixes removed.

    Raises CheckpointError for entries of no known part.
    """
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
