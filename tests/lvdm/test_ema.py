"""The moving average of weights."""

import pytest
import torch
from torch import nn

from lvdm.errors import CheckpointError
from lvdm.models.ema import EMA


def linear(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    module = nn.Linear(2, 2).to(dtype)
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


def set_to(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)


def test_average_follows_its_recurrence():
    module = linear(1.0)
    ema, expected = EMA(module, decay=0.3), 1.0
    for step, value in enumerate([2.0, -1.0, 5.0, 0.5], start=1):
        set_to(module, value)
        ema.update(module)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    ema.copy_to(module)
    for parameter in module.parameters():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))


def test_small_steps_survive_bfloat16_weights():
    module = linear(1.0, torch.bfloat16)
    ema = EMA(module, decay=0.9999)
    ema.updates = 10**6
    set_to(module, 2.0)
    for _ in range(10):
        ema.update(module)
    assert ema.averages["weight"][0, 0].item() == pytest.approx(2 - 0.9999**10, abs=1e-5)


def test_applied_gives_the_weights_back_even_after_an_error():
    module = linear(1.0)
    ema = EMA(module)
    set_to(module, 3.0)
    with pytest.raises(RuntimeError), ema.applied(module):
        assert module.weight.eq(1.0).all()
        raise RuntimeError
    assert module.weight.eq(3.0).all()
    assert module.weight.requires_grad


def test_frozen_parameters_are_left_out():
    module = linear(1.0)
    module.bias.requires_grad_(False)
    ema = EMA(module)
    assert list(ema.averages) == ["weight"]
    set_to(module, 2.0)
    ema.copy_to(module)
    assert module.weight.eq(1.0).all() and module.bias.eq(2.0).all()


def test_state_continues_exactly():
    module, other = linear(1.0), linear(7.0)
    ema = EMA(module, 0.5)
    set_to(module, 2.0)
    ema.update(module)
    resumed = EMA(other, 0.5)
    resumed.load_state_dict(ema.state_dict())
    for average in (ema, resumed):
        average.update(module)
    assert resumed.updates == 2
    assert torch.equal(resumed.averages["weight"], ema.averages["weight"])
    with pytest.raises(CheckpointError, match="another module"):
        EMA(nn.Linear(2, 2, bias=False)).load_state_dict(ema.state_dict())


def test_decay_is_checked():
    with pytest.raises(ValueError, match="decay"):
        EMA(linear(1.0), decay=1.0)
