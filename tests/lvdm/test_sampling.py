"""Sampling is a pure function of (seed, sample number)."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lvdm.data import Augmentation, AugmentationConfig, ClipRecord, NumberSampler, sample_rng, uniform_sampler
from lvdm.data.sampling import Changed, Wrong, cached_augmentation, candidates
from lvdm.errors import ConfigError

RECORDS = [ClipRecord(Path(f"{index}.mp4"), "walks") for index in range(50)]
FREE = AugmentationConfig(random_crop=True, flip=0.5)


KNOWN = (18, 14, 1475682380706110374, 0.8352795268491885)  # target, reference, noise seed, u


def sample_pair(rng, records, number=0):
    return [int(index) for index in rng.choice(len(records), 2, replace=False)]


def draw(number, seed=0, config=FREE, pair_sampler=sample_pair):
    return next(candidates(seed, number, RECORDS, pair_sampler, config))


def test_the_same_number_is_the_same_sample_in_any_order():
    forwards = [draw(number) for number in range(30)]
    backwards = [draw(number) for number in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert len({drawn.noise_seed for drawn in forwards}) == 30
    assert draw(3) != draw(3, seed=1)


def test_known_values_never_change():
    """A run that began under an older version must be able to go on: these figures are part of the format."""
    drawn = draw(12345, seed=7)
    assert (drawn.target.index, drawn.references[0].index, drawn.noise_seed) == KNOWN[:3]
    assert drawn.timestep_u == pytest.approx(KNOWN[3], abs=1e-15)


def test_numbers_are_spread_evenly():
    drawn = [draw(number) for number in range(4000)]
    for values in (
        [d.timestep_u for d in drawn],
        [d.target.augmentation.position for d in drawn],
        [d.references[0].augmentation.crop[1] for d in drawn],
        [d.noise_seed / 2**62 for d in drawn],
    ):
        # Standard error of the mean of 4000 uniform numbers: 0.0046.
        assert abs(np.mean(values) - 0.5) < 0.02 and min(values) >= 0 and max(values) < 1
    assert abs(np.mean([d.target.augmentation.flip for d in drawn]) - 0.5) < 0.04
    counts = np.bincount([d.target.index for d in drawn], minlength=50)
    assert counts.min() > 40 and counts.max() < 125  # 80 each, standard deviation 9
    neighbours = np.corrcoef([d.timestep_u for d in drawn[:-1]], [d.timestep_u for d in drawn[1:]])
    assert abs(neighbours[0, 1]) < 0.06


def test_time_and_noise_do_not_depend_on_the_videos():
    alone = draw(5, pair_sampler=uniform_sampler)
    replacement = next(islice(candidates(0, 5, RECORDS, sample_pair, AugmentationConfig()), 3, None))
    assert (alone.timestep_u, alone.noise_seed) == (replacement.timestep_u, replacement.noise_seed)
    assert replacement.target != draw(5).target


def test_what_does_not_vary_is_centred_and_changes_nothing_else():
    fixed = draw(9, config=AugmentationConfig(random_position=False))
    assert fixed.target.augmentation == Augmentation(0.5, (0.5, 0.5), False)
    assert (fixed.target.index, fixed.references[0].index) == (draw(9).target.index, draw(9).references[0].index)


def test_variants_are_few_fixed_views():
    config = AugmentationConfig(random_crop=True, cached_crops=3)
    seen = {}
    for number in range(400):
        clip = draw(number, config=config).target
        seen.setdefault((clip.index, clip.cached_crop), set()).add(clip.augmentation)
        assert clip.augmentation == cached_augmentation(config, 0, RECORDS[clip.index].key, clip.cached_crop)
    assert all(len(augmentations) == 1 for augmentations in seen.values())
    assert {cached_crop for _, cached_crop in seen} == {0, 1, 2}
    assert len(set.union(*seen.values())) == len(seen)  # all different from each other


def test_bad_settings():
    assert AugmentationConfig(flip=1.0, cached_crops=1).flip == 1.0  # the least and the most that there is
    for settings in ({"flip": 1.5}, {"cached_crops": 0}):
        with pytest.raises(ConfigError):
            AugmentationConfig(**settings)


@pytest.mark.parametrize(
    ("world", "batch", "gradient_accumulation_steps"), [(1, 12, 1), (1, 3, 4), (2, 6, 1), (3, 2, 2), (4, 3, 1)]
)
def test_a_step_takes_the_same_samples_on_any_number_of_devices(world, batch, gradient_accumulation_steps):
    ranks = [iter(NumberSampler(batch, rank, world, start=24)) for rank in range(world)]
    for step in range(5):
        taken = [number for rank in ranks for _ in range(gradient_accumulation_steps) for number in next(rank)]
        assert sorted(taken) == list(range(24 + 12 * step, 24 + 12 * (step + 1)))


def test_starting_later_is_going_on():
    whole = list(islice(NumberSampler(4, rank=1, world_size=2), 6))
    assert list(islice(NumberSampler(4, rank=1, world_size=2, start=3 * 8), 3)) == whole[3:]


def test_by_default_one_device_begins_with_the_first_sample_and_nothing_varies():
    assert list(islice(NumberSampler(3), 2)) == [[0, 1, 2], [3, 4, 5]]
    assert Augmentation() == Augmentation(position=0.5, crop=(0.5, 0.5), flip=False)
    assert AugmentationConfig() == AugmentationConfig(random_position=True, random_crop=False, flip=0.0)


def test_a_self_pair_shows_the_same_part_of_the_video_and_others_a_part_of_their_own():
    def sampler(rng, records, number=0):
        return [Changed(7), Changed(7), Changed(9), 7, Wrong(9, changed=True), Wrong(8, changed=False)]

    drawn = next(candidates(0, 5, RECORDS, sampler, FREE, cached_changes=3))
    own, other, plain, wrong, unchanged = drawn.references
    assert [each.told_by for each in drawn.references] == [None, None, None, 7, 7]
    assert (wrong.index, unchanged.index, unchanged.changed) == (9, 8, None) and wrong.changed in range(3)
    assert (own.index, other.index, plain.index) == (7, 9, 7) == (drawn.target.index, 9, 7)
    assert own.augmentation == drawn.target.augmentation and drawn.target.changed is None
    assert other.augmentation != drawn.target.augmentation != plain.augmentation
    assert own.changed in range(3) and other.changed in range(3) and plain.changed is None
    numbers = [
        next(candidates(0, n, RECORDS, sampler, FREE, cached_changes=3)).references[0].changed for n in range(40)
    ]
    assert set(numbers) == {0, 1, 2}
    alone = [next(candidates(0, n, RECORDS, sampler, FREE)).references[0].changed for n in range(40)]
    assert set(alone) == {0}  # there is one version, unless more are said to be there


def test_seeds_and_numbers_of_64_bits_are_taken_as_they_are():
    large = sample_rng(2**64 - 1, 2**63 + 1).random(3)
    assert not np.array_equal(large, sample_rng(2**64 - 1, 2**63).random(3))
    assert not np.array_equal(large, sample_rng(2**64 - 2, 2**63 + 1).random(3))


def test_generators_of_different_numbers_and_seeds_differ():
    values = {sample_rng(seed, number).random() for seed in range(20) for number in (*range(20), 2**40)}
    assert len(values) == 20 * 21
