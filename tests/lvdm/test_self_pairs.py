"""Self-pairs: what a change of a clip keeps, what it changes, and that it depends on nothing but its seed."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from lvdm.data import self_pairs
from lvdm.data.self_pairs import SelfPairConfig, change_clips, reference_seed
from lvdm.errors import ConfigError

OFF = {each.name: 0.0 for each in fields(SelfPairConfig)}
SEEDS = [3, 2**62, 5, 8]
NAMES = [each.name for each in fields(SelfPairConfig)]


def only(**strengths):
    return SelfPairConfig(**{**OFF, **strengths})


@pytest.fixture(scope="module")
def clips():
    """Smooth still pictures through which a bright square moves, (4, 3, 8, 24, 40)."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(4, 3, 6, 10, generator=generator) * 0.3
    still = torch.nn.functional.interpolate(rough, (24, 40), mode="bilinear").clamp(-1, 0.5)
    frames = still[:, :, None].repeat(1, 1, 8, 1, 1)
    for t in range(8):
        frames[:, :, t, 8:14, 4 * t : 4 * t + 6] = 0.9
    return frames


def test_without_any_strength_nothing_changes(clips):
    assert torch.equal(change_clips(clips, SEEDS, only()), clips)


@pytest.mark.parametrize("name", NAMES)
def test_each_strength_changes_something(clips, name):
    strength = {"rotation": 30.0}.get(name, 0.5 if name in ("scale", "aspect", "crop", "rate") else 1.0)
    changed = change_clips(clips, SEEDS, only(**{name: strength}))
    assert (changed - clips).abs().amax((1, 2, 3, 4)).median() > 0.05  # a draw may be near no change
    assert changed.abs().max() <= 1 and changed.dtype == clips.dtype


def test_a_change_depends_on_its_seed_alone(clips):
    config = SelfPairConfig(background=0.5, start=0.1, rate=0.2, crop=0.2, partial=0.5)
    together = change_clips(clips, SEEDS, config)
    for i in range(4):
        alone = change_clips(clips[i : i + 1], SEEDS[i : i + 1], config)[0]
        torch.testing.assert_close(together[i], alone, atol=2e-5, rtol=0)
    other = change_clips(clips, [seed + 1 for seed in SEEDS], config)
    assert (together - other).abs().amax((1, 2, 3, 4)).min() > 0.1


@pytest.mark.parametrize("name", ["scale", "colour", "convolution", "contrast", "brightness", "background"])
def test_what_stands_still_goes_on_standing_still(clips, name):
    """Geometry and looks are the same in all frames, so a still clip stays still."""
    still = clips[:, :, :1].repeat(1, 1, 8, 1, 1)
    changed = change_clips(still, SEEDS, only(**{name: 0.9}))
    torch.testing.assert_close(changed, changed[:, :, :1].expand_as(changed), atol=1e-5, rtol=0)


def test_geometry_moves_the_picture_by_as_much_as_it_says(clips):
    """With a shift alone all pixels move by one distance, at most that share of the frame."""
    ramp = torch.linspace(-0.5, 0.5, 40).expand(1, 3, 4, 24, 40).contiguous()
    for seed in range(6):
        moved = change_clips(ramp, [seed], only(shift=0.2))
        inside = (moved - ramp)[..., 10:30]  # away from the border, which is repeated
        assert inside.std() < 1e-3 and inside.abs().max() <= 0.2 * 40 / 39 + 1e-4


def test_rotation_does_not_shear_a_wide_frame():
    """A disc stays as high as it is wide."""
    y, x = torch.meshgrid(torch.arange(32.0) - 15.5, torch.arange(64.0) - 31.5, indexing="ij")
    disc = (x.square() + y.square() < 100).float().expand(1, 3, 1, 32, 64) * 2 - 1
    for seed in range(4):
        turned = change_clips(disc, [seed], only(rotation=90.0))[0, 0, 0] > 0
        assert abs(int(turned.any(0).sum()) - int(turned.any(1).sum())) <= 2


def test_contrast_and_brightness_forget_the_clips_own(clips):
    changed = change_clips(clips * 0.1 + 0.5, SEEDS, only(contrast=1.0, brightness=1.0))
    mean, std = changed.mean((2, 3, 4)), changed.std((2, 3, 4))
    assert (std > 0.15).all() and (mean.abs() < 0.6).all() and mean.std() > 0.1


def test_another_background_keeps_what_moves(clips):
    changed = change_clips(clips, SEEDS, only(background=1.0))
    square = clips == 0.9
    assert (changed - clips)[square].abs().max() < 1e-5
    corner = (changed - clips)[..., -3:, :4]  # far from the path of the square
    assert corner.abs().amax((1, 2, 3, 4)).min() > 0.02


def test_time_takes_whole_frames_in_order():
    frames = torch.arange(8.0)[None, None, :, None, None].expand(1, 3, 8, 4, 4) / 10 - 0.4
    for seed in range(8):
        taken = change_clips(frames, [seed], only(start=0.25, rate=0.5))[0, 0, :, 0, 0]
        numbers = ((taken + 0.4) * 10).round().long()
        torch.testing.assert_close((numbers / 10 - 0.4).float(), taken, atol=1e-6, rtol=0)
        assert (numbers.diff() >= 0).all() and len(numbers.unique()) >= 3


def test_numbers_just_below_one_stay_below_it(clips, monkeypatch):
    class Highest:
        def random(self, count):
            return np.full(count, 1 - 1e-12)

        def standard_normal(self, count):
            return np.zeros(count)

    monkeypatch.setattr(self_pairs, "sample_rng", lambda seed, stream: Highest())
    blanked = change_clips(clips[:1], [0], only(partial=1.0))[0]
    half = clips.shape[4] // 2
    assert torch.equal(blanked[:, :, :, half:], clips[0, :, :, :, half:])  # the last of the six halves
    assert blanked[0, :, :, :half].unique().numel() == 1


def test_partial_shows_one_half(clips):
    config = only(partial=1.0)
    shown = {tuple((change_clips(clips[:1], [seed], config) == clips[:1])[0, 0].nonzero().amin(0).tolist())
             for seed in range(60)}  # fmt: skip
    assert shown == {(0, 0, 0), (4, 0, 0), (0, 12, 0), (0, 0, 20)}  # later, lower and right halves; three begin at 0


def test_a_reference_has_a_seed_of_its_own():
    seeds = {reference_seed(noise, reference) for noise in (0, 1, 2**62 - 1) for reference in range(3)}
    assert len(seeds) == 9 and all(0 <= seed < 2**62 for seed in seeds)


@pytest.mark.parametrize(("name", "value"), [("colour", 1.5), ("scale", 1.0), ("rotation", -1.0)])
def test_a_strength_out_of_range_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"references\.changes\.{name} = {value}"):
        SelfPairConfig(**{name: value})
