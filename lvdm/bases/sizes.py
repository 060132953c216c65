"""Published sizes of base models, without their weights: for tables of layouts, memory and speed.

The numbers are those of the models' public config files. Networks are made on the meta device, which costs nothing.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lvdm.bases.backbone import DiffusersBackbone
from lvdm.diffusion.schedule import Prediction
from lvdm.models.backbone import Compression, Grid


@dataclass(frozen=True)
class Published:
    """One published network: its class, config, autoencoder and usual video.

    config: what differs from the defaults of the class in diffusers. size: (height, width) in pixels. tokens: rows of a
    context, of `context_width` channels.
    """

    name: str
    network: str
    compression: Compression
    prediction: Prediction
    num_frames: int
    size: tuple[int, int]
    tokens: int
    context_width: int
    config: dict[str, Any] = field(default_factory=dict)

    def build(self, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> DiffusersBackbone:
        """The network, with random weights, or without any on the meta device."""
        import diffusers

        with torch.device(device):
            model = nn.Module.to(getattr(diffusers, self.network)(**self.config), device, dtype)  # without its remarks
        return DiffusersBackbone(model.requires_grad_(False).eval(), self.compression, self.prediction)

    @property
    def latents(self) -> Grid:
        """Latent frames, height and width of the usual video."""
        return self.compression.grid(self.num_frames, self.size)


_SD15 = {"cross_attention_dim": 768, "sample_size": 64, "use_motion_mid_block": True}

PUBLISHED = {
    each.name: each
    for each in (
        Published(
            "wan2.1-t2v-1.3b",
            "WanTransformer3DModel",
            Compression(8, 4),
            "flow",
            81,
            (480, 832),
            512,
            4096,
            {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        ),
        Published("wan2.1-t2v-14b", "WanTransformer3DModel", Compression(8, 4), "flow", 81, (480, 832), 512, 4096),
        Published("cogvideox-2b", "CogVideoXTransformer3DModel", Compression(8, 4), "v", 49, (480, 720), 226, 4096),
        Published("ltx-video-2b", "LTXVideoTransformer3DModel", Compression(32, 8), "flow", 161, (512, 704), 128, 4096),
        Published(
            "hunyuanvideo-13b", "HunyuanVideoTransformer3DModel", Compression(8, 4), "flow", 129, (720, 1280), 257, 4096
        ),
        Published("mochi-1", "MochiTransformer3DModel", Compression(8, 6), "flow", 163, (480, 848), 256, 4096),
        Published("animatediff-1.5", "UNetMotionModel", Compression(8), "eps", 16, (512, 512), 77, 768, _SD15),
        Published(
            "modelscope-1.7b",
            "UNet3DConditionModel",
            Compression(8),
            "eps",
            16,
            (256, 256),
            77,
            1024,
            {"sample_size": 32},
        ),
        Published(
            "svd-xt",
            "UNetSpatioTemporalConditionModel",
            Compression(8),
            "v",
            25,
            (576, 1024),
            1,
            1024,
            {"sample_size": 96},
        ),
    )
}
"""Name -> network. The defaults of diffusers' classes are Wan 14B, CogVideoX-2b, LTX-Video 2B, HunyuanVideo,
Mochi and SVD themselves."""
