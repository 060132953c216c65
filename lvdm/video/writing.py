"""Pixels -> video files."""

import os
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from torch import Tensor

from lvdm.errors import VideoError
from lvdm.files import atomic_path
from lvdm.outside import checked_path

_QUALITY = "16"  # H.264 constant rate factor: visually lossless, still plays everywhere


def write_video(path: str | os.PathLike[str], pixels: Tensor, fps: float, overwrite: bool = False) -> Path:
    """Write uint8 (t, h, w, 3) to an H.264 `.mp4`, an animated `.gif`, or, without an ending, a folder of PNGs.

    H.264 needs even sides: an odd one is made even by repeating its last row or column. GIF times are multiples of
    10 ms; frames are placed so that the errors don't add up. The file appears whole or not at all.
    Raises VideoError for another ending, wrong pixels, or an existing file unless `overwrite`.
    """
    path = checked_path(path, VideoError)
    writers = {".mp4": _write_mp4, ".gif": _write_gif, "": _write_pngs}
    if path.suffix.lower() not in writers:
        raise VideoError(f"{path}: cannot write {path.suffix!r}; end the name in .mp4, .gif, or nothing for PNG files")
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or len(pixels) == 0 or str(pixels.dtype) != "torch.uint8":
        raise VideoError(f"{path}: a video is uint8 (t, h, w, 3), not {pixels.dtype} {tuple(pixels.shape)}")
    if not fps > 0:
        raise VideoError(f"{path}: a video needs a positive frame rate, not {fps}")
    if path.exists() and not overwrite:
        raise VideoError(f"{path}: exists already; choose another name or ask to overwrite it")
    try:
        writers[path.suffix.lower()](path, pixels.cpu().numpy(), fps)
    except OSError as error:
        raise VideoError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    return path


def _write_mp4(path: Path, pixels: np.ndarray, fps: float) -> None:
    _, height, width, _ = pixels.shape
    pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with atomic_path(path) as temporary, av.open(os.path.abspath(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        # With its macroblock tree, x264 now and then makes another file of the same pixels (seen at 64x64).
        stream.options = {"crf": _QUALITY, "preset": "medium", "x264-params": "mbtree=0"}
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


def _dithered(image: Image.Image) -> Image.Image:
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)  # without one Pillow dithers nothing
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _write_pngs(path: Path, pixels: np.ndarray, fps: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.png" for number in range(len(pixels))]
    if path.exists() and (not path.is_dir() or any(not name.endswith(".png") for name in os.listdir(path))):
        raise VideoError(f"{path}: is not a folder of PNG files; choose another name")
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, image in zip(names, pixels):
            Image.fromarray(image).save(temporary / name)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
