"""Autoencoders of diffusers trained from scratch: those of a model config whose `autoencoder.family` is their class."""

from typing import Any

from lvdm.bases.codec import DiffusersCodec
from lvdm.bases.construction import construct
from lvdm.errors import ConfigError
from lvdm.models.codec import LatentCodec
from lvdm.models.codec_families import CODECS, AutoencoderConfig, LatentConfig


@CODECS.register("AutoencoderKLWan")
def build_wan(config: AutoencoderConfig, latents: LatentConfig) -> LatentCodec:
    """Wan's autoencoder, causal in time: the first frame alone, then as many at a time as `temperal_downsample` says.

    Raises ConfigError without the extra, and for parameters that it does not have or cannot work with.
    """
    params: dict[str, Any] = {
        "dim_mult": [1, 2, 4, 4],
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    } | config.params
    halvings = params["temperal_downsample"]
    if len(halvings) != len(params["dim_mult"]) - 1:
        raise ConfigError(
            "autoencoder.params.temperal_downsample says for each level but the last of dim_mult whether it halves the "
            f"frames: {len(params['dim_mult']) - 1} values, got {len(halvings)}"
        )
    if sum(map(bool, halvings)) > 2:
        raise ConfigError("autoencoder.params.temperal_downsample may halve the frames twice: it reads 4 at a time")
    channels = params["z_dim"]
    for name, value in (("scale", latents.scale), ("shift", latents.shift)):
        if isinstance(value, list) and len(value) != channels:
            raise ConfigError(f"latents.{name} lists {len(value)} numbers for {channels} latent channels")
    sizes = {
        "scale_factor_spatial": 2 ** len(halvings),
        "scale_factor_temporal": 2 ** sum(map(bool, halvings)),
        "latents_mean": [0.0] * channels,  # those of a published model; ours are in section `latents`
        "latents_std": [1.0] * channels,
    }
    codec = DiffusersCodec(construct("AutoencoderKLWan", params | sizes, "autoencoder.params"))
    codec.scale, codec.shift = latents.scale, latents.shift
    return codec
