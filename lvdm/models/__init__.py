"""The models: video UNets, autoencoder, text and image encoders. Names are imported when first used."""

from importlib import import_module
from typing import Any

_HOMES = {
    "backbone": ("BACKBONES", "VideoBackbone", "build_backbone"),
    "attention": ("RelativePosition", "attend", "set_backend"),
    "autoencoder": ("AutoencoderKL", "DiagonalGaussian"),
    "codec": ("LatentCodec",),
    "ema": ("EMA",),
    "image": ("ImageConfig", "ImageEncoder", "ImageResampler"),
    "text": ("TextConfig", "TextEncoder"),
    "tokenizer": ("CLIPTokenizer", "WordTokenizer"),
    "transformers": ("SpatioTemporalBlock", "TemporalBlock"),
    "unet_base": ("VideoUNet",),
    "unet_lvdm": ("LVDMParams", "UNetLVDM"),
    "unet_videocrafter": ("UNetVideoCrafter", "VideoCrafterParams"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
