"""Reusing the inner levels of a UNet: which steps compute what, and that methods on top are heard at all of them."""

import pytest
import torch
from torch import nn

from aicl.action_integration import IntegrationConfig
from aicl.integrated_backbone import integrate
from lvdm.diffusion.step_cache import StepCache
from lvdm.errors import ConfigError
from tests.lvdm.test_unets import run, small
from tests.parity import rebuild


def counted(unet):
    """Calls of every stage of the UNet so far, by name."""
    calls = {}
    for name, stage, _ in unet._stages():
        stage.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    return calls


@pytest.mark.parametrize("family", ["lvdm", "videocrafter"])
@torch.no_grad()
def test_whole_steps_are_the_unet_and_the_others_compute_the_outermost_level(family):
    unet = small(family, attention_resolutions=[1, 2])
    expected, cached = run(unet), StepCache(unet, every=3)
    cached.params = unet.params
    calls = counted(unet)
    results = [run(cached) for _ in range(4)]
    assert torch.equal(results[0], expected) and torch.equal(results[3], expected)
    torch.testing.assert_close(results[1], expected)  # the same input: the inner levels would have given the same
    outer = {"input_blocks.0", "input_blocks.1", "output_blocks.2", "output_blocks.3"}
    assert {name for name, count in calls.items() if count == 4} == outer
    assert {count for name, count in calls.items() if name not in outer} == {2}
    assert torch.equal(run(unet), expected)  # as ever, without the cache


@torch.no_grad()
def test_between_whole_steps_the_inner_levels_stay_and_the_input_counts():
    unet = small("lvdm")
    cached, context = StepCache(unet, every=2), rebuild.inputs("context", (2, 80, 12))
    x, t = rebuild.inputs("x", (2, 4, 4, 4, 4)), torch.tensor([10, 11])
    cached(x, t, context)
    found = cached(2 * x, t, context)
    assert (found - unet(2 * x, t, context)).abs().max() > 1e-4
    assert (found - unet(x, t, context)).abs().max() > 1e-2


@torch.no_grad()
def test_references_are_read_at_every_step():
    unet = small("lvdm", attention_resolutions=[1, 2])
    integrated = integrate(unet, IntegrationConfig(head_dim=16))
    for name, parameter in integrated.blocks.named_parameters():
        if "to_out" in name:
            nn.init.normal_(parameter, std=0.5)
    cached, x = StepCache(integrated, every=2), rebuild.inputs("x", (2, 4, 4, 4, 4))
    context, t = rebuild.inputs("context", (2, 80, 12)), torch.tensor([10, 11])
    features = [rebuild.inputs(name, (2, 4, 4, 4, 4)) for name in ("one", "other")]
    for one in features:
        cached._step = 1
        cached._inner.active = True
        integrated(x, t, context)  # whole, without references
        given = integrated.reference_context(one, 4)
        found = cached(x, t, context, references=[(slice(0, 2), given)])
        assert (found - integrated(x, t, context)).abs().max() > 1e-3


def test_refusals():
    with pytest.raises(ConfigError, match="step_cache is 0: give the steps"):
        StepCache(small("lvdm"), every=0)
    with pytest.raises(ConfigError, match="this model is none"):
        StepCache(nn.Linear(1, 1), every=2)
