"""Action Prism: shapes, independence of references, positions, and every variant of Table II."""

import pytest
import torch

from aicl.action_prism import ActionPrism, PrismConfig, build_prism
from aicl.rotary import axial_rotary, rotate
from lvdm.errors import ConfigError

TINY = {"context_dim": 12, "width": 16, "depth": 2, "heads": 2, "head_dim": 8, "text_width": 10}

VARIANTS = {
    "ours": {},
    "no positions": {"spatial_positions": "none", "temporal_positions": "none"},
    "row 1": {"self_attention": False},
    "row 2": {"cross_attention": "text_query"},
    "row 4": {"cross_attention": "temporal"},
    "row 5": {"cross_attention": "both"},
    "row 8": {"features": 2},
}


def build(**settings) -> ActionPrism:
    torch.manual_seed(0)
    return build_prism(PrismConfig(**TINY | settings))


def inputs(b=2, k=3, t=4, h=6, w=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(b, k, 4, t, h, w, generator=generator), torch.randn(b, k, 5, 12, generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_give_r_and_use_every_parameter(variant):
    prism = build(**VARIANTS[variant])
    r = prism(*inputs())
    place = (1, 1) if variant == "row 2" else (6, 4)
    assert r.shape == (2, 12, 4 * prism.config.features, *place)
    r.square().sum().backward()
    assert [name for name, p in prism.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_defaults_are_the_papers():
    with torch.device("meta"):
        prism = ActionPrism(PrismConfig())
    block = prism.blocks[0]
    config = prism.config
    assert (config.heads, config.head_dim, config.max_relative_frames, config.use_checkpoint) == (8, 80, 16, False)
    assert (config.spatial_positions, config.temporal_positions) == ("rotary", "learned")
    assert len(prism.blocks) == 18
    assert prism.video_in[0].weight.shape == (640, 4)
    assert prism.text_in.weight.shape == (768, 1024)
    assert block.spatial_cross.to_k.weight.shape == (8 * 80, 768)
    assert [layer.weight.shape for layer in prism.output if hasattr(layer, "in_features")] == [
        (2560, 640),
        (2560, 2560),
        (4, 2560),
    ]


def test_one_call_for_many_references_is_many_calls():
    prism, (latents, context) = build(), inputs()
    together = prism(latents, context)
    for i in range(3):
        alone = prism(latents[:, i : i + 1], context[:, i : i + 1])
        torch.testing.assert_close(together[:, 4 * i : 4 * i + 4], alone)


def test_self_attention_mixes_places_and_frames():
    latents, context = inputs(b=1, k=1)
    changed = latents.clone()
    changed[..., 0, 0, 0] += 1  # one corner of the first frame
    moved = (build()(changed, context) - build()(latents, context)).abs().amax(2)[0]
    assert (moved > 1e-6).all()
    alone = build(self_attention=False)
    moved = (alone(changed, context) - alone(latents, context)).abs().amax(2)[0]
    assert moved.nonzero().tolist() == [[0, 0, 0]]


def test_caption_reaches_r():
    prism, (latents, context) = build(), inputs()
    assert not torch.allclose(prism(latents, context), prism(latents, context.flip(2) + 1))


def test_positions_tell_mirrored_and_reversed_videos_apart():
    latents, context = inputs(b=1, k=1)
    with_positions, without = build(), build(spatial_positions="none", temporal_positions="none")
    for axis in (-1, -2, -3):
        flipped = latents.flip(axis)
        dimension = {-1: -1, -2: -2, -3: 1}[axis]
        torch.testing.assert_close(without(flipped, context), without(latents, context).flip(dimension))
        assert not torch.allclose(
            with_positions(flipped, context), with_positions(latents, context).flip(dimension), atol=1e-4
        )


def test_rotary_scores_depend_on_offsets_only():
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 35, 16)
    rotary = axial_rotary(5, 7, 16, q.device)
    scores = (rotate(q, rotary) @ rotate(k, rotary).transpose(-1, -2)).view(5, 7, 5, 7)
    torch.testing.assert_close(scores[0, 1, 2, 3], scores[2, 3, 4, 5])
    assert not torch.allclose(scores[0, 1, 2, 3], scores[0, 1, 3, 2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_nothing(variant):
    grads = []
    for use_checkpoint in (False, True):
        prism = build(**VARIANTS[variant], use_checkpoint=use_checkpoint)
        out = prism(*inputs())
        out.square().sum().backward()
        grads.append([out, *(p.grad for p in prism.parameters())])
    for plain, checkpointed in zip(*grads):
        assert torch.equal(plain, checkpointed)


def test_runs_in_bfloat16():
    assert build().bfloat16()(*inputs()).dtype == torch.bfloat16


def test_says_what_does_not_fit():
    latents, context = inputs()
    with pytest.raises(ConfigError, match=r"prism\.context_dim"):
        build()(latents, context[..., :7])
    with pytest.raises(ConfigError, match="reference latents"):
        build()(latents[:, :, :3], context)
    with pytest.raises(ConfigError, match="multiple of 4"):
        PrismConfig(head_dim=6)
    with pytest.raises(ConfigError, match="features"):
        PrismConfig(features=3)
    with pytest.raises(ConfigError, match=r"prism.depth is 0: it must be at least 1"):
        PrismConfig(depth=0)
