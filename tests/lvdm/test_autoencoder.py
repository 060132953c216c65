"""The KL autoencoder: figures and layouts of the published one, every option, and the posterior."""

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersAutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from lvdm.checkpoints.text_layouts import convert_autoencoder
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.autoencoder import AutoencoderKL, DiagonalGaussian, LinearAttention
from tests.parity import rebuild

PUBLISHED = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
SMALL = PUBLISHED | {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "resolution": 32}


def build(**options) -> AutoencoderKL:
    """A small autoencoder with reproducible weights."""
    model = AutoencoderKL(SMALL | options).eval()
    model.load_state_dict(rebuild.weights_for({key: value.shape for key, value in model.state_dict().items()}))
    return model


@torch.no_grad()
def test_figures_of_the_published_autoencoder():
    parameters, expected = rebuild.figure("autoencoder_kl_tiny")
    model = AutoencoderKL(ddconfig=parameters["ddconfig"], embed_dim=parameters["embed_dim"]).eval()
    published = rebuild.weights_for(parameters["state_dict"])
    model.load_state_dict(convert_autoencoder(published), strict=True)
    posterior = model.encode(rebuild.inputs("frames", parameters["frames"]))
    for name, value in (
        ("mean", posterior.mean),
        ("logvar", posterior.logvar),
        ("decoded", model.decode(posterior.mean)),
    ):
        torch.testing.assert_close(value, torch.from_numpy(expected[name]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", rebuild.full_layouts())
def test_full_size_layout_is_the_published_one(model):
    layout = rebuild.full_layouts()[model]
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, shape in layout.items()}
        ours = AutoencoderKL(PUBLISHED, embed_dim=4).state_dict()
    converted = convert_autoencoder(published)
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in ours.items()}
    assert len(converted) == sum(key.startswith("first_stage_model.") for key in layout)


