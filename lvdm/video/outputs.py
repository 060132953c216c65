"""Generated pixels in the forms that other tools expect."""

from typing import Any, Literal, get_args

from PIL import Image
from torch import Tensor

from lvdm.errors import ConfigError

OutputType = Literal["pixels", "np", "pt", "pil"]
OUTPUT_TYPES: tuple[str, ...] = get_args(OutputType)


def convert_pixels(pixels: Tensor, output_type: str) -> Any:
    """Pixels uint8 (b, t, h, w, 3) as `output_type` asks.

    "pixels": as they are. "np": a float32 array (b, t, h, w, 3) in [0, 1]. "pt": a float32 tensor (b, t, 3, h, w) in
    [0, 1]. "pil": for each video a list of its frames as PIL images. Raises ConfigError for another type.
    """
    check_output_type(output_type)
    if output_type == "pixels":
        return pixels
    if output_type == "np":
        return pixels.float().div(255).numpy()
    if output_type == "pt":
        return pixels.float().div(255).movedim(-1, -3).contiguous()
    return [[Image.fromarray(frame) for frame in video.numpy()] for video in pixels]


def check_output_type(output_type: str) -> None:
    """Raise ConfigError for a form of videos that there is not: ask before one is computed."""
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(f"output_type is {output_type!r}: choose from {', '.join(OUTPUT_TYPES)}")
