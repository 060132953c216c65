"""Harder scenes: each difficulty shows, none depends on the batch, and plain scenes stay what they were."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from aicl.puppets.actions import ACTIONS
from aicl.puppets.benchmark import PuppetBenchmark
from aicl.puppets.data import NameShares, PuppetConfig, PuppetDataModule, draw_batch
from aicl.puppets.hard_scenes import HardScenes, render_hard, scene_seeds
from aicl.puppets.programs import FIRST_RANDOM, program_bank
from aicl.puppets.renderer import render
from aicl.puppets.scene_parameters import FIELD
from lvdm.errors import ConfigError

NAMES = [each.name for each in fields(HardScenes)]
BANK = program_bank(0, 0)


@pytest.fixture(scope="module")
def scenes():
    batch = draw_batch(PuppetConfig(program_share=0.0), 0, np.arange(4))
    return batch["scene_parameters"]


def hard(scenes, **shares):
    seeds = scene_seeds(scenes.numpy())
    return render_hard(scenes, seeds, BANK, HardScenes(**shares), size=32, frames=4)


def test_no_difficulty_is_the_plain_scene(scenes):
    assert not HardScenes().any
    plain = render(scenes, BANK, 32, 4)
    torch.testing.assert_close(hard(scenes), plain, atol=1e-6, rtol=0)
    assert torch.equal(render(scenes, BANK, 32, 4, cover=True)[:, :3], plain)


def test_cover_is_where_the_figure_is(scenes):
    """Two walls behind one figure: pictures differ where the cover says that the wall is seen, and nowhere else."""
    other = scenes.clone()
    other[:, FIELD["background"]] = (scenes[:, FIELD["background"]] + 3) % 8
    one, two = (render(each, BANK, 32, 4, cover=True) for each in (scenes, other))
    assert torch.equal(one[:, 3], two[:, 3])
    differ = (one[:, :3] - two[:, :3]).abs().amax(1)
    assert differ[one[:, 3] > 0.999].max() < 1e-3 < differ[one[:, 3] == 0].min()
    assert 0.03 < one[:, 3].mean() < 0.5


@pytest.mark.parametrize("name", [name for name in NAMES if name != "moving_background"])
def test_each_difficulty_shows_in_every_clip_and_in_no_other_batch_otherwise(scenes, name):
    plain, changed = render(scenes, BANK, 32, 4), hard(scenes, **{name: 1.0})
    assert (changed - plain).abs().amax((1, 2, 3, 4)).min() > 0.1
    assert torch.equal(hard(scenes[1:2], **{name: 1.0})[0], changed[1]) or torch.allclose(
        hard(scenes[1:2], **{name: 1.0})[0], changed[1], atol=1e-5
    )
    assert changed.abs().max() <= 1


def test_textures_leave_the_figure_alone_and_move_when_told_to(scenes):
    drawn = render(scenes, BANK, 32, 4, cover=True)
    inside = (drawn[:, 3:] > 0.999).expand(-1, 3, -1, -1, -1)
    still = hard(scenes, textured_background=1.0)
    assert (still - drawn[:, :3])[inside].abs().max() < 1e-2
    moving = hard(scenes, textured_background=1.0, moving_background=1.0)
    corner = (slice(None), slice(None), slice(None), slice(0, 4), slice(0, 4))  # where no figure is
    assert still[corner].std(2).mean() < 0.5 * moving[corner].std(2).mean()


def test_shares_choose_clips(scenes):
    batch = draw_batch(PuppetConfig(program_share=0.0), 3, np.arange(60))["scene_parameters"]
    half, plain = hard(batch, occlusion=0.5), render(batch, BANK, 32, 4)
    changed = (half - plain).abs().amax((1, 2, 3, 4)) > 0.05
    assert 0.3 < changed.float().mean() < 0.7
    with pytest.raises(ConfigError, match=r"hard_scenes\.occlusion = 1\.5"):
        HardScenes(occlusion=1.5)


def test_training_and_benchmark_draw_them(scenes):
    shares = {"textured_background": 1.0, "second_person": 1.0}
    config = PuppetConfig(size=32, frames=4, program_share=0.0, references=1, hard_scenes=HardScenes(**shares))
    batch = PuppetDataModule(config, 3).prepare(draw_batch(config, 0, np.arange(3)))
    alone = PuppetDataModule(config, 1).prepare(draw_batch(config, 0, np.arange(1, 2)))
    torch.testing.assert_close(batch["frames"][1], alone["frames"][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(batch["references"][1], alone["references"][0], atol=1e-5, rtol=0)

    plain, harder = (PuppetBenchmark("cpu", size=32, frames=4, hard_scenes=each) for each in (None, shares))
    clips = [sample.references[0] for sample in plain.samples(0, 0, 2)]
    assert str(harder) == f"{plain}, textured background, second person"
    assert harder.content(clips[0]) != plain.content(clips[0])
    assert (harder.load(clips)[0].int() - plain.load(clips)[0].int()).abs().amax((1, 2, 3, 4)).min() > 20


def test_wrong_references_do_another_named_action():
    config = PuppetConfig(program_share=0.4, references=2, wrong_share=0.5)
    batch, plain = (
        draw_batch(each, 0, np.arange(300)) for each in (config, PuppetConfig(program_share=0.4, references=2))
    )
    program = FIELD["program"]
    own, shown = batch["scene_parameters"][:, program], batch["reference_scene_parameters"][:, :, program]
    wrong = torch.tensor(batch["reference_wrong"])
    assert torch.equal(shown != own[:, None], wrong) and torch.equal(wrong[:, 0], wrong[:, 1])
    assert not wrong[own >= FIRST_RANDOM].any() and 0.4 < wrong[own < FIRST_RANDOM].float().mean() < 0.6
    assert shown[wrong].max() < len(ACTIONS)
    assert batch["caption"] == plain["caption"] and batch["reference_captions"] == plain["reference_captions"]
    assert torch.equal(batch["scene_parameters"], plain["scene_parameters"])
    unnamed = PuppetConfig(program_share=0.0, references=1, wrong_share=1.0, names=NameShares(0.0, 0.7, 0.3))
    assert not any(map(any, draw_batch(unnamed, 0, np.arange(50))["reference_wrong"]))
