"""Draws scenes as video: shaded capsules with soft edges, back to front, on the CPU or a GPU.

Every operation is elementwise over pixels, so a clip's pixels do not depend on the batch it is drawn in.
"""

from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor

from aicl.puppets.scene_parameters import BACKGROUNDS, COLOURS, FIELD, field
from aicl.puppets.skeleton import JOINT, PROPORTIONS, pose, turn

VERSION = 1  # raised when the same scenes come to look otherwise
_SHIRT, _TROUSERS, _SKIN, _SHOES = range(4)
# from joint, to joint, radius in metres, colour, brightness (the nearer side of a neutral figure is lighter)
_PARTS = (
    ("pelvis", "chest", 0.140, _SHIRT, 1.00),
    ("L_shoulder", "R_shoulder", 0.078, _SHIRT, 1.00),
    ("L_hip", "R_hip", 0.102, _TROUSERS, 1.00),
    ("L_hip", "L_knee", 0.086, _TROUSERS, 1.06),
    ("R_hip", "R_knee", 0.086, _TROUSERS, 0.84),
    ("L_knee", "L_ankle", 0.066, _TROUSERS, 1.06),
    ("R_knee", "R_ankle", 0.066, _TROUSERS, 0.84),
    ("L_ankle", "L_toe", 0.052, _SHOES, 1.00),
    ("R_ankle", "R_toe", 0.052, _SHOES, 0.90),
    ("L_shoulder", "L_elbow", 0.062, _SHIRT, 1.06),
    ("R_shoulder", "R_elbow", 0.062, _SHIRT, 0.82),
    ("L_elbow", "L_hand", 0.052, _SKIN, 1.04),
    ("R_elbow", "R_hand", 0.052, _SKIN, 0.86),
    ("L_hand", "L_hand", 0.066, _SKIN, 1.04),
    ("R_hand", "R_hand", 0.066, _SKIN, 0.86),
    ("head", "head", 0.130, _SKIN, 1.00),
    ("nose", "nose", 0.038, _SKIN, 0.78),
)
_SCALE = 0.40  # metres to picture heights: a neutral figure fills 70%
_GROUND = 0.87  # where the feet stand, in picture heights from the top
_SKIN_LIGHT, _SKIN_DARK, _SHOE = (0.93, 0.72, 0.56), (0.45, 0.28, 0.18), (0.16, 0.12, 0.10)
SECONDS = 2.0  # that a clip lasts, unless it is told otherwise; motions are described in clips of this length
_FRAMES_AT_ONCE = 1024  # bounds the memory on a GPU: 0.3 GB for each of a few tensors at 64 pixels


def render(
    scenes: Tensor,
    bank: tuple[Tensor, Tensor],
    size: int = 64,
    frames: int = 16,
    compiled: bool = False,
    cover: bool = False,
    seconds: float = SECONDS,
) -> Tensor:
    """Draw scenes (b, FIELDS) of the motions in `bank` (see `programs.program_bank`), all on one device.

    A clip spans `seconds` however many frames it has; a single frame shows the start, at the scene's phase.
    compiled: by fused kernels, which are made at the first call with each shape and round a little differently.
    cover: add a fourth channel, how much of each pixel the figure covers, in [0, 1].
    Returns float32 frames in [-1, 1], (b, 3, frames, size, size).
    """
    draw = _compiled() if compiled else _render
    # On the CPU a clip at a time: vectorised loops round the odd elements at their ends differently.
    step = 1 if scenes.device.type == "cpu" else max(1, _FRAMES_AT_ONCE // frames)
    table = _part_table(scenes.device)
    clips = [draw(part, table, bank, size, frames, cover, seconds) for part in scenes.split(step)]
    return torch.cat(clips) if clips else scenes.new_zeros(0, 4 if cover else 3, frames, size, size)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_render, dynamic=False)


def joint_positions(scenes: Tensor, bank: tuple[Tensor, Tensor], frames: int = 16, seconds: float = SECONDS) -> Tensor:
    """Joints (b, frames, joints, 3) in metres as the camera sees them: x right, y up, z towards the viewer."""
    programs, cycles = bank
    index = field(scenes, "program").long()
    time = torch.arange(frames, device=scenes.device) / frames * (seconds / SECONDS)  # in clips
    speed = cycles[index] * field(scenes, "speed")
    first = FIELD[f"length_{PROPORTIONS[0]}"]
    joints = pose(
        programs[index],
        field(scenes, "phase")[:, None] + speed[:, None] * time,
        amplitude=field(scenes, "amplitude"),
        proportions=scenes[:, first : first + len(PROPORTIONS)],
        mirror=field(scenes, "mirror"),
    )
    return turn(joints, field(scenes, "camera_yaw"), field(scenes, "camera_pitch"))


