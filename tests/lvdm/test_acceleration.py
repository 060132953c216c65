"""How a UNet is run while it samples: what is chosen, what is captured, and when. Graphs themselves need a GPU."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aicl.reference_context import ReferenceContext
from lvdm import acceleration
from lvdm.acceleration import Acceleration, Replayed, graphs, keep_kernels, prepare
from lvdm.errors import ConfigError
from lvdm.models.attention import Attention
from lvdm.models.layers import FrameConv
from tests.lvdm.test_unets import run, small


class OnGPU(nn.Module):
    """Claims to have one parameter on a GPU."""

    def __init__(self, trained=False):
        super().__init__()
        self.place = 1
        self.parameter = SimpleNamespace(
            device=torch.device("cuda"), requires_grad=trained, data_ptr=lambda: self.place
        )

    def parameters(self, recurse=True):
        return iter([self.parameter])


def test_a_cpu_and_a_training_change_nothing():
    unet, trained = small("lvdm").requires_grad_(False), OnGPU(trained=True)
    for mode in ("auto", "graphs", "full"):
        assert Acceleration(mode).network(unet, 50) is unet
        assert Acceleration(mode).network(trained, 50) is trained
    assert Acceleration("none").network(OnGPU(), 50).__class__ is OnGPU
    with pytest.raises(ConfigError, match="unknown way to run 'fast': choose compile from auto, none, graphs, full"):
        Acceleration("fast")


@pytest.fixture
def compiled(monkeypatch):
    """The networks that are compiled."""
    found = []
    monkeypatch.setattr(acceleration, "compile_regions", found.append)
    monkeypatch.setattr(acceleration, "keep_kernels", lambda: None)
    return found


def test_blocks_are_compiled_once_and_only_where_that_was_asked_for(compiled):
    for mode, count in (("auto", 0), ("graphs", 0), ("full", 1)):
        unet, chosen = OnGPU(), Acceleration(mode)
        assert chosen.network(unet, 50) is chosen.network(unet, 50)
        assert len(compiled) == count and ("of compiled blocks" in chosen.choice) == (mode == "full")
        assert "replayed as CUDA graphs" in chosen.choice


def test_a_few_steps_are_not_captured_unless_more_are_to_come():
    unet, chosen = OnGPU(), Acceleration()
    assert chosen.network(unet, 4) is unet and "4 steps are launched one by one" in chosen.choice
    assert isinstance(Acceleration("graphs").network(unet, 4), Replayed)
    assert isinstance(Acceleration(expected_steps=16).network(unet, 4), Replayed)
    assert isinstance(chosen.network(unet, 50), Replayed)
    assert isinstance(chosen.network(unet, 4), Replayed)  # 54 steps are over: more will come


def test_graphs_are_dropped_when_weights_move_or_on_request():
    unet, chosen = OnGPU(), Acceleration("graphs")
    first = chosen.network(unet, 1)
    assert chosen.network(unet, 1) is first
    unet.place = 2
    second = chosen.network(unet, 1)
    assert second is not first
    chosen.forget()
    assert chosen.network(unet, 1) is not second


@torch.no_grad()
def test_prepared_weights_compute_the_same_and_keep_their_names():
    unet = small("videocrafter", temporal_conv=True).requires_grad_(False)
    expected, state = run(unet), {name: x.clone() for name, x in unet.state_dict().items()}
    prepare(unet)
    torch.testing.assert_close(run(unet), expected)
    assert all(torch.equal(x, state[name]) for name, x in unet.state_dict().items())
    kernels = [m.weight for m in unet.modules() if isinstance(m, FrameConv)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    own = [m for m in unet.modules() if isinstance(m, Attention) and m._fused is not None]
    assert len(own) > 5
    for _ in range(2):  # new weights are used whether they are copied or taken over
        unet.load_state_dict({name: 0.5 * x for name, x in state.items()}, assign=True)
        expected = run(unet)
        prepare(unet)
        torch.testing.assert_close(run(unet), expected)
    assert all(m._fused is None for m in unet.double().modules() if isinstance(m, Attention))


class Imitation:
    """A graph that calls again what was captured."""

    def __init__(self, call, output):
        self.call, self.output = call, output

    def replay(self):
        self.output.copy_(self.call())


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.made = 0

    def forward(self, x, timesteps, context, fps=None, references=()):
        for rows, shown in references:
            x = x.clone()
            x[rows] += shown.kept("reader", lambda shown=shown: self.make(shown))[0]
        return x * timesteps.view(-1, 1, 1, 1, 1) + context.mean() + (0 if fps is None else fps.mean())

    def make(self, shown):
        self.made += 1
        return (shown.features.sum().view(1), shown.features.mean().view(1))


@pytest.fixture
def captures(monkeypatch):
    made = []

    def capture(self, inputs, rows):
        inputs, held = [tensor.clone() for tensor in inputs], [graphs._copied(value) for *_, value in rows]
        extras = {}
        for (name, part, _), value in zip(rows, held):
            extras.setdefault(name, []).append((part, value))

        def call():
            x, timesteps, context, *fps = inputs
            return self.unet(x, timesteps, context, fps=fps[0] if fps else None, **extras)

        output = call()
        made.append(held)
        return graphs._Captured(Imitation(call, output), inputs, held, [value for *_, value in rows], output)

    monkeypatch.setattr(Replayed, "_capture", capture)
    return made


def arguments(seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 1, 2, 2, 2, generator=generator)
    return x, torch.full((batch,), 10 + seed), torch.randn(batch, 3, 4, generator=generator)


@torch.no_grad()
def test_calls_of_one_kind_share_a_graph_and_every_call_counts(captures):
    reader = Reader()
    network = Replayed(reader)
    for seed in range(3):
        torch.testing.assert_close(network(*arguments(seed)), reader(*arguments(seed)))
    fps = torch.tensor([3.0, 5.0])
    torch.testing.assert_close(network(*arguments(1), fps=fps), reader(*arguments(1), fps=fps))
    torch.testing.assert_close(network(*arguments(1, batch=1)), reader(*arguments(1, batch=1)))
    assert len(captures) == 3
    kept = network(*arguments(0))
    network(*arguments(1))
    torch.testing.assert_close(kept, reader(*arguments(0)))  # results are the caller's own


@torch.no_grad()
def test_references_are_taken_over_once_a_video_and_read_at_each_step(captures):
    reader = Reader()
    network, made = Replayed(reader), 0
    for video in range(3):
        context = ReferenceContext(torch.full((1, 2, 4, 1, 1), float(video)), (2,))
        for seed in range(3):
            extras = {"references": [(slice(1, 2), context)]}
            found = network(*arguments(seed), **extras)
            made = reader.made
            torch.testing.assert_close(found, reader(*arguments(seed), **extras))
        assert made == 2 * video + 2  # once by the graph, once by the network itself
    assert len(captures) == 1


@torch.no_grad()
def test_what_leads_at_first_and_all_references_are_two_kinds(captures):
    reader = Reader()
    network = Replayed(reader)
    context = ReferenceContext(torch.randn(1, 4, 4, 1, 1), (2, 2), spans=((0, 20), (0, 10)))
    for seed in (2, 1, 0, 2):  # timesteps 12, 11, 10, 12
        extras = {"references": [(slice(0, 2), context)]}
        torch.testing.assert_close(network(*arguments(seed), **extras), reader(*arguments(seed), references=[
            (slice(0, 2), context.at(torch.tensor([10 + seed])))
        ]))  # fmt: skip
    assert len(captures) == 2


def test_the_kernel_cache_is_the_users_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keep_kernels() == tmp_path / "aicl" / "kernels"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert str(keep_kernels()) == "/elsewhere"
