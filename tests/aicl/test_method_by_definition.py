"""Equations 4 to 7 written out, token by token, against the modules that compute them."""

import math

import pytest
import torch
from torch import Tensor

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import PrismConfig, build_prism
from aicl.integrated_backbone import integrate
from tests.aicl.tiny_models import randomise, tiny_unet, unet_inputs

DOUBLE = torch.float64


def norm(layer, x: Tensor) -> Tensor:
    """LayerNorm of x (n, c)."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def linear(layer, x: Tensor) -> Tensor:
    out = x @ layer.weight.T
    return out if layer.bias is None else out + layer.bias


def projected(layer, x: Tensor) -> Tensor:
    """To queries, keys or values: without a bias, as attention of diffusion models has it."""
    assert layer.bias is None
    return x @ layer.weight.T


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def table(relative, query: int, key: int) -> Tensor:
    """The learned vector for the distance from a query to a key."""
    return relative.embeddings_table[
        max(-relative.max_relative, min(relative.max_relative, key - query)) + relative.max_relative
    ]


def turned(x: Tensor, row: int, column: int, base: float = 100.0) -> Tensor:
    """One head's query or key (d,), its pairs (i, i + d / 2) turned by angles of the row, then of the column."""
    quarter, half = len(x) // 4, len(x) // 2
    out = x.clone()
    for i in range(half):
        place, j = (row, i) if i < quarter else (column, i - quarter)
        angle = place * base ** (-j / quarter)
        a, b = x[i], x[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = a * math.sin(angle) + b * math.cos(angle)
    return out


def attention(q, k, v, heads, *, rel=None, places=None, key_frames=None, weights=None) -> Tensor:
    """q (n, c), k and v (m, c) -> (n, c). rel: tables of keys and values; places: (row, column) of every token, queries
    and keys alike; key_frames: the frame of each key, by default its number; weights: of each key."""
    out = torch.empty_like(q)
    for q_head, k_head, v_head, slot in zip(
        q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), out.chunk(heads, 1)
    ):
        d = q_head.shape[1]
        for i in range(len(q)):
            query = q_head[i] if places is None else turned(q_head[i], *places[i])
            scores, values = [], []
            for j in range(len(k)):
                frame = j if key_frames is None else key_frames[j]
                key = k_head[j] if places is None else turned(k_head[j], *places[j])
                if rel is not None:
                    key = key + table(rel[0], i, frame)
                scores.append((query @ key).exp() ** (1 / math.sqrt(d)) * (1.0 if weights is None else weights[j]))
                values.append(v_head[j] if rel is None else v_head[j] + table(rel[1], i, frame))
            slot[i] = sum(score * value for score, value in zip(scores, values)) / sum(scores)
    return out


def prism_attention(layer, x: Tensor, context: Tensor | None = None, places=None) -> Tensor:
    """A residual attention of the prism on one row of tokens (n, c)."""
    y = norm(layer.norm, x)
    context = y if context is None else context
    q, k, v = projected(layer.to_q, y), projected(layer.to_k, context), projected(layer.to_v, context)
    return x + linear(layer.to_out, attention(q, k, v, layer.heads, rel=layer.relative, places=places))


def prism_by_definition(prism, latents: Tensor, context: Tensor) -> Tensor:
    """Eq. 4-6 for latents (b, k, c, t, h, w) and context (b, k, tokens, d): R (b, k * t, channels, h, w)."""
    b, k, _, t, h, w = latents.shape
    out = torch.empty(b, k * t, prism.config.out_channels, h, w, dtype=DOUBLE)
    places = [(row, column) for row in range(h) for column in range(w)]
    for sample in range(b):
        for reference in range(k):
            first, _, second = prism.video_in
            pixels = latents[sample, reference].permute(1, 2, 3, 0)  # (t, h, w, c)
            video = linear(second, gelu(linear(first, pixels))).flatten(1, 2)  # (t, s, c)
            text = linear(prism.text_in, context[sample, reference])
            for block in prism.blocks:
                video = torch.stack([prism_attention(block.spatial_self, frame, places=places) for frame in video])
                video = torch.stack(
                    [prism_attention(block.temporal_self, video[:, place]) for place in range(h * w)], dim=1
                )
                video = torch.stack([prism_attention(block.spatial_cross, frame, text) for frame in video])
                layer_norm, expand, _, reduce = block.mlp
                video = video + linear(reduce, gelu(linear(expand, norm(layer_norm, video))))
            layer_norm, expand, _, work, _, reduce = prism.output
            made = linear(reduce, gelu(linear(work, gelu(linear(expand, norm(layer_norm, video))))))
            frames = made.unflatten(1, (h, w)).permute(0, 3, 1, 2)
            out[sample, reference * t : (reference + 1) * t] = frames
    return out


