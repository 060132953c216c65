"""Scenes that are harder to read than a person before a plain wall: what real videos have and the puppet world lacks.

Everything here is drawn over what the renderer made, once a clip and as a pure function of its scene, so a clip has the
same difficulties wherever it is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from aicl.puppets.renderer import joint_positions, project, render
from aicl.puppets.scene_parameters import COLOURS, FIELDS, draw_scene_parameters
from aicl.puppets.skeleton import JOINT
from lvdm.errors import ConfigError

VERSION = 1  # raised when the same scenes come to look otherwise
_OTHER = len(FIELDS) + 2  # uniforms of a second person
_UNIFORMS = 48 + _OTHER  # drawn for every clip whatever the settings, so that one changes only its own effect
_GRIDS = (5, 11)  # cells along each side of a texture


@dataclass(frozen=True)
class HardScenes:
    """Which share of the clips has which difficulty; shares are independent of each other.

    moving_camera: it pans by up to a tenth of the frame, zooms by up to 15% and rolls by up to 4 degrees in a clip.
    textured_background: light and dark patches, under which the wall keeps its colour. moving_background: the patches
    of all textured ones move. object_in_hand: a stick. second_person: somebody behind at a side, doing something else.
    occlusion: a post or a low wall stands in front.
    """

    moving_camera: float = 0.0
    textured_background: float = 0.0
    moving_background: float = 0.0
    object_in_hand: float = 0.0
    second_person: float = 0.0
    occlusion: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0.0 <= getattr(self, each.name) <= 1.0:
                raise ConfigError(f"hard_scenes.{each.name} = {getattr(self, each.name)}: choose a share in [0, 1]")

    @property
    def any(self) -> bool:
        """Whether there is something to draw."""
        return any(getattr(self, each.name) > 0 for each in fields(self))


def scene_seeds(scenes: NDArray[np.float32]) -> list[int]:
    """A number for each of the scenes (n, FIELDS), from which its difficulties are drawn."""
    digests = (blake2b(np.ascontiguousarray(row, np.float32).tobytes(), digest_size=7) for row in scenes)
    return [int.from_bytes(digest.digest(), "little") for digest in digests]


@torch.no_grad()
def render_hard(
    scenes: Tensor,
    seeds: Sequence[int],
    bank: tuple[Tensor, Tensor],
    config: HardScenes,
    size: int = 64,
    frames: int = 16,
    compiled: bool = False,
) -> Tensor:
    """Like `render`, with the difficulties of `config`; `seeds` are those of `scene_seeds`.

    Returns float32 frames in [-1, 1], (b, 3, frames, size, size).
    """
    draws, textures = _draw(seeds, scenes.device)
    with_cover = render(scenes, bank, size, frames, compiled, cover=True)
    picture, cover = (with_cover[:, :3] + 1) / 2, with_cover[:, 3:]
    chosen = {each.name: draws[:, i] < getattr(config, each.name) for i, each in enumerate(fields(config))}
    rest = draws[:, 8:]
    moving = chosen["moving_background"] & chosen["textured_background"]
    if config.textured_background:
        light = _texture(textures, rest[:, :3], moving, size, frames)
        light = torch.where(_wide(chosen["textured_background"]), light, 1.0)
        picture = picture * torch.lerp(light, torch.ones_like(light), cover)
    if config.second_person:
        other = _second_person(rest[:, 40:], draws[:, 7], bank, size, frames, compiled)
        behind = other[:, 3:] * (1 - cover) * _wide(chosen["second_person"])
        picture = torch.lerp(picture, (other[:, :3] + 1) / 2, behind)
    if config.object_in_hand:
        colour, stick = _stick(scenes, rest[:, 3:9], bank, size, frames)
        picture = torch.lerp(picture, colour, stick * _wide(chosen["object_in_hand"]))
    if config.occlusion:
        colour, front = _obstacle(rest[:, 9:16], size)
        picture = torch.lerp(picture, colour, front * _wide(chosen["occlusion"]))
    if config.moving_camera:
        moved = _camera(picture, rest[:, 16:26])
        picture = torch.where(_wide(chosen["moving_camera"]), moved, picture)
    return picture.clamp(0, 1) * 2 - 1


def _draw(seeds: Sequence[int], device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Uniform numbers (n, _UNIFORMS), and normal ones (n, 1, g, g) for each grid of a texture."""
    rows = np.empty((len(seeds), _UNIFORMS + sum(g * g for g in _GRIDS)), np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        rng = np.random.Generator(np.random.Philox(key=seed))
        row[:_UNIFORMS] = rng.random(_UNIFORMS)
        row[_UNIFORMS:] = rng.standard_normal(len(row) - _UNIFORMS)
    draws, *grids = torch.from_numpy(rows).to(device).split([_UNIFORMS, *(g * g for g in _GRIDS)], 1)
    return draws, [grid.unflatten(1, (1, g, g)) for grid, g in zip(grids, _GRIDS, strict=True)]


def _wide(values: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1, 1)."""
    return values[:, None, None, None, None]


def _colour(draws: Tensor) -> Tensor:
    """One of the world's colours for each of the draws (n,), (n, 3, 1, 1, 1)."""
    table = torch.tensor(list(COLOURS.values()), device=draws.device)
    return table[(draws * len(table)).long()][:, :, None, None, None]


def _texture(grids: list[Tensor], draws: Tensor, moving: Tensor, size: int, frames: int) -> Tensor:
    """How light each place of the background is, about 1, (n, 1, t, size, size); `moving` (n,) ones drift."""
    wide = 2 * size  # enough to drift over
    waves = [F.interpolate(grid, (wide, wide), mode="bicubic", align_corners=True) for grid in grids]
    patches = torch.stack(waves).sum(0).repeat_interleave(frames, 0)
    time = torch.linspace(-0.5, 0.5, frames, device=draws.device)
    drift = (draws[:, :2] * 2 - 1) * moving[:, None]  # in halves of the wide picture, over the clip
    centre = (0.5 * drift[:, None] * time[None, :, None]).flatten(0, 1)  # (n * t, 2)
    theta = torch.zeros(len(centre), 2, 3, device=draws.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 0.5
    theta[:, :, 2] = centre
    grid = F.affine_grid(theta, [len(centre), 1, size, size], align_corners=False)
    seen = F.grid_sample(patches, grid, padding_mode="reflection", align_corners=False)
    light: Tensor = (1 + 0.22 * seen).clamp(0.4, 1.4).unflatten(0, (-1, frames)).transpose(1, 2)
    return light


def _second_person(
    draws: Tensor, program: Tensor, bank: tuple[Tensor, Tensor], size: int, frames: int, compiled: bool
) -> Tensor:
    """Somebody smaller, to the left or to the right, with cover: (n, 4, t, size, size)."""
    numbers = draws.double().cpu().numpy()
    programs = (program.cpu().numpy() * len(bank[0])).astype(np.int64)
    scenes = torch.from_numpy(draw_scene_parameters(numbers, programs)).to(draws.device)
    drawn = render(scenes, bank, size, frames, compiled, cover=True)
    side = torch.where(draws[:, -1] < 0.5, -1.0, 1.0)
    theta = torch.zeros(len(draws), 2, 3, device=draws.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.6  # so much smaller
    theta[:, 0, 2], theta[:, 1, 2] = side, -0.25  # feet a little above those in front
    grid = F.affine_grid(theta, [len(draws), 4, size, size], align_corners=False).repeat_interleave(frames, 0)
    flat = drawn.transpose(1, 2).flatten(0, 1)
    moved = F.grid_sample(flat, grid, padding_mode="zeros", align_corners=False)
    person: Tensor = moved.unflatten(0, (-1, frames)).transpose(1, 2)
    return person


def _stick(scenes: Tensor, draws: Tensor, bank: tuple[Tensor, Tensor], size: int, frames: int) -> tuple[Tensor, Tensor]:
    """A stick that goes on where the forearm ends: its colour, and its cover (n, 1, t, size, size)."""
    joints = joint_positions(scenes, bank, frames)
    x, y, _, scale = project(scenes, joints, size)
    side = torch.where(draws[:, 0] < 0.5, JOINT["L_hand"], JOINT["R_hand"])
    elbow = torch.where(draws[:, 0] < 0.5, JOINT["L_elbow"], JOINT["R_elbow"])

    def at(values: Tensor, joint: Tensor) -> Tensor:  # (n, t, 1, 1)
        return values.gather(2, joint[:, None, None].expand(-1, frames, 1))[..., None]

    hand_x, hand_y = at(x, side), at(y, side)
    along = torch.stack([hand_x - at(x, elbow), hand_y - at(y, elbow)])
    along = along / (along.square().sum(0, keepdim=True) + 1e-4).sqrt()
    length = ((0.25 + 0.45 * draws[:, 1])[:, None, None] * scale)[..., None]
    row = torch.arange(size, device=scenes.device, dtype=torch.float32)[:, None] + 0.5
    px, py = row.T - hand_x, row - hand_y
    place = (px * along[0] + py * along[1]).clamp(min=0)
    place = torch.minimum(place, length.expand_as(place))
    distance = ((px - along[0] * place).square() + (py - along[1] * place).square()).sqrt()
    radius = 0.028 * scale[..., None]
    return _colour(draws[:, 2]), (radius - distance + 0.5).clamp(0, 1)[:, None]


def _obstacle(draws: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A post from top to bottom, or a wall up to the knees: its colour, and its cover (n, 1, 1, size, size)."""
    place = (torch.arange(size, device=draws.device) + 0.5) / size
    centre, half = 0.3 + 0.4 * draws[:, 1], 0.04 + 0.06 * draws[:, 2]
    post = ((half[:, None] - (place - centre[:, None]).abs()) * size + 0.5).clamp(0, 1)[:, None, :]
    top = 0.70 + 0.12 * draws[:, 3]
    wall = ((place - top[:, None]) * size + 0.5).clamp(0, 1)[:, :, None]
    is_post = (draws[:, 0] < 0.5)[:, None, None]
    cover = torch.where(is_post, post.expand(-1, size, -1), wall.expand(-1, -1, size))
    return _colour(draws[:, 4]), cover[:, None, None]


def _camera(picture: Tensor, draws: Tensor) -> Tensor:
    """The picture as a camera sees it that pans, zooms and rolls, beginning and ending at random."""
    n, _, t, h, w = picture.shape
    first, last = draws[:, :4] * 2 - 1, draws[:, 4:8] * 2 - 1
    time = torch.linspace(0, 1, t, device=picture.device)[:, None]
    wave = torch.sin(2 * torch.pi * (time + draws[:, None, 8:9])) * (draws[:, None, 9:10] - 0.5)
    now = (torch.lerp(first[:, None], last[:, None], time) + 0.5 * wave).flatten(0, 1)  # (n * t, 4)
    zoom, angle = 1 - 0.075 * (1 + now[:, 2]), torch.deg2rad(4 * now[:, 3])
    rows = [angle.cos() * zoom, -angle.sin() * zoom, 0.1 * now[:, 0]]
    rows += [angle.sin() * zoom, angle.cos() * zoom, 0.1 * now[:, 1]]
    theta = torch.stack(rows, 1).unflatten(1, (2, 3))
    grid = F.affine_grid(theta, [n * t, 3, h, w], align_corners=False)
    flat = picture.transpose(1, 2).flatten(0, 1)
    flat = F.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    seen: Tensor = flat.unflatten(0, (n, t)).transpose(1, 2)
    return seen
