"""The autoencoders that a model config can name, and the codecs built of them.

A new one is a file `lvdm/models/codec_NAME.py` that registers a builder in `CODECS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lvdm.errors import ConfigError
from lvdm.models.autoencoder import AutoencoderKL
from lvdm.models.codec import LatentCodec
from lvdm.registry import Registry
from lvdm.sizes import check_sizes

OWN = "kl"  # this library's own autoencoder of single frames


@dataclass
class AutoencoderConfig:
    """Section `autoencoder` of a model config.

    family: a name in `CODECS`. ddconfig, embed_dim: the KL autoencoder "kl" under its published parameter names.
    params: the arguments of another family, a class of diffusers.
    """

    ddconfig: dict[str, Any] | None = None
    embed_dim: int = 4
    family: str = OWN
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sizes(self, "autoencoder")
        if self.family == OWN and (self.ddconfig is None or self.params):
            raise ConfigError(f"autoencoder.family '{OWN}' is described by autoencoder.ddconfig, not by params")
        if self.family != OWN and self.ddconfig is not None:
            raise ConfigError(f"autoencoder.family '{self.family}' has no ddconfig: set it to null and fill in params")

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along height and along width: each level but the last halves them."""
        levels = (self.params if self.ddconfig is None else self.ddconfig).get(
            "ch_mult" if self.ddconfig else "dim_mult"
        )
        return 2 ** (len(levels or (1, 2, 4, 8)) - 1)


@dataclass
class LatentConfig:
    """latents = (z - shift) * scale, numbers or one for each channel (LVDM's published shift has the other sign)."""

    scale: float | list[float] = 0.18215
    shift: float | list[float] = 0.0


CODECS: Registry[Callable[[AutoencoderConfig, LatentConfig], LatentCodec]] = Registry(
    "autoencoder family", modules="lvdm.models.codec_"
)
"""Family -> builder of its codec, with random weights."""


def build_codec(config: AutoencoderConfig, latents: LatentConfig) -> LatentCodec:
    """The codec of a model config. Raises ConfigError for an unknown family, or parameters that it cannot work with."""
    return CODECS[config.family](config, latents)


@CODECS.register(OWN)
def _own(config: AutoencoderConfig, latents: LatentConfig) -> LatentCodec:
    assert config.ddconfig is not None  # the config says so
    autoencoder = AutoencoderKL(ddconfig=config.ddconfig, embed_dim=config.embed_dim)
    return LatentCodec(autoencoder, scale=latents.scale, shift=latents.shift)
