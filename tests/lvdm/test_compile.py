"""Compiled networks: what they compute, and how much is compiled."""

import pytest
import torch
from torch._dynamo.utils import counters

from lvdm.acceleration import regions as compilation
from lvdm.training import train
from lvdm.training.profile import profile_training
from tests.lvdm.test_unets import run, small
from tests.lvdm.training_runs import MODEL, ONE_LEVEL, losses, make_clips, tiny_config


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing compiled before; graphs are traced and differentiated as ever, then run as they are: no C++ is built."""

    def light(function, dynamic):
        return torch._dynamo.optimize("aot_eager", dynamic=dynamic, nopython=True)(function)

    monkeypatch.setattr(compilation.torch, "compile", light)
    torch._dynamo.reset()
    compilation._compiled.cache_clear()
    counters.clear()
    yield
    compilation._compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_share_their_code_and_change_nothing(recompute):
    unet = small("lvdm", num_res_blocks=3, use_relative_position=True, **ONE_LEVEL)
    unet.params.use_checkpoint = recompute
    expected = run(unet)
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in unet.named_parameters()}
    unet.zero_grad()
    assert compilation.compile_regions(unet) > 30
    for _ in range(2):
        unet.zero_grad()
        result = run(unet)
        result.square().mean().backward()
    torch.testing.assert_close(result, expected)
    for name, p in unet.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=name)
    # transformer blocks; residual blocks and norms for each pair of widths
    assert 0 < counters["stats"]["unique_graphs"] <= 7
    assert not counters["graph_break"]


def test_training_compiles_and_its_previews_do_not(tmp_path):
    make_clips(tmp_path / "clips")
    model, plain = {"config": MODEL, "train_text": True}, {"steps": 3, "ema": 0.9}
    train(tiny_config(tmp_path, "base", model=model, training=plain, run={"name": "plain"}))
    compiled = plain | {"compile": True, "preview_every": 2, "previews": 1, "preview_steps": 2}
    train(tiny_config(tmp_path, "base", model=model, training=compiled, run={"name": "compiled"}))
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 16
    expected, found = (losses(tmp_path / "runs" / name) for name in ("plain", "compiled"))
    assert [float(loss) for loss in found.values()] == pytest.approx([float(loss) for loss in expected.values()], 1e-4)


def test_a_profile_splits_a_step_into_phases(tmp_path):
    make_clips(tmp_path / "clips")
    found = profile_training(tiny_config(tmp_path, "base", model={"config": MODEL}, training={"ema": 0.9}))
    assert found.phases.keys() == {"data and hooks", "prepare", "encode", "forward", "backward", "optimizer"}
    assert all(ms > 0 for ms in found.phases.values())
    assert 0.3 * found.step_ms < sum(found.phases.values()) < 3 * found.step_ms
    assert found.kernels[0].ms >= found.kernels[-1].ms > 0
    assert not (tmp_path / "runs").exists()
