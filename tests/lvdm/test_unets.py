import pytest
import torch

from lvdm.checkpoints import convert_unet
from lvdm.errors import ConfigError
from lvdm.models import SpatioTemporalBlock, TemporalBlock, attention, build_backbone
from lvdm.models.resblocks import ResBlock
from lvdm.models.transformers import Transformer
from tests.aicl.tiny_models import SMALLEST
from tests.parity import rebuild

FIGURES = ["lvdm_t2v_tiny", "videocrafter1_t2v_tiny", "videocrafter2_t2v_tiny", "videocrafter1_i2v_tiny"]
SMALL = SMALLEST | {"attention_resolutions": [2], "num_head_channels": 16, "context_dim": 12, "temporal_length": 4}
OPTIONS = {
    "lvdm": {},
    "lvdm: relative positions": {"use_relative_position": True},
    "lvdm: three-frame kernels": {"kernel_size_t": 3, "padding_t": 1},
    "lvdm: heads that do not fill the width": {"num_head_channels": 24, "legacy": False},
    "lvdm: legacy heads fill it": {"num_head_channels": 24, "legacy": True},
    "lvdm: scale and shift, leaky, resampling blocks": {
        "use_scale_shift_norm": True,
        "nonlinearity_type": "leaky_relu",
        "resblock_updown": True,
    },
    "lvdm: without context": {"context_dim": None, "use_relative_position": True, "use_temporal_transformer": False},
    "videocrafter": {},
    "videocrafter: num_heads, fixed resampling": {"num_head_channels": -1, "num_heads": 4, "conv_resample": False},
    "videocrafter: causal": {"use_causal_attention": True, "use_relative_position": False},
    "videocrafter: temporal attention to the text": {"temporal_selfatt_only": False},
    "videocrafter: deep": {"transformer_depth": 2, "temporal_transformer_depth": 2, "addition_attention": True},
    "videocrafter: aware temporal convolutions": {"temporal_conv": True, "tempspatial_aware": True, "fps_cond": True},
    "videocrafter: image tokens": {"use_image_attention": True},
    "videocrafter: spatial only": {"temporal_attention": False},
    "videocrafter: scale and shift, resampling blocks": {
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "temporal_conv": True,
    },
}


def small(family, **options):
    """A small UNet whose zero-initialised layers are not zero."""
    unet = build_backbone(family, SMALL | options).eval()
    unet.load_state_dict(rebuild.weights_for({name: value.shape for name, value in unet.state_dict().items()}))
    return unet


def run(unet, frames=4, size=(4, 4), tokens=80, batch=2, **conditions):
    width = unet.params.context_dim
    context = None if width is None else rebuild.inputs("context", (batch, tokens, width))
    x = rebuild.inputs("x", (batch, 4, frames, *size))
    return unet(x, torch.arange(10, 10 + batch), context, **conditions)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("name", FIGURES)
