"""What is captured as CUDA graphs and when; the graphs themselves are tested on a GPU, in tests/gpu."""

import pytest
import torch
from torch import nn

from lvdm.errors import ConfigError
from lvdm.training.graphs import Captured


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x, factor, *, extras, fps=None):
        self.calls += 1
        [(rows, (shift, weight))] = extras
        assert fps is None and weight is None
        return self.layer(x)[rows] * factor + shift


@pytest.fixture
def captures(monkeypatch):
    """Stands in for the capture: keeps what is captured, and calls it."""
    made = []

    def capture(module, samples, allow_unused_input):
        made.append((module, samples))
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    return made


def arguments(shift):
    return (torch.ones(2, 3), 2.0), {"extras": [(slice(0, 2), (shift, None))], "fps": None}


def test_calls_with_gradients_are_captured_once_with_all_their_tensors(captures):
    network, shift = Network(), torch.ones(2, 3, requires_grad=True)
    captured = Captured(network)
    args, kwargs = arguments(shift)
    for _ in range(2):
        torch.testing.assert_close(captured(*args, **kwargs), network(*args, **kwargs))
    [(core, samples)] = captures
    assert {id(p) for p in core.parameters()} == {id(p) for p in network.parameters()}
    assert [sample.requires_grad for sample in samples] == [False, True]
    assert samples[1] is not shift and samples[1].is_leaf  # graphs own the memory that they read


def test_the_forward_pass_is_captured_under_autocast_and_the_backward_pass_is_not(captures, monkeypatch):
    states = []

    def capture(module, samples, allow_unused_input):
        states.append(torch.is_autocast_enabled("cpu"))
        states.append(module(*samples).dtype)
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    layer = nn.Linear(3, 3)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert Captured(layer)(torch.ones(2, 3)).dtype is torch.bfloat16
    assert states == [False, torch.bfloat16]


def test_calls_without_gradients_are_not_captured(captures):
    network = Network()
    args, kwargs = arguments(torch.ones(2, 3))
    with torch.no_grad():
        Captured(network)(*args, **kwargs)
    assert network.calls == 1 and not captures


@pytest.mark.parametrize("other", [(torch.ones(1, 3), 2.0), (torch.ones(2, 3).double(), 2.0), (torch.ones(2, 3), 3.0)])
def test_another_kind_of_batch_is_refused(captures, other):
    captured = Captured(Network())
    args, kwargs = arguments(torch.ones(2, 3))
    captured(*args, **kwargs)
    with pytest.raises(ConfigError, match="all batches must be alike"):
        captured(*other, **kwargs)
