"""Image conditions of image-to-video models: CLIP's visual tower, and the resampler to context tokens."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvdm.errors import ConfigError
from lvdm.models.attention import attend
from lvdm.sizes import check_sizes

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class ImageConfig:
    """Size of a visual tower; the defaults are OpenCLIP ViT-H/14's."""

    width: int = 1280
    layers: int = 32
    heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    act: Literal["gelu", "quick_gelu"] = "gelu"

    def __post_init__(self) -> None:
        check_sizes(self, "image")
        if self.width % self.heads:
            raise ConfigError(f"image.width {self.width} must be a multiple of image.heads {self.heads}")
        if self.image_size % self.patch_size:
            raise ConfigError(f"image.image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")

    @classmethod
    def openclip_vit_h_14(cls) -> "ImageConfig":
        """What VideoCrafter's image-to-video uses: 257 tokens, 1280 wide."""
        return cls()


class ImageEncoder(nn.Module):
    """Images (b, 3, h, w) in [-1, 1], any size -> all tokens (b, 1 + patches, width), the class token first.

    As VideoCrafter uses it, the tokens come straight from the last block: without the final LayerNorm and without the
    projection to CLIP's joint space, so neither is built. The transformer is open_clip's; nothing is downloaded.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        from open_clip.transformer import QuickGELU, VisionTransformer  # slow to import: only when an encoder is built

        self.config = config
        self.visual = VisionTransformer(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            mlp_ratio=4.0,
            output_dim=1,  # of the projection removed below
            pool_type="none",
            act_layer=QuickGELU if config.act == "quick_gelu" else nn.GELU,
        )
        self.visual.ln_post = nn.Identity()
        self.visual.proj = None

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(self.preprocess(images).to(self.visual.conv1.weight.dtype))

    def preprocess(self, images: Tensor) -> Tensor:
        """Squash to image_size x image_size (the aspect ratio is not kept), as published, and normalise for CLIP.

        In float32: Gaussian blur against aliasing where the image shrinks, then bicubic with aligned corners.
        """
        size = self.config.image_size
        images = images.float()
        shrink = [side / size for side in images.shape[-2:]]  # height, width
        if max(shrink) > 1:
            sigma = [max((factor - 1) / 2, 0.001) for factor in shrink]
            kernel = [int(max(4 * value, 3)) | 1 for value in sigma]  # the next odd number
            from torchvision.transforms.functional import gaussian_blur  # slow to import: only where it is needed

            images = gaussian_blur(images, kernel[::-1], sigma[::-1])  # torchvision wants width first
        images = F.interpolate(images, (size, size), mode="bicubic", align_corners=True)
        mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
        return ((images + 1) / 2 - mean) / std


@dataclass
class ResamplerParams:
    """Parameters of the image resampler, under their published names."""

    dim: int = 1024
    depth: int = 8
    dim_head: int = 64
    heads: int = 16
    num_queries: int = 8
    embedding_dim: int = 768
    output_dim: int = 1024
    ff_mult: int = 4

    def __post_init__(self) -> None:
        check_sizes(self, "image.resampler")


class ImageResampler(nn.Module):
    """Perceiver that turns image tokens (b, n, embedding_dim) into context tokens (b, num_queries, output_dim).

    Parameter and weight names are the published ones. The learned queries attend `depth` times to the image tokens
    and to themselves.
    """

    def __init__(
        self,
        dim: int = 1024,
        depth: int = 8,
        dim_head: int = 64,
        heads: int = 16,
        num_queries: int = 8,
        embedding_dim: int = 768,
        output_dim: int = 1024,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        inner = int(dim * ff_mult)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            mlp = [nn.LayerNorm(dim), nn.Linear(dim, inner, bias=False), nn.GELU(), nn.Linear(inner, dim, bias=False)]
            self.layers.append(nn.ModuleList([PerceiverAttention(dim, dim_head, heads), nn.Sequential(*mlp)]))

    def forward(self, tokens: Tensor) -> Tensor:
        latents = self.latents.expand(len(tokens), -1, -1)
        tokens = self.proj_in(tokens)
        for attention, mlp in (layer.children() for layer in self.layers):
            latents = latents + attention(tokens, latents)
            latents = latents + mlp(latents)
        return self.norm_out(self.proj_out(latents))


class PerceiverAttention(nn.Module):
    """Queries (b, m, dim) attend to tokens (b, n, dim) and to themselves; returns (b, m, dim)."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head * heads, bias=False)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        tokens, queries = self.norm1(tokens), self.norm2(queries)
        k, v = self.to_kv(torch.cat([tokens, queries], dim=1)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(queries), k, v))
        return self.to_out(attend(q, k, v).transpose(1, 2).flatten(2))  # (b, heads, m, d) -> (b, m, dim)
