"""Pixels -> video files."""

import os
import secrets
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image
from torch import Tensor

from lvdm.errors import VideoError
from lvdm.files import atomic_path
from lvdm.outside import checked_path

OUTPUT_ENDINGS = (".mp4", ".webm", ".gif", ".webp")
_VP9_QUALITY = "20"  # VP9 constant quality: as good for eyes
_QUALITY = "16"  # H.264 constant rate factor: visually lossless, still plays everywhere


def write_video(path: str | os.PathLike[str], pixels: Tensor, fps: float, overwrite: bool = False) -> Path:
    """Write uint8 (t, h, w, 3) to an H.264 `.mp4`, a VP9 `.webm`, an animated `.gif` or `.webp`, or, without an ending,
    a folder of PNGs.

    H.264 and VP9 get even sides: an odd one is made even by repeating its last row or column. GIF times are multiples
    of 10 ms, WebP times of 1 ms; frames are placed so that the errors don't add up. The file appears whole or not at
    all.
    Raises VideoError for another ending, wrong pixels, or an existing file unless `overwrite`.
    """
    path = checked_path(path, VideoError)
    if path.suffix.lower() not in _WRITERS:
        known = ", ".join(OUTPUT_ENDINGS)
        raise VideoError(f"{path}: cannot write {path.suffix!r}; end the name in {known}, or nothing for PNG files")
    if not isinstance(pixels, Tensor):
        raise VideoError(f"{path}: a video is a tensor, uint8 (t, h, w, 3), not a {type(pixels).__name__}")
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or len(pixels) == 0 or str(pixels.dtype) != "torch.uint8":
        raise VideoError(f"{path}: a video is uint8 (t, h, w, 3), not {pixels.dtype} {tuple(pixels.shape)}")
    if not fps > 0:
        raise VideoError(f"{path}: a video needs a positive frame rate, not {fps}")
    if path.exists() and not overwrite:
        raise VideoError(f"{path}: exists already; choose another name or ask to overwrite it")
    try:
        _WRITERS[path.suffix.lower()](path, pixels.cpu().numpy(), fps)
    except OSError as error:
        raise VideoError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    return path


def _write_mp4(path: Path, pixels: np.ndarray, fps: float) -> None:
    # With its macroblock tree, x264 now and then makes another file of the same pixels (seen at 64x64).
    _encode(path, pixels, fps, "mp4", "libx264", {"crf": _QUALITY, "preset": "medium", "x264-params": "mbtree=0"})


def _write_webm(path: Path, pixels: np.ndarray, fps: float) -> None:
    # One thread, since VP9's threads may make another file of the same pixels.
    options: dict[str, object] = {
        "crf": _VP9_QUALITY,
        "b": "0",
        "deadline": "good",
        "cpu-used": "2",
        "row-mt": "0",
        "threads": "1",
    }
    _encode(path, pixels, fps, "webm", "libvpx-vp9", options)


def _encode(
    path: Path,
    pixels: np.ndarray,
    fps: float,
    container_format: str,
    codec: Literal["libx264", "libvpx-vp9"],
    options: dict[str, object],
) -> None:
    _, height, width, _ = pixels.shape
    pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    exact = {"fflags": "bitexact"} if container_format == "webm" else {}  # else it carries a number drawn at random
    with (
        atomic_path(path) as temporary,
        av.open(os.path.abspath(temporary), "w", format=container_format, options=exact) as container,
    ):
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        stream.options = options
        # Say which colour matrix was used, or players guess it from the size.
        stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU709
        stream.codec_context.color_primaries = stream.codec_context.color_trc = 1  # BT.709
        stream.codec_context.color_range = av.video.reformatter.ColorRange.MPEG
        for image in pixels:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=av.video.reformatter.Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(path: Path, pixels: np.ndarray, fps: float) -> None:
    # A palette of its own for each frame, dithered: no colour is lost to frames that look different.
    images = [_dithered(Image.fromarray(image)) for image in pixels]
    ends = [10 * round(100 * (number + 1) / fps) for number in range(len(images))]  # ms
    durations = [max(end - start, 20) for start, end in zip([0, *ends], ends)]  # players slow down shorter ones
    with atomic_path(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)


def _write_webp(path: Path, pixels: np.ndarray, fps: float) -> None:
    images = [Image.fromarray(image) for image in pixels]
    ends = [round(1000 * (number + 1) / fps) for number in range(len(images))]  # ms
    durations = [max(end - start, 1) for start, end in zip([0, *ends], ends)]
    with atomic_path(path) as temporary:
        images[0].save(
            temporary, format="WEBP", save_all=True, append_images=images[1:], duration=durations, loop=0, quality=90
        )


def _dithered(image: Image.Image) -> Image.Image:
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)  # without one Pillow dithers nothing
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _write_pngs(path: Path, pixels: np.ndarray, fps: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.png" for number in range(len(pixels))]
    if path.exists() and (not path.is_dir() or any(not name.endswith(".png") for name in os.listdir(path))):
        raise VideoError(f"{path}: is not a folder of PNG files; choose another name")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    before = path.parent / f"{temporary.name}.old"
    try:
        temporary.mkdir()
        for name, image in zip(names, pixels):
            Image.fromarray(image).save(temporary / name)
        if path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if before.exists():
            os.replace(before, path)
        raise
    shutil.rmtree(before, ignore_errors=True)


_WRITERS = {".mp4": _write_mp4, ".webm": _write_webm, ".gif": _write_gif, ".webp": _write_webp, "": _write_pngs}
