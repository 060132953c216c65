"""The models: video UNets, autoencoder, text and image encoders. Names are imported when first used."""

from lvdm.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
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
    },
)
