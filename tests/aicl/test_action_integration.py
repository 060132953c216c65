"""Action Integration: a no-op when untrained, exact bookkeeping of references, and nothing left behind."""

import copy

import pytest
import torch

from aicl.action_integration import IntegrationConfig
from aicl.guidance import branches
from aicl.integrated_backbone import IntegratedBackbone, integrate
from lvdm.diffusion import Condition, Denoiser, NoiseSchedule
from lvdm.errors import ConfigError
from tests.aicl.tiny_models import FAMILIES, WIDTHS, randomise, tiny_unet, unet_inputs

MODES = ("temporal", "spatial", "both")


def tiny(
    family: str = "lvdm", mode: str = "temporal", trained: bool = True, params=(), **settings
) -> IntegratedBackbone:
    torch.manual_seed(0)
    integrated = integrate(tiny_unet(family, **dict(params)), IntegrationConfig(mode=mode, head_dim=16, **settings))
    if trained:
        randomise(integrated.blocks, seed=3)
    return integrated


def features(b: int = 2, frames: int = 8, channels: int = 4, size: tuple[int, int] = (8, 4), seed: int = 5):
    return torch.randn(b, frames, channels, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_is_the_base_bit_for_bit_and_unpatch_gives_it_back(family, mode):
    unet, inputs = tiny_unet(family), unet_inputs()
    keys, base = list(unet.state_dict()), unet(*inputs)
    unet.out.requires_grad_(False)
    flags = [p.requires_grad for p in unet.parameters()]
    integrated = integrate(unet, IntegrationConfig(mode=mode, head_dim=16))
    assert list(integrated.layout.values()) == WIDTHS
    assert not any(p.requires_grad for p in unet.parameters())
    memory = integrated.reference_context(features(channels=8 if mode == "both" else 4), 4)
    assert torch.equal(integrated(*inputs, references=memory), base)
    randomise(integrated.blocks, seed=3)
    assert not torch.allclose(integrated(*inputs, references=memory), base, atol=1e-3)
    assert torch.equal(integrated(*inputs), base)
    integrated(*inputs, references=memory)
    assert torch.equal(unet(*inputs), base)  # a call that goes past the wrapper reads nothing
    assert list(unet.state_dict()) == keys
    assert integrated.unpatch() is unet
    assert torch.equal(unet(*inputs), base)
    assert [p.requires_grad for p in unet.parameters()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    integrate(unet, IntegrationConfig(mode=mode, head_dim=16))
    integrated.unpatch()  # again: nothing of it is on the backbone, which the other one has frozen
    assert not any(p.requires_grad for p in unet.parameters())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_reaches_every_new_parameter_by_step_two(family, mode):
    integrated = tiny(family, mode, trained=False)
    before = copy.deepcopy(integrated.backbone.state_dict())
    trained = [p for p in integrated.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in integrated.blocks.parameters()}
    optimiser = torch.optim.SGD(trained, lr=0.1)
    r = features(channels=8 if mode == "both" else 4)
    for _ in range(2):
        optimiser.zero_grad()
        integrated(*unet_inputs(), references=integrated.reference_context(r, 4)).square().mean().backward()
        optimiser.step()
    assert [name for name, p in integrated.blocks.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(torch.equal(before[name], value) for name, value in integrated.backbone.state_dict().items())


@pytest.mark.parametrize("mode", MODES)
def test_order_of_references_does_not_matter(mode):
    integrated, inputs = tiny(mode=mode), unet_inputs()
    first, second, third = features(frames=13, channels=8 if mode == "both" else 4).split([4, 6, 3], dim=1)
    one = integrated.reference_context(torch.cat([first, second, third], 1), [4, 6, 3], weights=[1, 2, 3])
    other = integrated.reference_context(torch.cat([third, first, second], 1), [3, 4, 6], weights=[3, 1, 2])
    torch.testing.assert_close(integrated(*inputs, references=one), integrated(*inputs, references=other))


def test_the_first_reference_leads_where_it_is_noisy():
    integrated, (x, _, context) = tiny(), unet_inputs()
    one, other = features(frames=10).split([4, 6], dim=1)
    both = torch.cat([one, other], 1)
    leading = integrated.reference_context(both, [4, 6], weights=[1, 2], spans=[(0, 999), (0, 499)])
    for t, alone in ((499, False), (500, True), (999, True), (0, False)):
        steps = torch.full((len(x),), t)
        expected = (
            integrated.reference_context(one, 4)
            if alone
            else integrated.reference_context(both, [4, 6], weights=[1, 2])
        )
        read = integrated(x, steps, context, references=leading)
        torch.testing.assert_close(read, integrated(x, steps, context, references=expected))


@pytest.mark.parametrize("mode", MODES)
def test_a_reference_of_weight_zero_is_absent(mode):
    integrated, inputs = tiny(mode=mode), unet_inputs()
    r = features(channels=8 if mode == "both" else 4)
    alone = integrated(*inputs, references=integrated.reference_context(r[:, :4], 4))
    listed = integrated(*inputs, references=integrated.reference_context(r, 4, weights=[0.7, 0]))
    assert torch.equal(listed, alone)
    assert integrated.reference_context(r, 4, weights=[0, 0]) is None
    # As a tensor, weights differ between samples: the second has no references left, the first only its own first.
    mixed = integrated(
        *inputs, references=integrated.reference_context(r, 4, weights=torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    )
    torch.testing.assert_close(mixed[0], alone[0])
    assert torch.equal(mixed[1], integrated(*inputs)[1])


def test_weights_and_scale_weigh():
    integrated, inputs, r = tiny(), unet_inputs(), features()
    base = integrated(*inputs)

    def run(**options):
        return integrated(*inputs, references=integrated.reference_context(r, 4, **options))

    assert torch.equal(run(scale=0), base)
    assert torch.equal(run(weights=[2, 2]), run())  # only ratios matter
    assert not torch.allclose(run(weights=[1, 3]), run(), atol=1e-3)
    near, far = (run(weights=[1, w]) - run(weights=[1, 0]) for w in (1e-4, 1e-2))
    assert near.abs().max() < far.abs().max() < (run() - run(weights=[1, 0])).abs().max()
    effects = [(run(scale=scale) - base).abs().mean() for scale in (0.01, 0.1, 1.0)]
    assert effects == sorted(effects)


@pytest.mark.parametrize("family", FAMILIES)
def test_references_of_some_rows_leave_the_others_alone(family):
    integrated, (x, t, context) = tiny(family), unet_inputs()
    memory = integrated.reference_context(features(), 4)
    both = integrated(x.repeat(2, 1, 1, 1, 1), t.repeat(2), context.repeat(2, 1, 1), references=[(slice(2, 4), memory)])
    torch.testing.assert_close(both[:2], integrated(x, t, context))
    torch.testing.assert_close(both[2:], integrated(x, t, context, references=memory))


@pytest.mark.parametrize("frames", [4, [5, 3]])
@pytest.mark.parametrize("mode", MODES)
def test_one_context_serves_every_sample(mode, frames):
    integrated, inputs = tiny(mode=mode), unet_inputs(b=3)
    one = features(b=1, channels=8 if mode == "both" else 4)
    shared = integrated.reference_context(one, frames, weights=[1, 2])
    copied = integrated.reference_context(one.expand(3, -1, -1, -1, -1), frames, weights=[1, 2])
    torch.testing.assert_close(integrated(*inputs, references=shared), integrated(*inputs, references=copied))


@pytest.mark.parametrize("mode", MODES)
def test_keys_and_values_are_made_once_per_video(mode):
    integrated, inputs = tiny(mode=mode), unet_inputs()
    calls = []
    for block in integrated.blocks.values():
        for part in block.parts.values():
            part.to_k.register_forward_hook(lambda *_: calls.append(1))
    memory = integrated.reference_context(features(channels=8 if mode == "both" else 4), 4)
    with torch.no_grad():
        first = integrated(*inputs, references=memory)
        made = len(calls)
        assert torch.equal(integrated(*inputs, references=memory), first)
    assert made == len(calls) == len(WIDTHS) * (2 if mode == "both" else 1)
    trained = integrated(*inputs, references=memory)  # with gradients they are made anew, to be differentiated
    torch.testing.assert_close(trained, first)
    assert len(calls) == 2 * made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(8, 4), (5, 9), (1, 1)])
def test_references_of_other_sizes_and_lengths(mode, size):
    integrated, inputs = tiny(mode=mode), unet_inputs()
    memory = integrated.reference_context(features(frames=3, size=size, channels=8 if mode == "both" else 4), 3)
    assert not torch.allclose(integrated(*inputs, references=memory), integrated(*inputs), atol=1e-3)


def test_the_same_place_is_read():
    """Temporal integration of a UNet block reads R at the token's own position, nowhere else (eq. 7)."""
    block = next(iter(tiny().blocks.values())).parts["temporal"]
    integrated = tiny()
    r = features(b=1, frames=4)
    changed = r.clone()
    changed[..., 2, 1] += 1
    tokens = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = (block(tokens, x, integrated.reference_context(x, 4), (8, 4)) for x in (r, changed))
    assert (one - other).abs().amax((0, 1, 3)).nonzero().flatten().tolist() == [2 * 4 + 1]


def test_positions_tell_a_reversed_reference_apart():
    inputs, r = unet_inputs(), features(frames=4)
    for positions, equal in (("learned", False), ("none", True)):
        integrated = tiny(temporal_positions=positions)
        forward, backward = (integrated(*inputs, references=integrated.reference_context(x, 4)) for x in (r, r.flip(1)))
        assert torch.allclose(forward, backward, atol=1e-4) == equal


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_nothing(family):
    results = []
    for use_checkpoint in (False, True):
        integrated = tiny(family, params={"use_checkpoint": use_checkpoint})
        r = features().requires_grad_()
        out = integrated(*unet_inputs(), references=integrated.reference_context(r, 4))
        out.square().mean().backward()
        results.append([out, r.grad, *(p.grad for p in integrated.blocks.parameters())])
    for plain, checkpointed in zip(*results):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_new_layers_may_have_another_dtype_than_the_base(mode):
    integrated = tiny(mode=mode)
    integrated.backbone.bfloat16()
    x, t, context = unet_inputs()
    memory = integrated.reference_context(features(channels=8 if mode == "both" else 4), 4, weights=[1, 2])
    out = integrated(x.bfloat16(), t, context.bfloat16(), references=memory)
    assert out.dtype == torch.bfloat16
    integrated.blocks.bfloat16()
    integrated(x.bfloat16(), t, context.bfloat16(), references=memory).float().square().mean().backward()


def test_a_copy_is_independent():
    integrated, inputs = tiny(), unet_inputs()
    memory = integrated.reference_context(features(), 4)
    expected = integrated(*inputs, references=memory)
    other = copy.deepcopy(integrated)
    randomise(other.blocks, seed=9)
    assert torch.equal(integrated(*inputs, references=memory), expected)
    assert not torch.allclose(other(*inputs, references=memory), expected, atol=1e-3)


def test_says_what_does_not_fit():
    integrated = tiny()
    with pytest.raises(ConfigError, match="already integrated"):
        integrate(integrated.backbone, IntegrationConfig(head_dim=16))
    with pytest.raises(ConfigError, match=r"integration.head_dim is 0"):
        IntegrationConfig(head_dim=0)
    with pytest.raises(ConfigError, match=r"head_dim 48 does not divide the backbone.s width 32: set it to 16"):
        integrate(tiny_unet("lvdm"), IntegrationConfig(head_dim=48))
    with pytest.raises(ConfigError, match="8 channels, the integration reads 4"):
        integrated.reference_context(features(channels=8), 4)
    with pytest.raises(ConfigError, match="8 frames"):
        integrated.reference_context(features(), [3, 4])
    with pytest.raises(ConfigError, match="weights"):
        integrated.reference_context(features(), 4, weights=[1, -1])
    with pytest.raises(ConfigError, match="scale"):
        integrated.reference_context(features(), 4, scale=float("nan"))


def test_defaults_are_ours_and_positions_ask_only_what_they_need():
    assert IntegrationConfig() == IntegrationConfig(
        feature_channels=4,
        mode="temporal",
        head_dim=64,
        max_relative_frames=16,
        temporal_positions="learned",
        spatial_positions="rotary",
    )
    IntegrationConfig(head_dim=6)  # there is no spatial attention, so no rotary positions
    IntegrationConfig(head_dim=6, mode="spatial", spatial_positions="none")
    with pytest.raises(ConfigError, match=r"integration.head_dim is 6: .* a multiple of 4"):
        IntegrationConfig(head_dim=6, mode="both")


@pytest.mark.slow
def test_compiles_to_one_graph_for_training_and_two_for_sampling():
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    one_level = {"channel_mult": [1], "attention_resolutions": [2], "addition_attention": False}
    integrated, inputs = tiny("videocrafter", params=one_level), unet_inputs()  # one block reads references
    compiled = torch.compile(integrated, backend=count, fullgraph=True)
    for seed in range(3):
        out = compiled(*inputs, references=integrated.reference_context(features(seed=seed), 4))
        out.sum().backward()
    torch.testing.assert_close(out, integrated(*inputs, references=integrated.reference_context(features(seed=2), 4)))
    assert len(graphs) == 1
    with torch.no_grad():
        for seed in range(2):
            memory = integrated.reference_context(features(seed=seed), 4)
            for _ in range(3):  # the first step makes keys and values, the others read them
                compiled(*inputs, references=[(slice(0, 2), memory)])
    assert len(graphs) == 3


@pytest.mark.parametrize(("count", "scale"), [(1, 1.0), (3, 1.0), (3, 0.0)])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_branches_that_share_what_precedes_the_prompt_are_those_computed_apart(family, count, scale):
    integrated, (x, t, prompts) = tiny(family, feature_channels=4), unet_inputs()
    memory = integrated.reference_context(features(frames=4 * count), 4, weights=[3, 2, 1][:count], scale=scale)
    denoiser, rows = Denoiser(integrated, NoiseSchedule.scaled_linear()), []
    integrated.backbone.input_blocks[0].register_forward_pre_hook(lambda stage, args: rows.append(len(args[0])))
    for reference_guidance_scale in (None, 4.0):
        conditions, _ = branches(Condition(prompts[:1]), Condition(prompts[1:]), memory, 7.5, reference_guidance_scale)
        found = {}
        for shares in (True, False):
            integrated.shares_branches = shares
            found[shares] = denoiser.predict(x, t, conditions)
        torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-5)
        apart = torch.cat([denoiser.predict(x, t, [condition]) for condition in conditions])
        torch.testing.assert_close(found[True], apart, rtol=1e-5, atol=1e-5)
        text, read = denoiser.predict(x, t, [Condition(prompts[1:])]), found[True][-len(x) :]
        assert torch.allclose(text, read, rtol=1e-5, atol=1e-5) == (scale == 0)
    assert rows == [2, 4, 2, 2, 2, 2, 6, 2, 2, 2, 2]  # two samples: once for all branches, or for each