@torch.no_grad()
def test_published_numbers(name, backend):
    figure, expected = rebuild.figure(name)
    unet = build_backbone(figure["family"], figure["unet"]).eval()
    unet.load_state_dict(convert_unet(figure["family"], rebuild.weights_for(figure["state_dict"])))
    x, context = rebuild.inputs("x", figure["x"]), rebuild.inputs("context", figure["context"])
    fps = None if figure["fps"] is None else torch.tensor(figure["fps"])
    with attention.backend(backend):
        y = unet(x, torch.tensor(figure["timesteps"]), context, fps=fps)
    torch.testing.assert_close(y, torch.from_numpy(expected["y"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_runs_and_trains(options):
    """Frames, height and width may be any that fit, and no parameter is idle, whether activations are kept or not."""
    unet = small(options.split(":")[0], **OPTIONS[options]).train()
    for module in unet.modules():
        if hasattr(module, "DROPOUT"):
            module.DROPOUT = 0.0
    results = []
    for unet.params.use_checkpoint in (False, True):
        for module in unet.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = unet.params.use_checkpoint
        unet.zero_grad()
        y = run(unet, frames=3, size=(4, 6))
        y.square().mean().backward()
        results.append([y, *(parameter.grad for parameter in unet.parameters())])
    assert results[0][0].shape == (2, 4, 3, 4, 6)
    for name, gradient in zip(dict(unet.named_parameters()), results[0][1:]):
        assert gradient.abs().max() > 0, name
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("family", ["lvdm", "videocrafter"])
def test_all_blocks_but_the_last_are_recomputed_and_gradients_stay(family):
    unet, calls, results = small(family), [], []
    blocks = [block for module in unet.modules() if isinstance(module, Transformer) for block in module.blocks]
    resblocks = [module for module in unet.modules() if isinstance(module, ResBlock)]
    for unit in [*blocks, *resblocks]:
        unit.register_forward_pre_hook(lambda module, args: calls.append(module))
    for _ in range(2):
        calls.clear()
        unet.zero_grad()
        y = run(unet)
        y.square().mean().backward()
        results.append([y, *(parameter.grad for parameter in unet.parameters())])
        unet.enable_gradient_checkpointing()
    assert calls.count(blocks[-1]) == 1
    assert {calls.count(unit) for unit in [*blocks[:-1], *resblocks]} == {2}
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("family", ["lvdm", "videocrafter"])
def test_training_from_scratch_starts_at_zero_and_reaches_every_parameter(family):
    torch.manual_seed(0)
    unet = build_backbone(family, SMALL | {"use_relative_position": True})
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.5)
    target = rebuild.inputs("target", (2, 4, 4, 4, 4))
    for step in range(6):
        y = run(unet)
        if step == 0:
            assert y.abs().max() == 0
        optimizer.zero_grad()
        (y - target).square().mean().backward()
        optimizer.step()
    assert [name for name, parameter in unet.named_parameters() if parameter.grad.abs().max() == 0] == []


@torch.no_grad()
def test_frames_beyond_the_relative_positions_share_the_farthest():
    """As in the published code, which check_input keeps a pipeline from relying on."""
    near = small("lvdm", use_relative_position=True)
    far = small("lvdm", use_relative_position=True, temporal_length=9)
    distances = torch.arange(-9, 10).clamp(-4, 4) + 4
    state = {n: v[distances] if "embeddings_table" in n else v for n, v in near.state_dict().items()}
    far.load_state_dict(state)
    torch.testing.assert_close(run(near, frames=8), run(far, frames=8))
    near.check_input((1, 4, 4, 4, 4))
    with pytest.raises(ConfigError, match=r"8 frames are too many.*tell 4 frames apart"):
        near.check_input((1, 4, 8, 4, 4))
    small("lvdm").check_input((1, 4, 99, 4, 4))


@pytest.mark.parametrize("size, ok", [((4, 6), True), ((5, 4), False), ((4, 7), False)])
def test_sizes_that_the_levels_do_not_divide(size, ok):
    unet = small("videocrafter")
    if ok:
        unet.check_input((1, 4, 4, *size))
        return
    for check in (lambda: unet.check_input((1, 4, 4, *size)), lambda: run(unet, size=size)):
        with pytest.raises(ConfigError, match=f"{size[0]}x{size[1]} must be a multiple of 2"):
            check()


def test_wrong_channels():
    with pytest.raises(ConfigError, match=r"\(batch, 4, frames, height, width\), got \(1, 3, 4, 4, 4\)"):
        small("lvdm").check_input((1, 3, 4, 4, 4))


@pytest.mark.parametrize("name", rebuild.option_figures())
@torch.no_grad()
def test_published_numbers_of_options(name):
    """What the text-to-video models leave at its default: unconditional models, labels, causal attention and more."""
    figure, expected = rebuild.option_figures()[name]
    unet = build_backbone(figure["family"], figure["unet"]).eval()
    unet.load_state_dict(convert_unet(figure["family"], rebuild.weights_for(figure["state_dict"])))
    context = None if figure["context"] is None else rebuild.inputs("context", figure["context"])
    conditions = {name: torch.tensor(figure[name]) for name in ("fps", "y") if figure[name] is not None}
    y = unet(rebuild.inputs("x", figure["x"]), torch.tensor(figure["timesteps"]), context, **conditions)
    torch.testing.assert_close(y, torch.from_numpy(expected), atol=3e-5, rtol=0)


@torch.no_grad()
def test_stored_form_of_projections_does_not_matter():
    """`use_linear: false` stores spatial transformers' projections as 2-D, temporal ones' as 1-D convolutions."""
    figure, expected = rebuild.figure("videocrafter1_t2v_tiny")
    state = rebuild.weights_for(figure["state_dict"])
    for name in state:
        if name.endswith(("proj_in.weight", "proj_out.weight")) and state[name].ndim == 2:
            state[name] = state[name][..., None] if ".2.proj" in name else state[name][..., None, None]
    unet = build_backbone("videocrafter", figure["unet"] | {"use_linear": False}).eval()
    unet.load_state_dict(convert_unet("videocrafter", state))
    x, context = rebuild.inputs("x", figure["x"]), rebuild.inputs("context", figure["context"])
    y = unet(x, torch.tensor(figure["timesteps"]), context)
    torch.testing.assert_close(y, torch.from_numpy(expected["y"]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_frame_rate():
    unet = small("videocrafter", fps_cond=True)
    slow, fast = run(unet, fps=8), run(unet, fps=torch.tensor([8, 24]))
    torch.testing.assert_close(slow[0], fast[0])
    assert (slow[1] - fast[1]).abs().max() > 1e-3
    assert run(unet).equal(run(unet, fps=16))
    assert run(small("videocrafter")).equal(run(small("videocrafter"), fps=8))


@torch.no_grad()
def test_labels():
    unet = small("lvdm", num_classes=3)
    one, other = run(unet, y=torch.tensor([0, 0])), run(unet, y=torch.tensor([0, 2]))
    torch.testing.assert_close(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 1e-3
    assert not run(unet).allclose(one)
    with pytest.raises(ConfigError, match="no num_classes"):
        run(small("lvdm"), y=torch.tensor([0, 0]))


@pytest.mark.parametrize("family", ["lvdm", "videocrafter"])
def test_branches_of_guidance_share_what_comes_before_the_context(family):
    unet = small(family)
    torch.manual_seed(0)
    with torch.no_grad():
        x, t = torch.randn(2, 4, 4, 4, 4), torch.tensor([3, 700])
        context = torch.randn(6, 80, unet.params.context_dim)
        seen = []
        hooks = [block.register_forward_hook(lambda m, args, out: seen.append(len(out))) for block in unet.input_blocks]
        found = unet(x, t, context)
        for hook in hooks:
            hook.remove()
        expected = unet(x.repeat(3, 1, 1, 1, 1), t.repeat(3), context)
    assert seen[0] == 2 and seen[-1] == 6  # the first convolution knows no context, the last stage does
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["lvdm", "videocrafter"])
@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(family):
    unet = small(family, use_relative_position=True)
    x, t, context = rebuild.inputs("x", (2, 4, 4, 4, 4)), torch.tensor([10, 11]), rebuild.inputs("context", (2, 80, 12))
    torch.testing.assert_close(unet(x[1:], t[1:], context[1:]), unet(x, t, context)[1:])


@pytest.mark.parametrize("family", ["lvdm", "videocrafter"])
@torch.no_grad()
def test_bfloat16_weights_take_and_return_float32(family):
    unet = small(family, use_relative_position=True)
    exact = run(unet)
    rough = run(unet.bfloat16())
    assert rough.dtype == torch.float32
    assert (rough - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize("family", ["lvdm", "videocrafter"])
@torch.no_grad()
def test_channels_last_weights_change_nothing(family):
    options = {"use_relative_position": True, "channel_mult": [1], "attention_resolutions": [1]}
    expected = run(small(family, **options))
    unet = small(family, **options).to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(unet), expected)


@pytest.mark.parametrize(
    "family, block, count",
    [("lvdm", SpatioTemporalBlock, 4), ("videocrafter", TemporalBlock, 4)],
)
@torch.no_grad()
def test_extensible_blocks_can_be_wrapped(family, block, count):
    """One for each attention layer, but none for `init_attn`; a wrapper sees tokens and the size."""

    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens, context=None, *, size):
            out = self.inner(tokens, context, size=size)
            seen.append((tuple(out.shape), tuple(size)))
            return out

    unet, seen = small(family, **({"addition_attention": True} if family == "videocrafter" else {})), []
    before = run(unet, size=(4, 6))
    blocks = {block.name: block.module for block in unet.extensible_blocks()}
    assert len(blocks) == count and all(type(inner) is block for inner in blocks.values())
    for name, inner in blocks.items():
        unet.set_submodule(name, Wrapper(inner))
    assert run(unet, size=(4, 6)).equal(before)
    assert seen == [((2, 4, 6, 64), (2, 3))] * count


def test_no_extensible_blocks_without_attention_over_time():
    assert not small("videocrafter", temporal_attention=False).extensible_blocks()


@pytest.mark.parametrize(
    "family, options, idle",
    [
        ("lvdm", {}, {"num_heads_upsample": 4, "image_size": 32}),
        ("videocrafter", {"temporal_selfatt_only": False}, {"use_causal_attention": True}),
    ],
)
@torch.no_grad()
def test_parameters_without_effect_as_in_the_published_code(family, options, idle):
    assert run(small(family, **options, **idle)).equal(run(small(family, **options)))


REJECTED = {
    "misspelt": ("lvdm", {"use_relative_positions": True}, "did you mean 'use_relative_position'"),
    "of the other family": ("lvdm", {"fps_cond": True}, "unknown key 'fps_cond'"),
    "missing": ("lvdm", {"channel_mult": [2, 4]}, "must start with 1"),
    "type": ("lvdm", {"num_res_blocks": "two"}, "num_res_blocks must be an integer"),
    "heads": ("lvdm", {"num_head_channels": -1}, "num_heads or num_head_channels"),
    "narrow": ("lvdm", {"num_head_channels": 128}, "too few"),
    "groups": ("lvdm", {"model_channels": 48}, "multiple of 32"),
    "half": ("videocrafter", {"use_fp16": True}, "use_fp16"),
    "dims": ("videocrafter", {"dims": 3}, "dims must be one of 2"),
    "padding": ("lvdm", {"kernel_size_t": 1, "padding_t": 1}, "changes the frame count"),
    "no context": ("lvdm", {"context_dim": None, "use_temporal_transformer": True}, "need each other"),
    "no length": ("lvdm", {"temporal_length": None, "use_relative_position": True}, "needs? temporal_length"),
    "no length either": ("videocrafter", {"temporal_length": None}, "need temporal_length"),
    "no text": ("videocrafter", {"context_dim": None}, "context_dim is missing"),
    "heads of no whole width": (
        "lvdm",
        {"num_head_channels": -1, "num_heads": 24, "context_dim": None},
        "64 channels do not divide into 24 heads of 2",
    ),
    "first": (
        "videocrafter",
        {"addition_attention": True, "num_head_channels": -1, "num_heads": 2},
        "num_head_channels",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_parameters_that_cannot_work(case):
    family, options, message = REJECTED[case]
    with pytest.raises(ConfigError, match=message):
        build_backbone(family, SMALL | options)


def test_unknown_family_and_missing_parameter():
    with pytest.raises(ConfigError, match=r"'vlc'.*lvdm, videocrafter"):
        build_backbone("vlc", SMALL)
    with pytest.raises(ConfigError, match="missing key 'in_channels'"):
        build_backbone("lvdm", {key: value for key, value in SMALL.items() if key != "in_channels"})


@pytest.mark.parametrize("family", ["lvdm", "videocrafter"])
@pytest.mark.parametrize("context, got", [(None, "none"), (torch.zeros(1, 7, 13), r"\(1, 7, 13\)")])
def test_missing_or_ill_shaped_context(family, context, got):
    with pytest.raises(ConfigError, match=rf"context of shape \(batch, tokens, 12\), got {got}"):
        small(family)(torch.zeros(1, 4, 4, 4, 4), torch.tensor([1]), context)
