"""Adapter files: exactly the trained parameters, and no mistaking of base models."""

import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import ActionPrism, PrismConfig
from aicl.adapter import Fingerprint, load_adapter, read_adapter, save_adapter
from aicl.integrated_backbone import integrate
from lvdm.errors import CheckpointError
from tests.aicl.test_pipeline import generate, pixels, tiny_pipeline
from tests.aicl.tiny_models import randomise, tiny_unet, unet_inputs

PRISM = PrismConfig(context_dim=12, width=16, depth=1, heads=2, head_dim=8, text_width=10)


def build(family="videocrafter", **params):
    prism, integrated = ActionPrism(PRISM), integrate(tiny_unet(family, **params), IntegrationConfig(head_dim=16))
    randomise(prism, seed=1)
    randomise(integrated.blocks, seed=2)
    return prism, integrated


@pytest.fixture
def adapter(tmp_path):
    prism, integrated = build()
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, prism, integrated, {"step": 7, "run": "test"})
    return path, prism, integrated


def test_round_trip_gives_the_same_numbers(adapter):
    path, prism, integrated = adapter
    unet = tiny_unet("videocrafter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, patched, info = load_adapter(path, unet)
    assert (info.step, info.notes, info.family, info.prism) == (7, {"run": "test"}, "videocrafter", PRISM)
    latents, context = torch.randn(2, 1, 4, 4, 8, 4), torch.randn(2, 1, 5, 12)
    r = prism(latents, context)
    assert torch.equal(again(latents, context), r)
    inputs = unet_inputs()
    expected = integrated(*inputs, references=integrated.reference_context(r, 4))
    assert torch.equal(patched(*inputs, references=patched.reference_context(r, 4)), expected)


def test_holds_exactly_the_trained_parameters(adapter):
    path, prism, integrated = adapter
    attention = [f"to_{name}.weight" for name in ("q", "k", "v", "out")] + ["to_out.bias", "norm.weight", "norm.bias"]
    relative = [f"relative.{i}.embeddings_table" for i in (0, 1)]
    blocks = [
        "input_blocks_1_2_blocks_0",
        "input_blocks_3_2_blocks_0",
        "middle_block_2_blocks_0",
        *(f"output_blocks_{i}_2_blocks_0" for i in range(4)),
    ]
    expected = {f"integration.{b}.parts.temporal.{name}" for b in blocks for name in attention + relative}
    for layer in ("spatial_self", "temporal_self", "spatial_cross"):
        expected |= {f"prism.blocks.0.{layer}.{name}" for name in attention}
    expected |= {f"prism.blocks.0.temporal_self.{name}" for name in relative}
    for layer in ("video_in.0", "video_in.2", "text_in", "blocks.0.mlp.0", "blocks.0.mlp.1", "blocks.0.mlp.3"):
        expected |= {f"prism.{layer}.weight", f"prism.{layer}.bias"}
    expected |= {f"prism.output.{i}.{kind}" for i in (0, 1, 3, 5) for kind in ("weight", "bias")}
    assert set(load_file(path)) == expected
    trained = [p for module in (prism, integrated) for p in module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(v.numel() for v in load_file(path).values())


def test_another_family_or_layout_is_an_error(adapter):
    path = adapter[0]
    with pytest.raises(CheckpointError, match=r"family 'videocrafter'.*family 'lvdm'"):
        load_adapter(path, tiny_unet("lvdm"))
    unet = tiny_unet("videocrafter", channel_mult=[1, 1])
    with pytest.raises(CheckpointError, match=r"7 attention blocks 32 to 64 wide.*32 to 32 wide"):
        load_adapter(path, unet)
    assert not any(module._forward_hooks for module in unet.modules())


def test_other_weights_are_a_warning(adapter):
    unet = tiny_unet("videocrafter")
    randomise(unet, seed=99)
    with pytest.warns(UserWarning, match="other weights"):
        load_adapter(adapter[0], unet)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fingerprint_outlives_rounding(dtype):
    reference = Fingerprint.of(tiny_unet("lvdm"))
    assert len(reference.samples) == 64
    assert Fingerprint.of(tiny_unet("lvdm").to(dtype)).matches(reference)
    assert Fingerprint.of(integrate(tiny_unet("lvdm"), IntegrationConfig(head_dim=16)).backbone).matches(reference)
    other = tiny_unet("lvdm")
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.02)  # a light fine-tuning
    assert not Fingerprint.of(other).matches(reference)
    assert not Fingerprint.of(tiny_unet("lvdm", context_dim=16)).matches(reference)


def test_damaged_and_foreign_files(adapter, tmp_path):
    path = adapter[0]
    with pytest.raises(CheckpointError, match="does not exist"):
        read_adapter(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("nothing of the kind")
    with pytest.raises(CheckpointError, match="damaged"):
        read_adapter(tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no AICL adapter"):
        read_adapter(tmp_path / "foreign.safetensors")
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["aicl"])
    save_file(load_file(path), tmp_path / "new.safetensors", metadata={"aicl": json.dumps(content | {"format": 2})})
    with pytest.raises(CheckpointError, match="format 2"):
        read_adapter(tmp_path / "new.safetensors")


def test_missing_entries_are_listed_and_leave_the_unet_clean(adapter, tmp_path):
    path = adapter[0]
    with safe_open(path, framework="pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "sha256"}
    state = load_file(path)
    del state["prism.text_in.bias"]
    save_file(state, tmp_path / "short.safetensors", metadata=metadata)
    unet = tiny_unet("videocrafter")
    with pytest.raises(CheckpointError, match=r"prism\.text_in\.bias"):
        load_adapter(tmp_path / "short.safetensors", unet)
    assert not any(module._forward_hooks for module in unet.modules())


@pytest.mark.parametrize("place", ["aicl.adapter.build_prism", "aicl.loaded_adapter.ReferenceEncoder"])
def test_an_adapter_that_cannot_be_put_on_leaves_the_one_that_was_there(tmp_path, monkeypatch, place):
    pipe = tiny_pipeline()
    expected = generate(pipe, references=[pixels(0)])
    save_adapter(tmp_path / "adapter.safetensors", pipe.prism, pipe.integrated)

    def full(*given):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(place, full)
        pipe.load_adapter(tmp_path / "adapter.safetensors")
    assert torch.equal(generate(pipe, references=[pixels(0)]), expected)
    pipe.load_adapter(tmp_path / "adapter.safetensors")
    assert torch.equal(generate(pipe, references=[pixels(0)]), expected)
