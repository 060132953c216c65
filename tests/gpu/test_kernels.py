"""On a GPU: our kernels and graphs against PyTorch's own and against float32, values and gradients."""

import copy

import pytest
import torch
from torch import nn

from aicl.action_integration import IntegrationConfig
from aicl.integrated_backbone import integrate
from lvdm.acceleration import Acceleration, Replayed, compile_regions
from lvdm.diffusion.step_cache import StepCache
from lvdm.models import kernels, quantization
from lvdm.models.attention import Attention
from lvdm.models.backbone import build_backbone
from lvdm.models.fp8 import Float8Linear
from lvdm.models.layers import FeedForward, GroupNorm, LayerNorm, TemporalConv, add_biased
from tests.aicl.tiny_models import SMALLEST

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CLOSE = 2e-2  # of the norm, in bfloat16
in_8_bits = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < quantization.CAPABILITY,
    reason="needs products of 8-bit floating point",
)
LVDM = SMALLEST | {
    "model_channels": 64,
    "num_head_channels": 32,
    "context_dim": 12,
    "temporal_length": 16,
    "use_relative_position": True,
}
VIDEOCRAFTER = LVDM | {"temporal_conv": True, "addition_attention": True, "use_relative_position": False}


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, x):
        return add_biased(x, 2 * x, self.bias)


