"""Everything random about a training sample, as a pure function of (seed, global sample number).

Samples are numbered 0, 1, 2, ... over the whole run. Nothing else decides what a sample is: neither the device, nor
the loader worker, nor what was drawn before. So the state of the data is one integer, the number of samples consumed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from lvdm.data.clips import ClipRecord
from lvdm.errors import ConfigError

Picker = Callable[[np.random.Generator, Sequence[ClipRecord]], Sequence[int]]
"""(rng, records) -> [target, reference, ...], indices of records; all its randomness comes from `rng`."""


@dataclass(frozen=True)
class View:
    """Which part of a video a clip shows; positions in [0, 1] as `frame_indices` and `resize_crop` take them."""

    position: float = 0.5
    crop: tuple[float, float] = (0.5, 0.5)
    flip: bool = False


@dataclass(frozen=True)
class ClipDraw:
    """A video of the catalogue and what to take from it; `variant` numbers the view where a clip has a fixed set."""

    index: int
    view: View
    variant: int | None = None


@dataclass(frozen=True)
class Draw:
    """One training sample: eq. 9 needs the target, its references, t (from `timestep_u` in [0, 1)) and the noise."""

    number: int
    target: ClipDraw
    references: tuple[ClipDraw, ...]
    timestep_u: float
    noise_seed: int


@dataclass(frozen=True)
class ViewConfig:
    """How views are drawn. `variants`: None draws a fresh view for each sample; a number gives each video that many
    fixed views, of which a sample draws one: this is what a latent cache can hold. Flips are off by default, since
    they exchange left and right in an action."""

    random_position: bool = True
    random_crop: bool = False
    flip: float = 0.0
    variants: int | None = None

    def __post_init__(self):
        if not 0.0 <= self.flip <= 1.0:
            raise ConfigError(f"flip = {self.flip} is a probability: choose a number in [0, 1]")
        if self.variants is not None and self.variants < 1:
            raise ConfigError(f"variants = {self.variants}: each video needs at least one view")


def sample_rng(seed: int, number: int) -> np.random.Generator:
    """The random numbers of sample `number`: a counter-based generator keyed by both, so jumping there is free."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))


def variant_view(config: ViewConfig, seed: int, key: str, variant: int) -> View:
    """View number `variant` of the video named `key`: the same wherever and whenever it is asked for."""
    name = int.from_bytes(sha256(f"{variant}:{key}".encode()).digest()[:8], "little")
    return _draw_view(config, sample_rng(seed, name))


def uniform_picker(rng: np.random.Generator, records: Sequence[ClipRecord]) -> list[int]:
    """Any video as the target, no references: for training a base model."""
    return [int(rng.integers(len(records)))]


def draws(seed: int, number: int, records: Sequence[ClipRecord], picker: Picker, config: ViewConfig) -> Iterator[Draw]:
    """The sample `number`, then, should one of its videos prove broken, its first replacement, its second, ...

    All come from one generator. Time and noise are drawn first and stay the same, so they do not depend on the files.
    """
    rng = sample_rng(seed, number)
    timestep_u, noise_seed = float(rng.random()), int(rng.integers(2**62))
    while True:
        clips = [_draw_clip(config, seed, rng, index, records[index].key) for index in picker(rng, records)]
        yield Draw(number, clips[0], tuple(clips[1:]), timestep_u, noise_seed)


def _draw_clip(config: ViewConfig, seed: int, rng: np.random.Generator, index: int, key: str) -> ClipDraw:
    if config.variants is None:
        return ClipDraw(int(index), _draw_view(config, rng))
    variant = int(rng.integers(config.variants))
    return ClipDraw(int(index), variant_view(config, seed, key, variant), variant)


def _draw_view(config: ViewConfig, rng: np.random.Generator) -> View:
    position, down, right, flip = rng.random(4).tolist()  # always four, so that a setting changes only its own effect
    return View(
        position=position if config.random_position else 0.5,
        crop=(down, right) if config.random_crop else (0.5, 0.5),
        flip=flip < config.flip,
    )


class NumberSampler:
    """Batches of global sample numbers for one of several ranks, without end.

    Its batch j holds start + (j * world_size + rank) * batch_size + [0, batch_size): the ranks' j-th batches together
    are the next world_size * batch_size numbers. So with a fixed number of samples in an optimiser step, step s takes
    the same samples however many devices and accumulated batches share it.
    """

    def __init__(self, batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0):
        self.batch_size, self.rank, self.world_size, self.start = batch_size, rank, world_size, start

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world_size * self.batch_size
