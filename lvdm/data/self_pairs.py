"""Self-pairs: a clip changed alike in all its frames, so that it can accompany itself as a reference.

What changes is what a reference and its target should not share: where the camera stands, colours, textures, the
background, the start and the pace. What stays is the motion, which is all that is left to read. So any clip makes a
pair, without a second clip of the same action, without labels and without a verb in its caption.

Every change has a strength; 0 turns it off. A change is a pure function of the frames, its settings and one seed a
clip: the batch that it is computed in does not enter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lvdm.data.sampling import sample_rng
from lvdm.errors import ConfigError

_STREAM = 14  # keeps these numbers apart from the others that are drawn from a sample's seed
_GRIDS = (4, 9)  # cells along each side of the noise that a replaced background is made of
_UNIFORMS = 32  # drawn for every clip whatever the settings, so that a setting changes only its own effect
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))  # numbers beyond it would become 1 in float32
GEOMETRY = ("scale", "rotation", "aspect", "shift", "crop")  # fields of SelfPairConfig
_STILL = 0.12  # frames are in [-1, 1]: less than this from the clip's median over time does not count as motion


@dataclass(frozen=True)
class SelfPairConfig:
    """How strongly a clip is changed. Geometry and looks are drawn once a clip, and are the same in all its frames.

    scale: 0.25 draws a zoom from 0.75 to 1.25. rotation: largest angle, degrees. aspect: 0.1 stretches the width by a
    factor from 0.9 to 1.1. shift: largest shift along each axis, as a share of the frame. crop: how much of each side
    another crop of the frame may leave out, a share; it only ever enlarges.
    colour: weight of a random 3x3 matrix of the colour channels against the identity. convolution: largest weight of a
    random 3x3 convolution against that matrix, which changes textures and edges. contrast, brightness: how far the
    standard deviation and the mean of each colour channel leave the clip's own for a random one. All four in [0, 1].
    background: share of clips whose still parts (those that stay near their median over time, some way around all that
    moves) are replaced by random texture; it takes a camera that stands still.
    start: largest shift in time, as a share of the clip's length. rate: 0.2 draws a pace from 0.8 to 1.2. The frames
    that are missing at an end repeat the last one that is there.
    partial: share of clips of which one half is blanked: the first or second half of the frames, or the left, right,
    upper or lower half of the picture. It teaches to read several references that each tell a part.

    The defaults are what docs/recipe.md recommends. To mirror target and reference alike, set
    data.clip.augmentation.flip, which reads the clip itself mirrored.
    """

    scale: float = 0.1
    rotation: float = 4.0
    aspect: float = 0.04
    shift: float = 0.03
    crop: float = 0.0
    colour: float = 1.0
    convolution: float = 1.0
    contrast: float = 1.0
    brightness: float = 1.0
    background: float = 0.0
    start: float = 0.05
    rate: float = 0.1
    partial: float = 0.0

    def __post_init__(self) -> None:
        limits = {"scale": 0.9, "aspect": 0.9, "crop": 0.9, "rate": 0.9, "rotation": 180.0}
        for each in fields(self):
            value, most = getattr(self, each.name), limits.get(each.name, 1.0)
            if not 0.0 <= value <= most:
                raise ConfigError(f"references.changes.{each.name} = {value}: choose a number from 0 to {most:g}")

    def with_geometry(self, factor: float) -> "SelfPairConfig":
        """The same with `factor` times as strong a geometry. Raises ConfigError where that is too strong."""
        return replace(self, **{name: factor * getattr(self, name) for name in GEOMETRY})


@dataclass(frozen=True)
class CachedChanges:
    """What a latent cache holds beside the clips themselves: `count` changed versions of each cached crop."""

    changes: SelfPairConfig
    count: int = 4

    def entry(self, cached_crop: int, changed: int, cached_crops: int) -> int:
        """The number in the cache of changed version `changed` of a crop; the crops themselves have the first ones."""
        return cached_crops + cached_crop * self.count + changed


@dataclass
class _Numbers:
    """The random numbers of n clips: `unit` (n, _UNIFORMS) in [0, 1), of which `next` takes one column after another;
    normal ones for the colour matrix (n, 3, 3), the convolution (n, 3, 3, 3, 3) and the texture (n, 3, g, g) each.
    `geometry` (n,) is no random number: it is what the strengths of the geometry are multiplied by."""

    unit: Tensor
    matrix: Tensor
    kernel: Tensor
    grids: list[Tensor]
    geometry: Tensor
    taken: int = 0

    def next(self, count: int = 1) -> Tensor:
        """Uniform numbers in [0, 1), (n, count)."""
        self.taken += count
        return self.unit[:, self.taken - count : self.taken]

    def signed(self) -> Tensor:
        """Uniform numbers in [-1, 1), (n,)."""
        return self.next()[:, 0] * 2 - 1


@torch.no_grad()
def change_clips(
    frames: Tensor, seeds: Sequence[int], config: SelfPairConfig, geometry: Sequence[float] | None = None
) -> Tensor:
    """Each clip changed in its own way, alike in all its frames.

    Args:
        frames: (n, 3, t, h, w) in [-1, 1], on any device.
        seeds: one non-negative integer below 2**63 for each clip, from which all its random numbers come.
        geometry: for each clip a factor of the geometry's strengths, see `SelfPairConfig.with_geometry`; 1 by default.

    Returns (n, 3, t, h, w) in [-1, 1], in the type of `frames`.
    """
    if len(seeds) != len(frames):
        raise ValueError(f"{len(frames)} clips need as many seeds, got {len(seeds)}")
    if geometry is not None and len(geometry) != len(frames):
        raise ValueError(f"{len(frames)} clips need as many factors of their geometry, got {len(geometry)}")
    with torch.autocast(frames.device.type, enabled=False):
        numbers = _draw(seeds, geometry, frames.device)
        clips = frames.float()
        clips = _background(clips, numbers, config)
        clips = _time(clips, numbers, config)
        clips = _geometry(clips, numbers, config)
        clips = _looks(clips, numbers, config)
        clips = _partial(clips, numbers, config)
    return clips.clamp(-1, 1).to(frames.dtype)


def reference_seed(noise_seed: int, reference: int) -> int:
    """The seed of `change_clips` for reference number `reference` (0, 1, ...) of the sample with this noise seed."""
    return int(sample_rng(noise_seed, _STREAM + (reference << 32)).integers(2**62))


def _draw(seeds: Sequence[int], geometry: Sequence[float] | None, device: torch.device) -> _Numbers:
    normals = 9 + 81 + sum(3 * cells * cells for cells in _GRIDS)
    rows = np.ones((len(seeds), _UNIFORMS + normals + 1), np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        rng = sample_rng(seed, _STREAM)
        row[:_UNIFORMS] = np.minimum(rng.random(_UNIFORMS), _BELOW_ONE)
        row[_UNIFORMS:-1] = rng.standard_normal(normals)
    if geometry is not None:
        rows[:, -1] = geometry
    values = torch.from_numpy(rows)
    if device.type == "cuda":  # pinned, so that the copy does not make the host wait
        values = values.pin_memory()
    values = values.to(device, non_blocking=True)
    unit, matrix, kernel, *grids, factor = values.split([_UNIFORMS, 9, 81, *(3 * c * c for c in _GRIDS), 1], 1)
    shapes = [grid.unflatten(1, (3, cells, cells)) for grid, cells in zip(grids, _GRIDS, strict=True)]
    return _Numbers(unit, matrix.unflatten(1, (3, 3)), kernel.unflatten(1, (3, 3, 3, 3)), shapes, factor[:, 0])


def _background(clips: Tensor, numbers: _Numbers, config: SelfPairConfig) -> Tensor:
    """Random texture in place of what stays still, with a soft edge around all places through which something moves."""
    chosen = numbers.next()[:, 0] < config.background
    if not config.background:
        return clips
    h, w = clips.shape[3:]
    still = clips.median(dim=2, keepdim=True).values
    moved = (clips - still).abs().mean(1).amax(1, keepdim=True) > _STILL  # (n, 1, h, w)
    reach = 2 * (min(h, w) // 16) + 1
    mask = F.max_pool2d(moved.float(), reach, stride=1, padding=reach // 2)
    mask = F.avg_pool2d(mask, reach, stride=1, padding=reach // 2, count_include_pad=False)
    waves = [F.interpolate(grid, (h, w), mode="bilinear", align_corners=False) for grid in numbers.grids]
    texture = (0.45 * torch.stack(waves).sum(0)).clamp(-1, 1)
    mask = torch.where(chosen[:, None, None, None], mask, 1.0)[:, :, None]
    return torch.lerp(texture[:, :, None], clips, mask)


def _time(clips: Tensor, numbers: _Numbers, config: SelfPairConfig) -> Tensor:
    """Another start and another pace: the nearest frames, none mixed."""
    start, pace = config.start * numbers.signed(), 1 + config.rate * numbers.signed()
    if not config.start and not config.rate:
        return clips
    t = clips.shape[2]
    middle = (t - 1) / 2
    places = middle + (torch.arange(t, device=clips.device) - middle) * pace[:, None] + start[:, None] * t
    index = places.round().clamp(0, t - 1).long()[:, None, :, None, None]
    return clips.gather(2, index.expand(clips.shape))


def _geometry(clips: Tensor, numbers: _Numbers, config: SelfPairConfig) -> Tensor:
    """Zoom, rotation, aspect, shift and crop in one resampling; what lies outside repeats the border."""
    scale, angle, aspect = (numbers.geometry * numbers.signed() for _ in range(3))
    scale, angle, aspect = 1 + config.scale * scale, torch.deg2rad(config.rotation * angle), 1 + config.aspect * aspect
    side = 1 - config.crop * numbers.geometry * numbers.next()[:, 0]  # of the part that is kept
    right, down = (
        2 * config.shift * numbers.geometry * numbers.signed() + (1 - side) * numbers.signed() for _ in range(2)
    )
    if not any((config.scale, config.rotation, config.aspect, config.shift, config.crop)):
        return clips
    n, _, t, h, w = clips.shape
    long = w / h  # turning is done in pixels, so that nothing is sheared
    wide, high = scale * aspect / side, scale / side
    matrix = torch.stack(
        [angle.cos() / wide, -angle.sin() / high / long, right, angle.sin() / wide * long, angle.cos() / high, down], 1
    )
    grid = F.affine_grid(matrix.unflatten(1, (2, 3)), [n, 3, h, w], align_corners=False)
    grid = grid.repeat_interleave(t, 0)
    flat = clips.transpose(1, 2).flatten(0, 1)
    flat = F.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
    moved: Tensor = flat.unflatten(0, (n, t)).transpose(1, 2)
    return moved


def _looks(clips: Tensor, numbers: _Numbers, config: SelfPairConfig) -> Tensor:
    """Mix colours and neighbouring pixels at random, then give each channel a random mean and contrast."""
    mix = config.convolution * numbers.next()[:, 0, None, None, None, None]
    spread, level = 0.25 + 0.35 * numbers.next(3), numbers.next(3) - 0.5
    if not any((config.colour, config.convolution, config.contrast, config.brightness)):
        return clips
    n = len(clips)
    mean, std = _moments(clips)
    matrix = (1 - config.colour) * torch.eye(3, device=clips.device) + config.colour * numbers.matrix / 3**0.5
    kernel = mix * numbers.kernel / 27**0.5
    kernel[..., 1, 1] += (1 - mix[..., 0, 0]) * matrix
    flat = clips.permute(2, 0, 1, 3, 4).flatten(1, 2)  # (t, n * 3, h, w): a group for each clip
    flat = F.conv2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), kernel.flatten(0, 1), groups=n)
    mixed: Tensor = flat.unflatten(1, (n, 3)).permute(1, 2, 0, 3, 4)
    own_mean, own_std = _moments(mixed)
    spread, level = (values[:, :, None, None, None] for values in (spread, level))
    std = torch.lerp(std, spread, config.contrast)
    mean = torch.lerp(mean, level, config.brightness)
    return (mixed - own_mean) / (own_std + 1e-4) * std + mean


def _moments(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over a clip, (n, 3, 1, 1, 1)."""
    return clips.mean((2, 3, 4), keepdim=True), clips.std((2, 3, 4), keepdim=True)