def project(scenes: Tensor, joints: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where joints (b, t, joints, 3) lie in the picture: x, y (b, t, joints) in pixels; the row of the ground (b,); the
    scale (b, 1, 1) in pixels a metre."""
    scale = size * _SCALE * (field(scenes, "camera_zoom") * field(scenes, "height"))[:, None, None]
    ground = size * (_GROUND + field(scenes, "camera_pan_y"))
    x = size * (0.5 + field(scenes, "camera_pan_x"))[:, None, None] + joints[..., 0] * scale
    return x, ground[:, None, None] - joints[..., 1] * scale, ground, scale


def _render(
    scenes: Tensor,
    table: dict[str, Tensor],
    bank: tuple[Tensor, Tensor],
    size: int,
    frames: int,
    with_cover: bool,
    seconds: float,
) -> Tensor:
    joints = joint_positions(scenes, bank, frames, seconds)
    x, y, ground, scale = project(scenes, joints, size)
    depth = joints[..., 2]

    start, end = table["start"], table["end"]
    order = (0.5 * (depth[..., start] + depth[..., end]) + 0.3 * table["radius"]).argsort(dim=2, stable=True)

    def sort(values: Tensor) -> Tensor:  # (b, t, parts), far to near, with room for rows and columns of pixels
        return torch.gather(values.expand(order.shape), 2, order)[..., None, None]

    ax, ay, bx, by = (sort(values) for values in (x[..., start], y[..., start], x[..., end], y[..., end]))
    radius = sort(table["radius"] * field(scenes, "girth")[:, None, None] * scale)
    colours = _part_colours(scenes, table)[:, None].expand(-1, frames, -1, -1)  # (b, t, parts, 3)
    colours = torch.gather(colours, 2, order[..., None].expand(-1, -1, -1, 3))[..., None, None]
    stripes = sort((table["colour"] == _SHIRT) * 0.45 * field(scenes, "shirt_striped")[:, None, None])

    # each part's cover and colour at each pixel, (b, t, parts, size, size)
    row = torch.arange(size, device=scenes.device, dtype=torch.float32)[:, None] + 0.5
    column = row.T
    dx, dy, px, py = bx - ax, by - ay, column - ax, row - ay
    along = ((px * dx + py * dy) / (dx * dx + dy * dy + 1e-4)).clamp(0, 1)
    distance = ((px - dx * along).square() + (py - dy * along).square() + 1e-6).sqrt()
    cover = (radius - distance + 0.5).clamp(0, 1)
    shade = 1.03 - 0.33 * (distance / radius).clamp(0, 1).square()
    shade = shade * (1 - stripes * (0.5 + 0.5 * torch.tanh(6 * torch.sin(15.7 * along))))

    picture = _background(scenes, table, x[..., JOINT["pelvis"]], ground, row, column)  # (b, t, 3, size, size)
    for part in range(len(_PARTS)):  # far to near
        paint = colours[:, :, part] * shade[:, :, part, None]
        picture = torch.lerp(picture, paint, cover[:, :, part, None])
    picture = picture.clamp(0, 1) * 2 - 1
    if with_cover:
        picture = torch.cat([picture, 1 - (1 - cover).prod(2, keepdim=True)], 2)
    return picture.transpose(1, 2).contiguous()


def _part_colours(scenes: Tensor, table: dict[str, Tensor]) -> Tensor:
    """Colours (b, parts, 3) in [0, 1]."""
    tone = field(scenes, "skin")[:, None]
    palette = torch.stack(
        [
            table["cloth"][field(scenes, "shirt").long()],
            table["cloth"][field(scenes, "trousers").long()],
            table["skin_light"] * (1 - tone) + table["skin_dark"] * tone,
            table["shoe"].expand(len(scenes), 3),
        ],
        1,
    )
    light = field(scenes, "light")[:, None, None]
    return (palette[:, table["colour"]] * table["brightness"][:, None] * light).clamp(0, 1)


def _background(
    scenes: Tensor, table: dict[str, Tensor], pelvis_x: Tensor, ground: Tensor, row: Tensor, column: Tensor
) -> Tensor:
    """Wall, floor and a soft shadow under the figure: (b, t, 3, size, size). `ground` (b,) and positions in pixels."""
    size = row.shape[0]

    def each(values: Tensor) -> Tensor:
        return values[:, None, None]

    wall = table["wall"][field(scenes, "background").long()]
    wall = wall * field(scenes, "light")[:, None]
    floor = ((row - each(ground) + 0.06 * size) / (0.012 * size)).clamp(0, 1)  # (b, size, 1)
    tone = (1 + each(field(scenes, "gradient")) * (0.5 - row / size)) * (1 - 0.24 * floor)
    bands = 0.5 + 0.5 * torch.sin(column * (50.0 / size))
    tone = tone * (1 - 0.2 * each(field(scenes, "background_striped")) * bands * (1 - floor))  # (b, size, size)
    across = (column - pelvis_x[..., None, None]) / (0.13 * size)  # (b, t, 1, size)
    down = ((row - each(ground) - 0.016 * size) / (0.031 * size))[:, None]
    shadow = 1 - 0.35 * torch.exp(-across.square() - down.square())
    return wall[:, None, :, None, None] * (tone[:, None] * shadow)[:, :, None]


@lru_cache(maxsize=8)
def _part_table(device: torch.device) -> dict[str, Tensor]:
    """The constants above as tensors on one device."""
    start, end, radius, colour, brightness = zip(*_PARTS)
    return {
        "start": torch.tensor([JOINT[name] for name in start], device=device),
        "end": torch.tensor([JOINT[name] for name in end], device=device),
        "radius": torch.tensor(radius, device=device),
        "colour": torch.tensor(colour, device=device),
        "brightness": torch.tensor(brightness, device=device),
        "cloth": torch.tensor(list(COLOURS.values()), device=device),
        "wall": torch.tensor(list(BACKGROUNDS.values()), device=device),
        "skin_light": torch.tensor(_SKIN_LIGHT, device=device),
        "skin_dark": torch.tensor(_SKIN_DARK, device=device),
        "shoe": torch.tensor(_SHOE, device=device),
    }
