"""Choosing a video UNet by family."""

from typing import Any

from lvdm.config import from_mapping
from lvdm.errors import ConfigError
from lvdm.models.unet_base import VideoUNet
from lvdm.models.unet_lvdm import LVDMParams, UNetLVDM
from lvdm.models.unet_videocrafter import UNetVideoCrafter, VideoCrafterParams

FAMILIES = {"lvdm": (UNetLVDM, LVDMParams), "videocrafter": (UNetVideoCrafter, VideoCrafterParams)}


def build_unet(family: str, **published_params: Any) -> VideoUNet:
    """A UNet of family "lvdm" or "videocrafter" from the parameters that its published YAML files give (`unet_config`).

    forward(x (b, c, t, h, w), timesteps (b,), context (b, m, context_dim), fps=None) -> (b, out_channels, t, h, w)
    Raises ConfigError for an unknown family, an unknown, missing or ill-typed parameter (naming the nearest known), and
    a combination that the published code cannot run either.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown UNet family '{family}': choose from {', '.join(FAMILIES)}")
    unet, params = FAMILIES[family]
    return unet(from_mapping(params, published_params, "unet"))