@torch.no_grad()
@pytest.mark.parametrize(("ch_mult", "blocks", "channels"), [((1, 2, 4), 2, 4), ((1, 1, 2, 2), 1, 3), ((1,), 1, 4)])
def test_other_sizes_agree_with_diffusers(ch_mult, blocks, channels):
    model = AutoencoderKL(SMALL | {"ch_mult": ch_mult, "num_res_blocks": blocks, "z_channels": channels}, channels)
    model.load_state_dict(rebuild.weights_for({key: value.shape for key, value in model.state_dict().items()}))
    config = {
        "block_out_channels": [32 * multiple for multiple in ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * len(ch_mult),
        "up_block_types": ["UpDecoderBlock2D"] * len(ch_mult),
        "layers_per_block": blocks,
        "latent_channels": channels,
    }
    other = DiffusersAutoencoderKL(**config)
    other.load_state_dict(convert_ldm_vae_checkpoint(model.state_dict(), config), strict=True)
    frames = rebuild.inputs("frames", (1, 3, 24, 40))
    posterior, expected = model.encode(frames), other.encode(frames).latent_dist
    torch.testing.assert_close(posterior.mean, expected.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(posterior.std, expected.std, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decode(posterior.mean), other.decode(posterior.mean).sample, rtol=0, atol=1e-4)


def test_attention_resolutions_put_attention_behind_every_block_of_a_level():
    layout = build(resolution=64, ch_mult=[1, 2, 2], attn_resolutions=[32, 16], num_res_blocks=2).state_dict()
    found = {key.removesuffix(".q.weight") for key in layout if key.endswith(".q.weight")}
    encoder = {f"encoder.down.{level}.attn.{block}" for level in (1, 2) for block in (0, 1)}
    decoder = {f"decoder.up.{level}.attn.{block}" for level in (1, 2) for block in (0, 1, 2)}
    assert found == encoder | decoder | {"encoder.mid.attn_1", "decoder.mid.attn_1"}


def test_attention_where_the_levels_do_not_divide_the_resolution():
    """As published, 30 halves to 15, 7 and 3 on the way down, and 3 doubles to 6, 12 and 24 on the way up."""
    layout = build(resolution=30, ch_mult=[1, 1, 2, 2], attn_resolutions=[15, 12]).state_dict()
    found = {key.split(".attn.")[0] for key in layout if ".attn." in key}
    assert found == {"encoder.down.1", "decoder.up.1"} and "decoder.up.1.attn.1.norm.weight" in layout
    layout = build(resolution=30, ch_mult=[1, 1, 2, 2], attn_resolutions=[30, 6]).state_dict()
    assert {key.split(".attn.")[0] for key in layout if ".attn." in key} == {"encoder.down.0", "decoder.up.2"}


@torch.no_grad()
def test_attention_of_a_level_is_what_the_middle_has():
    model, x = build(attn_resolutions=[32]), rebuild.inputs("x", (1, 32, 8, 8))
    level = model.encoder.down[0]
    attention = level.attn[0]
    h = attention.norm(level.block[0](x))
    q, k, v = (projection(h).flatten(2) for projection in (attention.q, attention.k, attention.v))
    mixed = v @ (q.transpose(1, 2) @ k / 32**0.5).softmax(-1).transpose(1, 2)
    expected = level.block[0](x) + attention.proj_out(mixed.unflatten(2, (8, 8)))
    torch.testing.assert_close(level(x), level.downsample(expected))


def test_first_level_may_widen_too():
    layout = build(ch_mult=[2, 4]).state_dict()
    assert layout["encoder.down.0.block.0.nin_shortcut.weight"].shape == (64, 32, 1, 1)
    assert layout["decoder.up.0.block.0.nin_shortcut.weight"].shape == (64, 128, 1, 1)
    assert layout["decoder.norm_out.weight"].shape == (64,)


@torch.no_grad()
@pytest.mark.parametrize("option", [{"attn_type": "linear"}, {"use_linear_attn": True}])
def test_linear_attention_by_its_definition(option):
    block = build(**option).encoder.mid.attn_1
    assert isinstance(block, LinearAttention)
    x = rebuild.inputs("x", (2, 64, 4, 6))
    q, k, v = block.to_qkv(x).reshape(2, 3, 64, 24).unbind(1)
    expected = torch.einsum("ndp,nep,ndm->nem", k.softmax(-1), v, q).reshape(2, 64, 4, 6)
    torch.testing.assert_close(block(x), block.to_out(expected))


@torch.no_grad()
def test_remaining_options():
    z = rebuild.inputs("x", (1, 4, 6, 8))
    assert not any("attn_1" in key for key in build(attn_type="none").state_dict())
    assert not any("sample.conv" in key for key in build(resamp_with_conv=False).state_dict())
    plain = build()
    torch.testing.assert_close(build(tanh_out=True).decode(z), plain.decode(z).tanh())
    features = build(give_pre_end=True).decode(z)
    assert features.shape == (1, 32, 12, 16)
    end = plain.decoder
    torch.testing.assert_close(end.conv_out(torch.nn.functional.silu(end.norm_out(features))), plain.decode(z))
    assert build(resamp_with_conv=False).encode(torch.zeros(1, 3, 12, 16)).mean.shape == (1, 4, 6, 8)


def test_dropout_acts_in_training_only():
    model, x = build(dropout=0.5), rebuild.inputs("frames", (1, 3, 16, 16))
    assert torch.equal(model.moments(x), build().moments(x))
    model.train()
    assert not torch.equal(model.moments(x), model.moments(x))


def test_gradients_reach_every_weight():
    model = build().train()
    reconstruction, posterior = model(rebuild.inputs("frames", (2, 3, 16, 16)), torch.Generator().manual_seed(0))
    (reconstruction.square().mean() + posterior.kl().mean()).backward()
    without = {name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0}
    # A bias of the keys shifts all scores of a query alike, which softmax ignores.
    assert without <= {"encoder.mid.attn_1.k.bias", "decoder.mid.attn_1.k.bias"}


@torch.no_grad()
def test_memory_format_and_precision():
    model, x = build(), rebuild.inputs("frames", (2, 3, 16, 24))
    expected = model.decode(model.encode(x).mean)
    model.to(memory_format=torch.channels_last)
    last = model.decode(model.encode(x.to(memory_format=torch.channels_last)).mean)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-4)
    model.to(torch.bfloat16)
    low = model.decode(model.encode(x.bfloat16()).mean)
    assert low.dtype == torch.bfloat16
    assert (low - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_posterior():
    moments = torch.cat([torch.randn(1, 4, 1, 3), torch.tensor([-31.0, 0.5, 21.0]).expand(1, 4, 1, 3)], dim=1)
    posterior = DiagonalGaussian.from_moments(moments)
    assert torch.equal(posterior.mean, moments[:, :4]) and posterior.mode() is posterior.mean
    assert posterior.logvar[0, 0, 0].tolist() == [-30.0, 0.5, 20.0]
    mild = DiagonalGaussian(torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2))
    normal = torch.distributions.Normal(mild.mean, mild.std)
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(mild.kl(), kl)
    many = DiagonalGaussian(torch.full((1, 1, 200, 200), 3.0), torch.full((1, 1, 200, 200), -2.0))
    sample = many.sample(torch.Generator().manual_seed(0))
    assert sample.mean().item() == pytest.approx(3.0, abs=0.01)
    assert sample.std().item() == pytest.approx(torch.tensor(-1.0).exp().item(), abs=0.01)


def test_a_generator_for_each_sample_makes_it_independent_of_its_batch():
    posterior = DiagonalGaussian(torch.zeros(3, 4, 2, 2), torch.zeros(3, 4, 2, 2))
    together = posterior.sample([torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    alone = DiagonalGaussian(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))
    assert torch.equal(together[1:2], alone.sample([torch.Generator().manual_seed(6)]))
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        posterior.sample([torch.Generator(), torch.Generator()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_resblocks": 2}, "unknown key 'num_resblocks' in ddconfig: did you mean 'num_res_blocks'?"),
        ({"double_z": False}, "double_z must be true"),
        ({"ch": 24}, "multiples of 32"),
        ({"ch_mult": []}, "at least one level"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1"),
        ({"attn_type": "axial"}, "attn_type"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        AutoencoderKL(SMALL | options)


def test_conversion_drops_what_training_left_and_refuses_other_files():
    published = {f"first_stage_model.{key}": value for key, value in build().state_dict().items()}
    extra = {"first_stage_model.loss.logvar": torch.zeros(()), "model.diffusion_model.out.2.bias": torch.zeros(4)}
    assert convert_autoencoder(published | extra).keys() == build().state_dict().keys()
    assert convert_autoencoder(build().state_dict()).keys() == build().state_dict().keys()
    with pytest.raises(CheckpointError, match="not the weights of a published autoencoder"):
        convert_autoencoder({"model.diffusion_model.out.2.bias": torch.zeros(4)})