class After(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = LayerNorm(64)

    def forward(self, x):
        return sum(self.norm.after(x, x.roll(1, 0)))


class OverTime(Attention):
    def forward(self, x):
        return self.over_time(x)


LAYERS = {
    "group norm of frames": lambda: GroupNorm(64, 2),
    "group norm of videos": lambda: GroupNorm(64, 1),
    "layer norm": lambda: LayerNorm(64),
    "sum and layer norm": After,
    "feed-forward": lambda: FeedForward(64),
    "temporal convolution": lambda: TemporalConv(64, 64, (3, 1), padding=(1, 0)),
    "attention along frames": lambda: OverTime(64, 2, 32),
    "with relative positions": lambda: OverTime(64, 2, 32, max_relative=9),
    "biased sum": Sum,
}


def distance(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def outcome(layer, x, slope):
    """The result and the gradients of the input and of all parameters."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(slope.to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_gradients(name, compiled):
    torch.manual_seed(0)
    layer = LAYERS[name]().cuda()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 16, 40, 64, device="cuda")
    x = x.unflatten(2, (5, 8)) if isinstance(layer, GroupNorm | TemporalConv) else x
    slope = torch.randn_like(x)
    with kernels.only():
        expected = outcome(layer, x, slope)
    half = copy.deepcopy(layer).bfloat16()
    called = torch.compile(half, dynamic=False) if compiled else half
    found = outcome(called, x.bfloat16(), slope.bfloat16())
    for one, other in zip(found, expected, strict=True):
        assert distance(one, other) < CLOSE


def build(family, params):
    torch.manual_seed(0)
    unet = build_backbone(family, params).cuda().eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return unet.requires_grad_(False)


def inputs(dtype, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(2, 4, 16, 8, 8, generator=generator, device="cuda").to(dtype)
    context = torch.randn(2, 77, 12, generator=generator, device="cuda").to(dtype)
    return x, torch.tensor([500, 20], device="cuda"), context


@pytest.mark.parametrize("mode", ["graphs", "full"])
@pytest.mark.parametrize(("family", "params"), [("lvdm", LVDM), ("videocrafter", VIDEOCRAFTER)])
@torch.no_grad()
def test_accelerated_networks_give_the_numbers_of_float32(family, params, mode):
    unet = build(family, params)
    with kernels.only():
        expected = [unet(*inputs(torch.float32, seed)) for seed in (0, 1)]
    unet.bfloat16()
    with kernels.only():  # what half precision costs anyway
        allowed = [1.2 * distance(unet(*inputs(torch.bfloat16, seed)), expected[seed]) for seed in (0, 1)]
    network = Acceleration(mode).network(unet, steps=1)
    for _ in range(2):
        for seed in (0, 1):
            assert distance(network(*inputs(torch.bfloat16, seed)), expected[seed]) < allowed[seed] < 2 * CLOSE


@torch.no_grad()
def test_a_graph_reads_whatever_references_it_is_given():
    integrated = integrate(build("lvdm", LVDM), IntegrationConfig(head_dim=32)).cuda().eval()
    for parameter in integrated.blocks.parameters():
        nn.init.normal_(parameter, std=0.2)
    integrated.bfloat16().requires_grad_(False)
    network, given = Replayed(integrated), inputs(torch.bfloat16)
    late = [(0, 999), (0, 99)]
    for seed, weights, spans in ((0, None, None), (1, None, None), (2, [1.0, 0.5], None), (3, [0.5, 1.0], late)):
        features = torch.randn(
            1, 32, 4, 8, 8, generator=torch.Generator("cuda").manual_seed(seed), device="cuda", dtype=torch.bfloat16
        )
        for references in (None, integrated.reference_context(features, 16, weights, 1.0, spans)):
            extras = {} if references is None else {"references": [(slice(1, 2), references)]}
            assert distance(network(*given, **extras), integrated(*given, **extras)) < 1e-3
    assert len(network._captured) == 4  # none, two equal, two of other weights, the first alone


@torch.no_grad()
def test_moved_weights_are_captured_anew():
    unet, acceleration, given = build("lvdm", LVDM).bfloat16(), Acceleration("graphs"), inputs(torch.bfloat16)
    before = acceleration.network(unet, 1)(*given)
    for parameter in unet.parameters():
        parameter.data = 0.5 * parameter.data
    assert distance(acceleration.network(unet, 1)(*given), unet(*given)) < 1e-3
    assert distance(before, unet(*given)) > 0.1


def test_compiled_regions_leave_no_graph_breaks_in_kernels():
    unet = build("videocrafter", VIDEOCRAFTER).bfloat16()
    with torch.no_grad():
        expected = unet(*inputs(torch.bfloat16))
        assert compile_regions(unet) > 20
        assert distance(unet(*inputs(torch.bfloat16)), expected) < 2 * CLOSE


@torch.no_grad()
def test_graphs_with_a_step_cache_compute_what_the_network_does():
    unet = build("videocrafter", VIDEOCRAFTER).bfloat16()
    plain, replayed = StepCache(unet, every=3), StepCache(Replayed(unet), every=3)
    for _ in range(2):  # two samplings, one after the other
        plain._step = replayed._step = 0
        expected = [plain(*inputs(torch.bfloat16, seed)) for seed in range(6)]
        found = [replayed(*inputs(torch.bfloat16, seed)) for seed in range(6)]
        for one, other in zip(found, expected, strict=True):
            assert distance(one, other) < 1e-3


@in_8_bits
@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_layers_in_8_bits_are_their_definition(fused):
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 256).cuda().bfloat16(), torch.randn(3, 40, 128, device="cuda").bfloat16()
    eight = Float8Linear.of(layer)
    with kernels.only(*(["fp8"] if fused else [])):
        found = eight(x).cpu()
    assert distance(found, copy.deepcopy(eight).cpu().float()(x.cpu().float())) < 1e-2  # the plain form on a CPU
    assert 2e-2 < distance(found, layer(x).cpu()) < 6e-2


@in_8_bits
@pytest.mark.parametrize("mode", ["none", "graphs", "full"])
@torch.no_grad()
def test_networks_in_8_bits_run_in_every_mode(mode, monkeypatch):
    monkeypatch.setattr(quantization, "WIDTH", 64)
    unet = build("lvdm", LVDM)
    with kernels.only():
        exact = unet(*inputs(torch.float32))
    assert quantization.quantize(unet.bfloat16(), "fp8", torch.device("cuda")) > 20
    plain = copy.deepcopy(unet).cpu()(*(each.cpu() for each in inputs(torch.bfloat16)))
    allowed = 1.3 * distance(plain, exact.cpu())  # what the plain form on a CPU loses
    network = Acceleration(mode).network(unet, steps=50)
    for _ in range(2):
        assert 0.02 < distance(network(*inputs(torch.bfloat16)), exact) < allowed < 0.2
