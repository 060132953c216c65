"""Defaults that belong to an adapter: they come with its folder, act on videos with references, and go with it."""

import pytest
import torch

from aicl import AICLPipeline
from lvdm.errors import ConfigError
from tests.aicl.test_pipeline import generate, pixels, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_the_first_reference_leads(pipe, tmp_path):
    first, both = [pixels(0)], [pixels(0), pixels(1)]
    alike, alone = generate(pipe, references=both), generate(pipe, references=first)
    half = generate(pipe, references=both, first_reference_until=0.5)
    assert torch.equal(generate(pipe, references=both, first_reference_until=0), alike)
    assert (
        generate(pipe, references=both, first_reference_until=1).int() - alone.int()
    ).abs().max() <= 1  # R of one is made of two
    assert not torch.equal(half, alike) and not torch.equal(half, alone)
    assert torch.equal(generate(pipe, references=first, first_reference_until=0.5), alone)

    pipe.first_reference_until = 0.5
    try:
        pipe.save_pretrained(tmp_path / "model")
        assert torch.equal(generate(pipe, references=both), half)
    finally:
        pipe.first_reference_until = 0.0
    loaded = AICLPipeline.from_pretrained(tmp_path / "model")
    assert loaded.first_reference_until == 0.5 and torch.equal(generate(loaded, references=both), half)
    other = AICLPipeline.from_pretrained(tmp_path / "model", adapter=tmp_path / "model" / "adapter.safetensors")
    assert other.first_reference_until == 0  # it goes with the folder's own adapter

    with pytest.raises(ConfigError, match=r"first_reference_until is 1\.5: it must be from 0 to 1"):
        generate(pipe, references=both, first_reference_until=1.5)
    with pytest.raises(ConfigError, match="without references"):
        generate(pipe, first_reference_until=0.5)


def test_an_adapter_may_have_a_guidance_scale_of_its_own_for_references(pipe, tmp_path):
    shown, base = [pixels(0)], generate(pipe)
    weak = generate(pipe, references=shown, guidance_scale=2.0)
    assert not torch.equal(weak, generate(pipe, references=shown))
    pipe.guidance_scale = 2.0
    try:
        assert torch.equal(generate(pipe, references=shown), weak) and torch.equal(generate(pipe), base)
        pipe.save_pretrained(tmp_path / "model")
    finally:
        pipe.guidance_scale = None
    loaded = AICLPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(generate(loaded, references=shown), weak) and "guidance_scale=2.0" in repr(loaded)
    loaded.load_adapter(tmp_path / "model" / "adapter.safetensors")
    assert loaded.guidance_scale is None  # it went with the folder's own adapter


def test_an_adapter_may_have_a_number_of_steps_of_its_own_for_references(pipe, tmp_path):
    clip = {"height": 32, "width": 32, "num_frames": 4, "progress": False}
    one_step = pipe("a robot", references=[pixels(0)], num_inference_steps=1, **clip)
    pipe.num_inference_steps = 1
    try:
        assert torch.equal(pipe("a robot", references=[pixels(0)], **clip), one_step)
        pipe.save_pretrained(tmp_path / "model")
    finally:
        pipe.num_inference_steps = None
    loaded = AICLPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded("a robot", references=[pixels(0)], **clip), one_step)
    two_steps = generate(pipe, references=[pixels(0)], num_inference_steps=2)
    assert torch.equal(generate(loaded, references=[pixels(0)], num_inference_steps=2), two_steps)
    base = pipe.base.config.defaults.num_inference_steps
    assert loaded.defaults_with(references=False).num_inference_steps == base > 1
    loaded.load_adapter(tmp_path / "model" / "adapter.safetensors")
    assert loaded.num_inference_steps is None  # it went with the folder's own adapter
