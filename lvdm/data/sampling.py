"""Everything random about a training sample, as a pure function of (seed, global sample number).

Samples are numbered 0, 1, 2, ... over the whole run. Nothing else decides what a sample is: neither the device, nor
the loader worker, nor what was drawn before. So the state of the data is one integer, the number of samples consumed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import ClassVar, Protocol

import numpy as np

from lvdm.data.clips import ClipRecord
from lvdm.errors import ConfigError


@dataclass(frozen=True)
class Changed:
    """In the answer of a pair sampler: the video of this index, with a change of looks and camera (see
    `lvdm.data.self_pairs`). The target's own index makes a self-pair, which shows the same part of the video."""

    index: int


@dataclass(frozen=True)
class Wrong:
    """In the answer of a pair sampler: a video that does not belong to the target. It is told with the target's
    caption, as a reference is when videos are sampled, so that its own caption does not give it away. changed: with a
    change of looks and camera."""

    index: int
    changed: bool


class PairSampler(Protocol):
    """Chooses the videos of a sample; all its randomness comes from `rng`."""

    def __call__(
        self, rng: np.random.Generator, records: Sequence[ClipRecord], number: int = 0
    ) -> Sequence[int | Changed | Wrong]:
        """[target, reference, ...] of sample `number`, as indices of `records`."""
        ...


@dataclass(frozen=True)
class Augmentation:
    """Which part of a video a clip shows; positions in [0, 1] as `frame_indices` and `resize_crop` take them."""

    position: float = 0.5
    crop: tuple[float, float] = (0.5, 0.5)
    flip: bool = False


@dataclass(frozen=True)
class SampledClip:
    """A video of the manifest and what to take from it.

    `cached_crop` numbers the augmentation where each video has a fixed set of them. `changed` is set for a reference
    whose looks and camera are changed; where changed clips are cached too, it says which of them is meant. `told_by` is
    the video whose caption goes with the clip, where that is not its own.
    """

    index: int
    augmentation: Augmentation
    cached_crop: int | None = None
    changed: int | None = None
    told_by: int | None = None


@dataclass(frozen=True)
class TrainingSample:
    """One training sample: eq. 9 needs the target, its references, t (from `timestep_u` in [0, 1)) and the noise."""

    number: int
    target: SampledClip
    references: tuple[SampledClip, ...]
    timestep_u: float
    noise_seed: int


@dataclass(frozen=True)
class AugmentationConfig:
    """How augmentations are drawn.

    cached_crops: None draws a fresh augmentation for each sample; a number gives each video that many fixed ones, of
    which a sample draws one: this is what a latent cache can hold.
    flip: the probability of a mirrored clip, 0 by default, since mirroring exchanges left and right in an action.
    """

    RENAMED: ClassVar[dict[str, str]] = {"variants": "cached_crops"}

    random_position: bool = True
    random_crop: bool = False
    flip: float = 0.0
    cached_crops: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.flip <= 1.0:
            raise ConfigError(f"flip = {self.flip} is a probability: choose a number in [0, 1]")
        if self.cached_crops is not None and self.cached_crops < 1:
            raise ConfigError(f"cached_crops = {self.cached_crops}: each video needs at least one augmentation")


def sample_rng(seed: int, number: int) -> np.random.Generator:
    """The random numbers of sample `number`: a counter-based generator keyed by both, so jumping there is free."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))


def cached_augmentation(config: AugmentationConfig, seed: int, key: str, cached_crop: int) -> Augmentation:
    """Augmentation number `cached_crop` of the video named `key`: the same wherever and whenever it is asked for."""
    name = int.from_bytes(sha256(f"{cached_crop}:{key}".encode()).digest()[:8], "little")
    return _draw_augmentation(config, sample_rng(seed, name))


def uniform_sampler(rng: np.random.Generator, records: Sequence[ClipRecord], number: int = 0) -> list[int | Changed]:
    """Any video as the target, no references: for training a base model."""
    return [int(rng.integers(len(records)))]


def candidates(
    seed: int,
    number: int,
    records: Sequence[ClipRecord],
    pair_sampler: PairSampler,
    config: AugmentationConfig,
    cached_changes: int = 1,
) -> Iterator[TrainingSample]:
    """The sample `number`, then, should one of its videos prove broken, its first replacement, its second, ...

    All come from one generator. Time and noise are drawn first and stay the same, so they do not depend on the files.
    cached_changes: of how many changed versions of a clip one is drawn.
    """
    rng = sample_rng(seed, number)
    timestep_u, noise_seed = float(rng.random()), int(rng.integers(2**62))
    while True:
        chosen, *references = pair_sampler(rng, records, number)
        target = _index(chosen)
        clips = [_draw_clip(config, seed, rng, target, records[target].key)]
        for reference in references:
            index, own = _index(reference), isinstance(reference, Changed) and reference.index == target
            clip = clips[0] if own else _draw_clip(config, seed, rng, index, records[index].key)
            if isinstance(reference, Changed) or (isinstance(reference, Wrong) and reference.changed):
                clip = replace(clip, changed=int(rng.integers(cached_changes)))
            clips.append(replace(clip, told_by=target) if isinstance(reference, Wrong) else clip)
        yield TrainingSample(number, clips[0], tuple(clips[1:]), timestep_u, noise_seed)


def _index(chosen: int | Changed | Wrong) -> int:
    return chosen.index if isinstance(chosen, Changed | Wrong) else int(chosen)


def _draw_clip(config: AugmentationConfig, seed: int, rng: np.random.Generator, index: int, key: str) -> SampledClip:
    if config.cached_crops is None:
        return SampledClip(int(index), _draw_augmentation(config, rng))
    cached_crop = int(rng.integers(config.cached_crops))
    return SampledClip(int(index), cached_augmentation(config, seed, key, cached_crop), cached_crop)


def _draw_augmentation(config: AugmentationConfig, rng: np.random.Generator) -> Augmentation:
    position, down, right, flip = rng.random(4).tolist()  # always four, so that a setting changes only its own effect
    return Augmentation(
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
