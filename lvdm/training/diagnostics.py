"""Numbers that tell while a training runs whether it learns what it is for: measured, logged and drawn."""

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw, ImageFont
from pytorch_lightning.callbacks import Callback

from lvdm.files import atomic_path
from lvdm.training.checkpoints import Progress
from lvdm.training.module import TrainingModule, training_module

log = logging.getLogger(__name__)

PICTURE = "diagnostics.png"
_SIZE, _MARGIN, _SCALE = (640, 280), (70, 30, 36, 40), 2  # pixels; left, top, right, bottom; drawn larger, then reduced
_INK, _GRID, _LINE = (40, 40, 40), (222, 222, 222), (31, 92, 163)


class Diagnostics(Callback):
    """Every `every` steps: log the module's diagnostics of the batch just trained on, a mean over all devices, and draw
    their whole course as diagnostics.png in `folder`. What a module says of them goes to the log, once."""

    def __init__(self, every: int, progress: Progress, folder: Path) -> None:
        self.every, self.progress, self.folder = every, progress, folder
        self._measured = progress.step
        self._warned = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        step, module = self.progress.step, training_module(pl_module)
        nothing = type(module).diagnostics is TrainingModule.diagnostics
        if nothing or step == self._measured or step % self.every:
            return
        self._measured = step
        with torch.no_grad(), module.showing(), module.autocast():
            found = module.diagnostics(module.prepare(batch))
        values = {name: float(trainer.strategy.reduce(value, reduce_op="mean")) for name, value in found.items()}
        for logger in trainer.loggers if values else ():
            logger.log_metrics(values, step)
        if values and trainer.is_global_zero:
            histories = {name: read_history(self.folder / "metrics.csv", name) for name in values}
            draw_histories(self.folder / PICTURE, histories)
            if not self._warned and (warning := module.judge_diagnostics(histories)) is not None:
                self._warned = True
                log.warning("%s", warning)


def read_history(path: Path, name: str) -> list[tuple[int, float]]:
    """The (step, value) pairs of one column of a metrics.csv, as far as they are finite numbers."""
    points = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                step, value = int(row["step"]), float(row[name])
            except (KeyError, TypeError, ValueError):  # a line of other metrics, or one that was cut off
                continue
            if math.isfinite(value):
                points.append((step, value))
    return points


def draw_histories(
    path: Path, histories: Mapping[str, Sequence[tuple[int, float]]], *, one_scale: bool = False
) -> None:
    """Draw the course of each number over the steps, one chart below the other, as a PNG; what is empty is left out.

    one_scale: all charts have the axes of the widest ranges, so that the courses of one number in several trainings can
    be compared. Otherwise each chart has its own.
    """
    drawn = {name: points for name, points in histories.items() if points}
    if not drawn:
        return
    everything = [point for points in drawn.values() for point in points]
    charts = [_chart(name, points, everything if one_scale else points) for name, points in drawn.items()]
    sheet = Image.new("RGB", (_SIZE[0], _SIZE[1] * len(charts)), "white")
    for row, chart in enumerate(charts):
        sheet.paste(chart, (0, row * _SIZE[1]))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _chart(name: str, points: Sequence[tuple[int, float]], shown: Sequence[tuple[int, float]]) -> Image.Image:
    """The course of one number, on axes that hold all points of `shown`."""
    width, height = (_SCALE * side for side in _SIZE)
    left, top, right, bottom = (_SCALE * side for side in _MARGIN)
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12 * _SCALE)
    last = max(step for step, _ in shown)
    least, most = (found(0.0, *(value for _, value in shown)) for found in (min, max))
    pixel = (most - least) / (_SIZE[1] - _MARGIN[1] - _MARGIN[3])
    ticks = _ticks(*(value if abs(value) > pixel else 0.0 for value in (least, most)))  # what is not seen needs no room
    low, high = ticks[0], ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        across = left + (width - left - right) * step / max(last, 1)
        return across, top + (height - top - bottom) * (high - value) / (high - low)

    for tick in ticks:
        y = place(0, tick)[1]
        draw.line([(left, y), (width - right, y)], fill=_INK if tick == 0 else _GRID, width=_SCALE)
        draw.text((left - 6 * _SCALE, y), f"{tick:.4g}", fill=_INK, font=font, anchor="rm")
    for tick in [tick for tick in _ticks(0, last) if tick <= last]:
        draw.text((place(tick, 0)[0], height - bottom + 6 * _SCALE), f"{tick:,.0f}", fill=_INK, font=font, anchor="mt")
    draw.text((left, top - 6 * _SCALE), name, fill=_INK, font=font, anchor="lb")
    draw.text((width - right, height - 4 * _SCALE), "steps", fill=_INK, font=font, anchor="rb")
    line = [place(step, value) for step, value in points]
    draw.line(line, fill=_LINE, width=2 * _SCALE, joint="curve")
    for x, y in line if len(line) < 60 else ():
        draw.ellipse([x - 2 * _SCALE, y - 2 * _SCALE, x + 2 * _SCALE, y + 2 * _SCALE], fill=_LINE)
    return picture.resize(_SIZE, Image.Resampling.LANCZOS)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers at equal distances that enclose [low, high], about five of them."""
    span = max(high - low, 1e-9)
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), math.floor(low / step + 1e-9) + 1)
    return [round(step * number, 12) for number in range(first, last + 1)]
