"""What else people put on networks of diffusers, compilation, recomputation and offload, and that AICL's hooks stay."""

from typing import Any

import pytest
import torch

from aicl.action_prism import build_prism
from aicl.base_defaults import read_integration_config, read_prism_config
from aicl.integrated_backbone import IntegratedBackbone, integrate
from aicl.pipeline import AICLPipeline
from lvdm.acceleration import regions
from lvdm.bases.loading import wrap
from lvdm.errors import ConfigError
from tests.aicl.test_bases import BLOCKS, SMALL, features, inputs, integrated, references
from tests.aicl.tiny_models import randomise
from tests.lvdm.tiny_bases import network, pipeline

pytest.importorskip("diffusers")
WAN = "WanTransformer3DModel"


@pytest.fixture()
def light_compiler(monkeypatch):
    """Nothing compiled before; graphs are traced and differentiated as ever, then run as they are: no C++ is built."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: compile_(model, **options | {"backend": "aot_eager"})
    )
    torch._dynamo.reset()
    regions._compiled.cache_clear()
    yield
    regions._compiled.cache_clear()
    torch._dynamo.reset()


def gradients(model: IntegratedBackbone, given: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The prediction with references, and the gradients of all that is new."""
    model.zero_grad()
    output = model(**given, references=model.reference_context(features(), 2))
    output.square().mean().backward()
    return output.detach(), [parameter.grad for parameter in model.blocks.parameters()]


def test_compiled_and_recomputed_blocks_read_references_as_others_do(light_compiler):
    model = integrated(WAN)
    randomise(model.blocks, seed=1)
    given = inputs(model.backbone)
    with torch.no_grad():
        base = model(**given)
    output, plain = gradients(model, given)
    assert (output - base).abs().max() > 0.1
    model.enable_gradient_checkpointing()
    assert regions.compile_regions(model) == 2
    compiled, found = gradients(model, given)
    torch.testing.assert_close(compiled, output)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model(**given), base)


def test_what_diffusers_compiles_itself_reads_references_too(light_compiler):
    model = integrated(WAN)
    randomise(model.blocks, seed=1)
    given, shown = inputs(model.backbone), features()
    with torch.no_grad():
        base, right = model(**given), model(**given, references=model.reference_context(shown, 2))
        assert (right - base).abs().max() > 0.1
        model.unpatch().model.compile_repeated_blocks()
        torch.testing.assert_close(model.backbone(**given), base)  # compiled before there is an integration
        trained, model = model.blocks.state_dict(), integrate(model.backbone, model.config)
        model.blocks.load_state_dict(trained)
        for _ in range(2):
            torch.testing.assert_close(model(**given, references=model.reference_context(shown, 2)), right)
            torch.testing.assert_close(model(**given), base)


def test_offload_is_ours_and_changes_nothing():
    base = wrap(pipeline("WanPipeline"))
    prism = build_prism(read_prism_config({**SMALL, "out_channels": 6}, base))
    blocks = integrate(base.components.unet, read_integration_config({**BLOCKS, "feature_channels": 6}, base))
    randomise(blocks.blocks, seed=1)
    pipe = AICLPipeline(base, prism, blocks)
    options: dict[str, Any] = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 1, "progress": False}
    options |= {"references": references(1), "output_type": "pixels"}
    shown = pipe("a person jumps", **options)
    own = base.components.codec.slice_size
    pipe.enable_model_cpu_offload("cpu")
    codec = base.components.codec
    assert codec.slice_size == own and not codec.vae.use_tiling  # slices come with tiles here, which change videos
    pipe.enable_vae_slicing()
    assert codec.slice_size == 1 and codec.vae.use_tiling
    pipe.disable_vae_slicing()
    assert codec.slice_size == own and not codec.vae.use_tiling
    assert torch.equal(pipe("a person jumps", **options), shown)
    pipe.remove_adapter()


def test_offload_of_diffusers_is_refused_in_a_sentence():
    import diffusers

    parts = dict(pipeline("WanPipeline").components)
    moved = network(WAN)
    cpu = torch.device("cpu")
    moved.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    with pytest.raises(ConfigError, match=r"moves the parts .* itself.*enable_model_cpu_offload\(\) of the AICL"):
        wrap(diffusers.WanPipeline(**parts | {"transformer": moved}))
    hooked = network(WAN)
    hooked._hf_hook = object()  # as accelerate leaves it there
    with pytest.raises(ConfigError, match="load it without offload"):
        wrap(diffusers.WanPipeline(**parts | {"transformer": hooked}))
