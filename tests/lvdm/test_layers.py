"""Channels-last layers and attention blocks against the published formulas, written channels first."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lvdm.models import layers
from lvdm.models.layers import Downsample, FeedForward, GroupNorm, Upsample, conv, timestep_embedding
from lvdm.models.transformers import ContextFreeAttention, TemporalBlock
from tests.parity.rebuild import weights_for


def randomised(module):
    module.load_state_dict(weights_for({name: value.shape for name, value in module.state_dict().items()}))
    return module.double()


def channels_first(x):
    return x.permute(0, 4, 1, 2, 3)


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 4, 6, 64, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("frames, size, stride", [(1, 3, 1), (1, 3, 2), (3, 1, 1), (3, 3, 1), (3, 3, 2)])
def test_every_convolution_is_a_3d_one(x, frames, size, stride):
    layer = randomised(conv(64, 8, frames, size, stride))
    weight = layer.weight.reshape(8, 64, frames, size, size)
    padding = (frames // 2, size // 2, size // 2)
    expected = F.conv3d(channels_first(x), weight, layer.bias, (1, stride, stride), padding)
    torch.testing.assert_close(channels_first(layer(x)), expected)


def test_group_norm_shares_statistics_as_told(x):
    video, frame = (randomised(GroupNorm(64, rows)) for rows in (1, 2))
    x = x * torch.arange(1, 4)[:, None, None, None]  # frames differ in scale
    expected = F.group_norm(channels_first(x), 32, video.weight, video.bias)
    torch.testing.assert_close(channels_first(video(x)), expected)
    for t in range(3):
        expected = F.group_norm(channels_first(x)[:, :, t], 32, frame.weight, frame.bias)
        torch.testing.assert_close(channels_first(frame(x))[:, :, t], expected)


def test_resampling(x):
    down, up = Downsample(64, learned=False)(x), Upsample(64, learned=False)(x)
    torch.testing.assert_close(channels_first(down), F.avg_pool3d(channels_first(x), (1, 2, 2)))
    torch.testing.assert_close(channels_first(up), F.interpolate(channels_first(x), scale_factor=(1, 2, 2)))


def test_timestep_embedding():
    out = timestep_embedding(torch.tensor([0, 1, 500]), 7)
    assert out.shape == (3, 7)
    assert out[0].tolist() == [1, 1, 1, 0, 0, 0, 0]
    angle = torch.tensor(500 * 10_000 ** (-2 / 3))  # the last of three frequencies
    torch.testing.assert_close(out[2, [2, 5]], torch.stack([angle.cos(), angle.sin()]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("max_relative", [None, 2])
def test_attention_without_context(x, max_relative):
    """The published form: heads folded into rows, keys and queries each scaled by the root of the scale, and the
    relative scores added with query and key frames exchanged."""
    layer, d = randomised(ContextFreeAttention(64, 4, max_relative)), 16

    def attention(rows, norm, qkv, relative):  # rows (n, c, length)
        normed = F.group_norm(rows, 32, norm.weight, norm.bias)
        q, k, v = F.conv1d(normed, qkv.weight[..., None], qkv.bias).chunk(3, dim=1)
        q, k, v = (part.reshape(-1, d, rows.shape[2]) for part in (q * d**-0.25, k * d**-0.25, v))
        weight = torch.einsum("bct,bcs->bts", q, k)
        if relative is not None:
            weight = weight + torch.einsum("bct,tsc->bst", q, relative[0])
        weight = weight.softmax(-1)
        out = torch.einsum("bts,bcs->bct", weight, v)
        if relative is not None:
            out = out + torch.einsum("bts,tsc->bct", weight, relative[1])
        return out.reshape(rows.shape)

    b, t, h, w, c = x.shape
    frames = x.flatten(0, 1).flatten(1, 2).transpose(1, 2)  # (b*t, c, h*w)
    out = attention(frames, layer.norm_s, layer.qkv_s, None)
    frames = frames + F.conv1d(out, layer.proj_out_s.weight[..., None], layer.proj_out_s.bias)
    rows = frames.view(b, t, c, h * w).permute(0, 3, 2, 1).flatten(0, 1)  # (b*h*w, c, t)
    relative = None
    if max_relative is not None:
        relative = layer.relative_position_k(t, t), layer.relative_position_v(t, t)
    out = attention(rows, layer.norm_t, layer.qkv_t, relative)
    rows = rows + F.conv1d(out, layer.proj_out_t.weight[..., None], layer.proj_out_t.bias)
    torch.testing.assert_close(layer(x), rows.view(b, h, w, c, t).permute(0, 4, 1, 2, 3))


def test_causal_attention_never_looks_ahead(x):
    block = randomised(TemporalBlock(64, 4, 16, None, max_relative=3, causal=True))
    tokens = x.flatten(2, 3)
    changed = tokens.clone()
    changed[:, 2] += 1
    before, after = block(tokens, size=(4, 6)), block(changed, size=(4, 6))
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert (before[:, 2] - after[:, 2]).abs().min() > 0


@pytest.mark.parametrize("max_relative", [None, 3])
def test_temporal_attention_to_the_text(x, max_relative):
    """Each position's frames are the queries, its sample's text the keys, at distances from frame to token number."""
    block = randomised(TemporalBlock(64, 4, 16, 12, max_relative, causal=False))
    context = torch.randn(2, 9, 12, dtype=torch.float64)
    out = block(x.flatten(2, 3), context, size=(4, 6))
    for sample, position in ((0, 0), (1, 17)):
        rows = x.flatten(2, 3)[sample, :, position][None]
        rows = rows + block.attn1(block.norm1(rows))
        rows = rows + block.attn2(block.norm2(rows), context[sample][None])
        rows = rows + block.ff(block.norm3(rows))
        torch.testing.assert_close(out[sample, :, position], rows[0])


@pytest.mark.parametrize("width", [96, 192])
def test_the_feed_forward_in_one_pass_is_the_plain_one_up_to_rounding(width):
    torch.manual_seed(0)
    layer, x = FeedForward(width), torch.randn(2, 3, 40, width)
    assert not layers._plain_on_cpu(x, layer.proj_in.weight)  # gradients are asked
    expected = layer(x)
    with torch.no_grad():
        assert layers._plain_on_cpu(x, layer.proj_in.weight) == torch.backends.mkldnn.is_available()
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
        assert layer.double()(x.double()).dtype == torch.float64


def test_doubling_with_its_convolution_is_one_of_four_taps_up_to_rounding():
    torch.manual_seed(0)
    layer, x = Upsample(8, learned=True), torch.randn(2, 3, 5, 4, 8)
    expected = layer(x)  # with gradients: repeated pixels, then the convolution
    with torch.no_grad():
        found = layer(x)
    assert found.shape == (2, 3, 10, 8, 8)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_recomputed_draws_the_same_dropout():
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5)), torch.randn(4, 8, requires_grad=True)
    y = layers.checkpointed(layer, True, x)
    torch.rand(3)  # numbers drawn meanwhile
    (gradient,) = torch.autograd.grad(y.sum(), x)
    kept = (y != 0).to(y.dtype) * 2
    torch.testing.assert_close(gradient, kept @ layer[0].weight)
    state = torch.get_rng_state()
    layers.checkpointed(layer.eval(), True, x).sum().backward()
    torch.testing.assert_close(x.grad, layer[0].weight.sum(0).expand(4, 8))
    assert torch.equal(torch.get_rng_state(), state)
