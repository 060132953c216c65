"""What the rest of the library asks of a model's config, for a model of diffusers."""

from dataclasses import dataclass
from typing import Any

from lvdm.diffusion.schedule import DiffusionConfig
from lvdm.models.components import GenerationDefaults, ModelConfig
from lvdm.options import SamplerName


@dataclass
class DiffusersDefaults(GenerationDefaults):
    """Those of a pipeline's own call, which samples with its own scheduler."""

    sampler: SamplerName = "scheduler"


class DiffusersConfig(ModelConfig):
    """family: the network's class; unet: its config. Sizes of text encoder and autoencoder are in theirs.

    factor: pixels per latent cell, along height and along width.
    """

    def __init__(
        self, family: str, unet: dict[str, Any], defaults: GenerationDefaults, factor: int, takes_image: bool = False
    ) -> None:
        self.family, self.unet, self.defaults, self.factor = family, unet, defaults, factor
        self.diffusion = DiffusionConfig()
        self.image = None
        self._takes_image = takes_image

    @property
    def takes_image(self) -> bool:
        return self._takes_image
