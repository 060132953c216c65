"""Sizes of prism and integration where a config leaves them out: those that fit the base model."""

from collections.abc import Mapping
from typing import Any

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import PrismConfig
from lvdm import config as configs
from lvdm.pipeline import VideoPipeline


def read_prism_config(section: Mapping[str, Any], base: VideoPipeline, where: str = "prism") -> PrismConfig:
    """That of a section `prism`, which `where` names; by default it reads the base model's latents and text features.

    Raises ConfigError for entries that are unknown or don't fit.
    """
    widths = {"in_channels": base.components.unet.latent_channels, "context_dim": base.context_width}
    return configs.from_mapping(
        PrismConfig, {**widths, **base.components.unet.adapter_sizes()[0], **section}, where=where
    )


def read_integration_config(
    section: Mapping[str, Any], base: VideoPipeline, where: str = "integration"
) -> IntegrationConfig:
    """That of a section `integration`, which `where` names. Raises ConfigError for what is unknown or does not fit."""
    return configs.from_mapping(IntegrationConfig, {**base.components.unet.adapter_sizes()[1], **section}, where=where)
