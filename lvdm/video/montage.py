"""Videos beside each other, with labels, for eyes."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lvdm.errors import VideoError
from lvdm.video.pixels import resize_crop

_GAP = 4  # pixels between neighbours, white
_FINER = 4  # labels are drawn at this many times their size


def side_by_side(videos: Sequence[Tensor], labels: Sequence[str] | None = None) -> Tensor:
    """uint8 videos (t_i, h_i, w_i, 3) -> one video (t, h, w, 3), left to right, each under its label.

    All get the height of the tallest; a shorter one holds its last frame. Raises VideoError if labels don't match.
    """
    _check(videos, labels)
    height, length = max(video.shape[1] for video in videos), max(len(video) for video in videos)
    columns = []
    for number, video in enumerate(videos):
        video = torch.cat([video, video[-1:].expand(length - len(video), -1, -1, -1)])
        video = resize_crop(video, (height, max(1, round(video.shape[2] * height / video.shape[1]))))
        if labels is not None:
            strip = text_strip(labels[number], video.shape[2], _label_height(height))
            video = torch.cat([strip.expand(length, -1, -1, -1), video], dim=1)
        if number:
            columns.append(torch.full((length, video.shape[1], _GAP, 3), 255, dtype=torch.uint8))
        columns.append(video)
    return torch.cat(columns, dim=2)


def enlarged(video: Tensor, least: int) -> Tensor:
    """uint8 (t, h, w, 3), each pixel repeated until the height is at least `least`: for eyes, not for models."""
    factor = max(1, -(-least // video.shape[1]))
    return video.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def contact_sheet(videos: Sequence[Tensor], labels: Sequence[str] | None = None, frames: int = 8) -> Image.Image:
    """One row for each uint8 video (t, h, w, 3), under its label: `frames` of its frames, evenly spread in time."""
    _check(videos, labels)
    rows = []
    for number, video in enumerate(videos):
        picked = video[torch.linspace(0, len(video) - 1, min(frames, len(video))).round().long()]
        row = side_by_side([frame[None] for frame in picked])[0]
        if labels is not None:
            row = torch.cat([text_strip(labels[number], row.shape[1], _label_height(row.shape[0])), row])
        rows.append(row)
    width = max(row.shape[1] for row in rows)
    sheet = Image.new("RGB", (width, sum(len(row) for row in rows) + _GAP * (len(rows) - 1)), "white")
    top = 0
    for row in rows:
        sheet.paste(Image.fromarray(row.numpy()), (0, top))
        top += len(row) + _GAP
    return sheet


def _check(videos: Sequence[Tensor], labels: Sequence[str] | None) -> None:
    if not videos or any(video.ndim != 4 or len(video) == 0 for video in videos):
        raise VideoError("videos to show together are one or more tensors (t, h, w, 3) with at least one frame")
    if labels is not None and len(labels) != len(videos):
        raise VideoError(f"{len(videos)} videos have {len(labels)} labels; give one for each")


def _label_height(height: int) -> int:
    return max(14, height // 12)


def text_strip(text: str, width: int, height: int) -> Tensor:
    """Black on white, uint8 (height, width, 3); a text that is too long ends in dots."""
    # drawn large and scaled down: at 10 pixels a font is set in whole pixels, and the space between words is lost
    font = ImageFont.load_default(size=round(height * 0.75) * _FINER)
    strip = Image.new("L", (width * _FINER, height * _FINER), "white")
    draw = ImageDraw.Draw(strip)
    shown = text
    while shown and draw.textlength(shown, font=font) > (width - 4) * _FINER:
        text = text[:-1]
        shown = text + "..." if text else ""
    draw.text((2 * _FINER, strip.height / 2), shown, fill="black", font=font, anchor="lm")
    return torch.from_numpy(np.array(strip.reduce(_FINER).convert("RGB")))
