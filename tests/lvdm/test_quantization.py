"""Linear layers in 8 bits: their numbers by the definition, which layers they are, and what is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aicl.action_integration import IntegrationConfig
from aicl.integrated_backbone import integrate
from lvdm.acceleration import prepare
from lvdm.checkpoints import save_pipeline
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models import fp8, quantization
from lvdm.models.fp8 import Float8Linear
from lvdm.models.quantization import quantize
from tests.aicl.tiny_models import randomise, tiny_unet, unet_inputs

CPU = torch.device("cpu")
# The numbers of e4m3 from 0 on: an exponent of 4 bits with a bias of 7, a mantissa of 3, none that is infinite.
E4M3 = torch.tensor(
    [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]
)


def distance(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def rounded(rows):
    """Each row to the nearest multiples of its largest value over 448, by the definition of e4m3."""
    scale = rows.abs().amax(1, keepdim=True) / E4M3[-1]
    nearest = (rows.abs() / scale)[..., None].sub(E4M3).abs().argmin(-1)
    return rows.sign() * E4M3[nearest] * scale


def test_a_layer_is_the_product_of_what_was_rounded():
    generator = torch.Generator().manual_seed(0)
    x, layer = torch.randn(2, 3, 256, generator=generator), nn.Linear(256, 128)
    x[0, 1] *= 1000  # rows have scales of their own, as do output channels
    with torch.no_grad():
        layer.weight[3] *= 1000
        found, exact = Float8Linear.of(layer)(x), layer(x)
        expected = rounded(x.flatten(0, 1)) @ rounded(layer.weight).T + layer.bias
        torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)
        others = torch.arange(128) != 3
        for one, other in zip(found[..., others].flatten(0, 1), exact[..., others].flatten(0, 1)):
            assert 0.025 < distance(one, other) < 0.055  # two factors of 3 bits each, of which each is off by 2.6%
        torch.testing.assert_close(Float8Linear.of(layer)(torch.zeros(1, 256))[0], layer.bias)


def test_moving_and_casting_leave_the_weights():
    layer = Float8Linear.of(nn.Linear(48, 32))
    before = copy.deepcopy(layer)
    layer.to(torch.bfloat16)
    assert torch.equal(layer.weight, before.weight) and torch.equal(layer.scale, before.scale)
    assert layer.bias.dtype == torch.bfloat16 and layer.scale.dtype == torch.float32
    x = torch.randn(4, 48)
    assert layer(x.bfloat16()).dtype == torch.bfloat16 and distance(layer(x.bfloat16()), before(x)) < 0.03


@pytest.mark.parametrize("family", ["lvdm", "videocrafter"])
@torch.no_grad()
def test_wide_layers_of_transformers_are_replaced_and_an_adapter_reads_on(family, monkeypatch):
    monkeypatch.setattr(quantization, "WIDTH", 64)
    unet, inputs = tiny_unet(family), unet_inputs()
    integrated = integrate(unet, IntegrationConfig(feature_channels=4, head_dim=16))
    randomise(integrated.blocks, seed=3)
    read = integrated.reference_context(torch.randn(2, 8, 4, 8, 4, generator=torch.Generator().manual_seed(0)), 4)
    exact, exact_read = integrated(*inputs), integrated(*inputs, references=read)
    wide = {
        name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and min(layer.weight.shape) >= 64
    }
    count = quantize(integrated, "fp8", CPU)
    replaced = {name for name, layer in unet.named_modules() if isinstance(layer, Float8Linear)}
    assert len(replaced) == count > 20
    # only what makes tokens of tokens: neither what is projected of the context, 12 wide, nor of the timestep
    assert replaced == {name for name in wide if ".blocks." in name or name.endswith(("proj_in", "proj_out"))}
    assert not any(isinstance(layer, Float8Linear) for layer in integrated.blocks.modules())
    found, found_read = integrated(*inputs), integrated(*inputs, references=read)
    assert 1e-3 < distance(found, exact) < 0.1 and distance(found_read, exact_read) < 0.1
    assert distance(found_read, found) > 0.5 * distance(exact_read, exact)
    unet.requires_grad_(False)
    prepare(unet)  # queries, keys and values in one product
    torch.testing.assert_close(integrated(*inputs), found, rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigError, match="this model has none"):  # they are in 8 bits already
        quantize(integrated, "fp8", CPU)


def test_what_cannot_be_in_8_bits_is_refused(monkeypatch, tmp_path):
    unet = tiny_unet("videocrafter")
    with pytest.raises(
        ConfigError, match=r"linear layers of 640 channels or more .* this model has none: leave it out"
    ):
        quantize(unet, "fp8", CPU)
    with pytest.raises(ConfigError, match="unknown quantization 'int8': choose from none, fp8"):
        quantize(unet, "int8", CPU)
    monkeypatch.setattr(quantization, "WIDTH", 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match=r"compute capability 8\.9\), and NVIDIA A100 has no products of 8-bit"):
        quantize(unet, "fp8", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(ConfigError, match="the model is in float32: choose dtype bfloat16"):
        quantize(unet, "fp8", torch.device("cuda"))
    assert not quantization.is_quantized(unet) and quantize(unet, "none", CPU) == 0
    quantize(unet, "fp8", CPU)
    with pytest.raises(CheckpointError, match="a model in 8 bits is for sampling"):
        save_pipeline(SimpleNamespace(modules=lambda: {"unet": unet}), None, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_rows_are_rounded_to_the_nearest():
    values, scale = fp8.quantize_rows(torch.tensor([[448.0, -17.0, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert values[0].tolist() == [448.0, -16.0, 0.40625, 0.0] and scale[0, 0] == 1.0
    assert values[1].float().tolist() == [0.0] * 4 and scale[1, 0] > 0
