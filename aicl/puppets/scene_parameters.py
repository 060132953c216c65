"""Scene parameters: the few dozen numbers from which one clip is drawn, as one row of a float32 matrix (b, FIELDS).

Who moves how, in what clothes, before which camera. Row and picture are pure functions of (seed, sample number), so a
training run can be resumed, or spread over processes, without storing or replaying anything.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aicl.puppets.skeleton import PROPORTIONS

COLOURS = {
    "red": (0.80, 0.12, 0.12),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.93, 0.86, 0.15),
    "green": (0.13, 0.58, 0.20),
    "blue": (0.13, 0.28, 0.82),
    "purple": (0.50, 0.16, 0.62),
    "white": (0.94, 0.94, 0.94),
    "black": (0.09, 0.09, 0.10),
}
BACKGROUNDS = {
    "red": (0.80, 0.52, 0.50),
    "orange": (0.90, 0.72, 0.50),
    "yellow": (0.90, 0.87, 0.58),
    "green": (0.55, 0.74, 0.55),
    "blue": (0.55, 0.68, 0.86),
    "purple": (0.70, 0.58, 0.80),
    "grey": (0.66, 0.66, 0.66),
    "brown": (0.50, 0.40, 0.32),
}
HEIGHTS = {"short": (0.86, 0.90), None: (0.95, 1.02), "tall": (1.07, 1.11)}
PACES = {"slowly": (0.62, 0.72), None: (0.85, 1.18), "quickly": (1.35, 1.5)}

# field -> range of the uniform draw; an empty range marks fields that are chosen, not drawn
_MOTION = {"program": (), "phase": (0.0, 1.0), "speed": (), "amplitude": (0.9, 1.1), "mirror": ()}
_BODY = {"height": (), "girth": (0.95, 1.3), **{f"length_{name}": (0.92, 1.08) for name in PROPORTIONS}}
_LOOKS = {
    "skin": (0.0, 1.0),
    "shirt": (),
    "shirt_striped": (),
    "trousers": (),
    "background": (),
    "background_striped": (),
    "light": (0.92, 1.06),
    "gradient": (0.0, 0.18),
}
_CAMERA = {
    "yaw": (-35.0, 35.0),
    "pitch": (0.0, 12.0),
    "zoom": (0.93, 1.05),
    "pan_x": (-0.045, 0.045),
    "pan_y": (-0.03, 0.03),
}
_RANGES = {**_MOTION, **_BODY, **_LOOKS, **{f"camera_{name}": bounds for name, bounds in _CAMERA.items()}}

FIELDS = tuple(_RANGES)
FIELD = {name: index for index, name in enumerate(FIELDS)}
MOTION_FIELDS = tuple(FIELD[name] for name in _MOTION)  # what two renderings of one motion share
CAMERA_FIELDS = tuple(index for name, index in FIELD.items() if name.startswith("camera_"))
LOOKS = ("shirt", "trousers", "background")  # the named looks that measurements check, eight values each


def uniforms(seed: int, numbers: NDArray[np.int64], width: int, *, stream: int = 0) -> NDArray[np.float64]:
    """Uniform draws in [0, 1), (n, width): row i is a pure function of (seed, stream, numbers[i]).

    The generator is counter-based (Philox), so any row costs the same and none depends on the others.
    """
    rows = np.empty((len(numbers), width))
    for row, number in zip(rows, numbers):
        np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, int(number)])).random(out=row)
    return rows


def draw_scene_parameters(
    draws: NDArray[np.float64], programs: NDArray[np.int64], patterns: float = 0.2
) -> NDArray[np.float32]:
    """Scene parameters (n, FIELDS) float32 of the motions `programs` (n,) (indices into a program bank).

    `draws` (n, FIELDS + 2) are uniforms, `patterns` is the chance that a shirt, and that a background, is striped.
    Three in ten people are noticeably short or tall, and three in ten motions slow or quick.
    """
    rows = np.empty((len(draws), len(FIELDS)), np.float32)
    for index, bounds in enumerate(_RANGES.values()):
        if bounds:
            rows[:, index] = bounds[0] + (bounds[1] - bounds[0]) * draws[:, index]
    rows[:, FIELD["program"]] = programs
    rows[:, FIELD["mirror"]] = np.where(draws[:, FIELD["mirror"]] < 0.5, -1.0, 1.0)
    for name in LOOKS:
        rows[:, FIELD[name]] = np.floor(draws[:, FIELD[name]] * len(COLOURS))
    for name in ("shirt_striped", "background_striped"):
        rows[:, FIELD[name]] = draws[:, FIELD[name]] < patterns
    for name, table, choice in (("height", HEIGHTS, -2), ("speed", PACES, -1)):
        named = np.digitize(draws[:, choice], (0.15, 0.85))  # 0 the first kind, 1 the ordinary, 2 the last
        low, high = np.asarray(list(table.values())).T
        rows[:, FIELD[name]] = low[named] + (high - low)[named] * draws[:, FIELD[name]]
    return rows


def kind_of(table: dict[str | None, tuple[float, float]], value: float) -> str | None:
    """The word of HEIGHTS or PACES whose range holds `value`; None where nobody would remark on it."""
    return next((word for word, (low, high) in table.items() if word and low - 1e-4 <= value <= high + 1e-4), None)


def field(scenes: Tensor, name: str) -> Tensor:
    """One column (b,) of scenes (b, FIELDS)."""
    return scenes[:, FIELD[name]]


def looks(scenes: Tensor) -> Tensor:
    """The named looks (..., 3) int64 of scenes (..., FIELDS): shirt, trousers, background."""
    return torch.stack([scenes[..., FIELD[name]] for name in LOOKS], -1).long()