def _partial(clips: Tensor, numbers: _Numbers, config: SelfPairConfig) -> Tensor:
    """Blank one half of some clips, in time or in the picture, with the clip's mean colour."""
    chosen, which = numbers.next()[:, 0] < config.partial, numbers.next()[:, 0]
    if not config.partial:
        return clips
    t, h, w = clips.shape[2:]
    places = [torch.arange(size, device=clips.device) < size // 2 for size in (t, h, w)]
    halves = []
    for axis, first in enumerate(places):
        shape = [1, 1, 1, 1]
        shape[axis + 1] = len(first)
        halves += [first.reshape(shape).expand(1, t, h, w), (~first).reshape(shape).expand(1, t, h, w)]
    shown = torch.stack(halves)[(which * len(halves)).long()]  # (n, 1, t, h, w)
    shown = shown | ~chosen[:, None, None, None, None]
    return torch.where(shown, clips, clips.mean((2, 3, 4), keepdim=True))


def blank_half(clip: Tensor, half: int) -> Tensor:
    """One half of the frames of a clip (3, t, h, w): the first (0) or the second (1), the others in its mean colour."""
    t = clip.shape[1]
    first = torch.arange(t, device=clip.device) < t // 2
    shown = first if half == 0 else ~first
    return torch.where(shown[:, None, None], clip, clip.mean((1, 2, 3), keepdim=True))