@torch.no_grad()
def test_the_prism_is_equations_4_to_6():
    sizes = {"width": 16, "depth": 2, "heads": 2, "head_dim": 8, "text_width": 10, "out_channels": 3}
    prism = build_prism(PrismConfig(in_channels=4, context_dim=12, max_relative_frames=2, **sizes)).double()
    randomise(prism, seed=0)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 2, 4, 4, 2, 3, generator=generator, dtype=DOUBLE)
    context = torch.randn(2, 2, 5, 12, generator=generator, dtype=DOUBLE)
    expected = prism_by_definition(prism, latents, context)
    # rotary positions are computed in float32
    torch.testing.assert_close(prism(latents, context), expected, rtol=1e-5, atol=1e-5)


def integration_by_definition(layer, tokens, features, frames, weights, size) -> Tensor:
    """CA' of eq. 7 for one sample: tokens (t, h*w, c), R (m, channels, H, W), `frames` the references' frame counts."""
    places = tokens.shape[1]
    rows, columns = features.shape[2] // size[0], features.shape[3] // size[1]  # cells of R in one cell of this level
    key_frames = [frame for count in frames for frame in range(count)]
    key_weights = [weight for count, weight in zip(frames, weights) for _ in range(count)]
    out = torch.empty_like(tokens)
    for place in range(places):
        row, column = divmod(place, size[1])
        patch = features[:, :, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
        r = patch.sum((2, 3)) / (rows * columns)  # (m, channels)
        q = projected(layer.to_q, norm(layer.norm, tokens[:, place]))
        k, v = projected(layer.to_k, r), projected(layer.to_v, r)
        read = attention(q, k, v, layer.heads, rel=layer.relative, key_frames=key_frames, weights=key_weights)
        out[:, place] = linear(layer.to_out, read)
    return out


@pytest.mark.parametrize("frames", [[5, 3], [4, 4]])  # of equal lengths they take another way
@pytest.mark.parametrize("positions", ["learned", "none"])
@torch.no_grad()
def test_the_integration_is_equation_7(positions, frames):
    config = IntegrationConfig(head_dim=16, max_relative_frames=2, temporal_positions=positions, feature_channels=3)
    integrated = integrate(tiny_unet("lvdm"), config)
    randomise(integrated.blocks, seed=3)
    layer = next(iter(integrated.blocks.values())).parts["temporal"].double()
    assert (layer.relative is None) == (positions == "none")
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(2, 4, 4 * 2, 32, generator=generator, dtype=DOUBLE)
    features = torch.randn(2, 8, 3, 8, 6, generator=generator, dtype=DOUBLE)
    weights = torch.tensor([[1.0, 3.0], [0.5, 0.0]], dtype=DOUBLE)
    context = integrated.reference_context(features, frames, weights)
    found = layer(tokens, features, context, (4, 2))
    for sample in range(2):
        arguments = (tokens[sample], features[sample], frames, weights[sample].tolist(), (4, 2))
        torch.testing.assert_close(found[sample], integration_by_definition(layer, *arguments))


@torch.no_grad()
def test_every_block_adds_what_it_reads_scaled():
    """x + scale * CA'(x, R): the first patched block's own output, and what leaves it."""
    integrated = integrate(tiny_unet("videocrafter"), IntegrationConfig(head_dim=16))
    randomise(integrated.blocks, seed=3)
    target, new = integrated.backbone.extensible_blocks()[0], next(iter(integrated.blocks.values()))
    seen = []
    target.module.register_forward_hook(lambda module, args, output: seen.append(output))  # after ours
    features = torch.randn(2, 4, 4, 8, 4, generator=torch.Generator().manual_seed(5))
    context = integrated.reference_context(features, 4, scale=0.25)
    integrated(*unet_inputs())
    integrated(*unet_inputs(), references=context)
    base, extended = seen
    update = new.parts["temporal"](base, features, context, (8, 4))
    torch.testing.assert_close(extended, base + 0.25 * update)
