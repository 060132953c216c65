"""What a call of a pipeline is given beside its options: prompts, seeds and images, each as what sampling takes."""

import os
import warnings
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from lvdm.arguments import described
from lvdm.diffusion import make_generators
from lvdm.errors import ConfigError
from lvdm.outside import check_text
from lvdm.video import as_tensor, read_image, to_frames, to_rgb

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_VISIBLE_STRETCH = 1.1  # of a side against the other


def check_prompts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or several as a list. Raises ConfigError for none, for what is no text, and what cannot be written."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Sequence) else [prompt]
    for text in prompts:
        check_text(text, "prompt", ConfigError)
    if not prompts:
        raise ConfigError("there is no prompt: give at least one")
    return prompts


def sample_generators(
    seed: int | Sequence[int], generator: Generator | Sequence[Generator] | None, count: int
) -> list[Generator]:
    """One CPU generator for each of `count` samples, from seeds or as given.

    seed: one each, or the first of consecutive ones. A single generator is shared: its samples depend on their order.
    Raises ConfigError for another number, or for a generator on another device.
    """
    if generator is not None and seed != 0:
        raise ConfigError("a generator stands in place of a seed: give one of them")
    if generator is None:
        return make_generators(sample_seeds(seed, count))
    several = generator if isinstance(generator, Sequence) else [generator]
    generators = [generator] * count if isinstance(generator, Generator) else list(several)
    if len(generators) != count or any(not isinstance(each, Generator) for each in generators):
        raise ConfigError(f"{count} prompts need one torch.Generator or {count}, got {generator!r}")
    if any(each.device.type != "cpu" for each in generators):
        raise ConfigError("a generator must be on the CPU, where a seed means the same for every device")
    return generators


def sample_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed for each of `count` samples: those given, or consecutive ones. Raises ConfigError for another number."""
    if isinstance(seed, int) and not isinstance(seed, bool):
        return list(range(seed, seed + count))
    if isinstance(seed, str) or not isinstance(seed, Sequence) or any(type(each) is not int for each in seed):
        raise ConfigError(f"seed must be a whole number, or a list of one for each prompt, got {described(seed)}")
    if len(seed) != count:
        raise ConfigError(f"{count} prompts need {count} seeds, got {len(seed)}")
    return list(seed)


def first_frames(image: ImageLike | Sequence[ImageLike], count: int, size: tuple[int, int]) -> Tensor:
    """One image for all videos or one each, in any accepted form -> (count, 3, *size) in [-1, 1].

    Stretched to the video's size, not cropped, as in the ancestor, which is warned of where it shows; antialiased, as
    the clips of a training are. Raises ConfigError for another number of images or for what is no image, VideoError for
    a file that cannot be read.
    """
    several = isinstance(image, list | tuple) or (isinstance(image, Tensor | np.ndarray) and image.ndim == 4)
    items = cast(Sequence[ImageLike], image) if several else [cast(ImageLike, image)] * count
    images = [_first_frame(item, size) for item in items]
    if len(images) != count:
        wanted = "one prompt takes one image" if count == 1 else f"{count} prompts take one image or {count}"
        raise ConfigError(f"{wanted}, got {len(images)}")
    return torch.stack(images)


def _first_frame(image: ImageLike, size: tuple[int, int]) -> Tensor:
    """Any accepted form of an image -> (3, *size) in [-1, 1]."""
    if isinstance(image, str | os.PathLike):
        image = read_image(image)
    if not isinstance(image, Image.Image | np.ndarray | Tensor):
        raise ConfigError(f"an image must be a file, a PIL image or pixels, got {described(image)}")
    pixels = as_tensor(np.array(to_rgb(image)) if isinstance(image, Image.Image) else image)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.numel():
        raise ConfigError(f"an image must be uint8 (h, w, 3), got {pixels.dtype} {tuple(pixels.shape)}")
    frame = to_frames(pixels[None]).movedim(1, 0)  # (1, 3, h, w)
    (h, w), (height, width) = frame.shape[-2:], size
    if not 1 / _VISIBLE_STRETCH < (w * height) / (h * width) < _VISIBLE_STRETCH:
        warnings.warn(
            f"an image of {w}x{h} is stretched to the video's {width}x{height}: crop it to that shape "
            "if people and things are to keep theirs",
            stacklevel=4,
        )
    return F.interpolate(frame, (height, width), mode="bilinear", antialias=True, align_corners=False)[0]
