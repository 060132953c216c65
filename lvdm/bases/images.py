"""How the image of an image-to-video pipeline of diffusers reaches its network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lvdm.bases.codec import DiffusersCodec
from lvdm.bases.kinds import SVD_IMAGE_NOISE
from lvdm.video import to_pixels


@dataclass(frozen=True)
class ImageCondition:
    """What a network gets of an image: context tokens (b, n, d) after the text's, and further arguments by name.

    without: the same for the branch of guidance without the image; None where that branch has the image too.
    """

    tokens: Tensor | None
    extras: dict[str, Tensor]
    without: "ImageCondition | None" = None


def svd(
    pipe: Any, codec: DiffusersCodec, frames: Tensor, num_frames: int, noise: float = SVD_IMAGE_NOISE
) -> ImageCondition:
    """Stable Video Diffusion: a CLIP token, and the image's unscaled latents at all frames, under a little noise.

    That noise is the same for every seed, so that a video is a function of its image and its seed.
    """
    weight = next(pipe.image_encoder.parameters())
    tokens = pipe._encode_image(_images(frames), weight.device, 1, False)
    generator = torch.Generator().manual_seed(0)
    noisy = frames + noise * torch.randn(frames.shape, generator=generator).to(frames)
    latents = codec.vae.encode(noisy.to(next(codec.parameters()))).latent_dist.mode()
    latents = latents[:, :, None].repeat(1, 1, num_frames, 1, 1)
    nothing = ImageCondition(torch.zeros_like(tokens), {"image_latents": torch.zeros_like(latents)})
    return ImageCondition(tokens, {"image_latents": latents}, nothing)


def wan(pipe: Any, codec: DiffusersCodec, frames: Tensor, num_frames: int) -> ImageCondition:
    """Wan: latents of the image before black frames, and a mask of which frames are given; CLIP tokens for Wan 2.1."""
    video = torch.cat([frames[:, :, None], frames.new_zeros(*frames.shape[:2], num_frames - 1, *frames.shape[2:])], 2)
    latents = codec.posterior(video).mode()
    mask = torch.zeros_like(latents[:, :1].expand(-1, codec.compression.time, -1, -1, -1)).contiguous()
    mask[:, :, 0] = 1
    extras = {"image_latents": torch.cat([mask, latents], dim=1)}
    if pipe.image_encoder is not None:
        extras["image_tokens"] = pipe.encode_image(_images(frames), next(pipe.image_encoder.parameters()).device)
    return ImageCondition(None, extras)


def cogvideox(pipe: Any, codec: DiffusersCodec, frames: Tensor, num_frames: int) -> ImageCondition:
    """CogVideoX: scaled latents of the image at the first latent frame, zeros at the others.

    The mean of the posterior stands in for a sample of it: a video is a function of its image and its seed.
    """
    latents = codec.posterior(frames[:, :, None]).mode()
    if getattr(codec.vae.config, "invert_scale_latents", False):  # of CogVideoX 1.5, which was trained so
        latents = latents / codec.vae.config.scaling_factor**2
    count = codec.compression.grid(num_frames, (frames.shape[2], frames.shape[3]))[0]
    zeros = latents.new_zeros(*latents.shape[:2], count - 1, *latents.shape[3:])
    return ImageCondition(None, {"image_latents": torch.cat([latents, zeros], dim=2)})


IMAGES: dict[str, Callable[[Any, DiffusersCodec, Tensor, int], ImageCondition]] = {
    "StableVideoDiffusionPipeline": svd,
    "WanImageToVideoPipeline": wan,
    "CogVideoXImageToVideoPipeline": cogvideox,
}
"""Pipeline class -> its image condition for first frames (b, 3, h, w) in [-1, 1] of videos of so many frames."""


def _images(frames: Tensor) -> list[Image.Image]:
    """First frames as images, as image encoders' own preprocessing takes them."""
    return [Image.fromarray(pixels.numpy()) for pixels in to_pixels(frames[:, :, None])[:, 0].cpu()]
