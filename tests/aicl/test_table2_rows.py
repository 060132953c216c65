"""What docs/evaluation.md says of the rows of Table II: which of them differ from ours, and by what."""

import pytest
import torch

from aicl import IntegrationConfig, PrismConfig
from aicl.action_prism import ActionPrism, build_prism
from aicl.integrated_backbone import check_fit
from aicl.integration_variants import TokenReferenceAttention
from aicl.reference_context import ReferenceContext
from lvdm.errors import ConfigError
from lvdm.models.attention import attend
from tests.aicl.tiny_models import randomise

SIZES = {"context_dim": 12, "width": 32, "depth": 2, "heads": 2, "head_dim": 16, "text_width": 24}
TOKENS = 7


def prism(**changes) -> ActionPrism:
    made = build_prism(PrismConfig(**SIZES, **changes)).eval()
    randomise(made, seed=1)
    return made


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 2, 4, 5, 4, 4, generator=generator), torch.randn(1, 2, TOKENS, 12, generator=generator)


@torch.no_grad()
def test_row_4_is_ours_but_for_a_bias_by_frame_and_word(inputs):
    """The difference is 0 where the temporal cross-attention has no positions: its keys, words, have no frames."""
    ours = prism(temporal_positions="none")
    row = prism(cross_attention="temporal", temporal_positions="none")
    renamed = {key.replace("spatial_cross", "temporal_cross"): value for key, value in ours.state_dict().items()}
    row.load_state_dict(renamed, strict=True)
    assert torch.equal(row(*inputs), ours(*inputs))

    learned = prism(cross_attention="temporal")
    extra = set(learned.state_dict()) - {key.replace("spatial_cross", "temporal_cross") for key in prism().state_dict()}
    assert extra and all("temporal_cross.relative" in key for key in extra)  # the bias is all that it has more


@torch.no_grad()
def test_row_5_is_ours_with_the_cross_attention_twice(inputs):
    """Without positions, its two cross-attentions can change their places."""
    row = prism(cross_attention="both", temporal_positions="none")
    swapped = prism(cross_attention="both", temporal_positions="none")
    exchange = {"spatial_cross": "temporal_cross", "temporal_cross": "spatial_cross"}
    state = {}
    for key, value in row.state_dict().items():
        part = next((name for name in exchange if name in key), None)
        state[key.replace(part, exchange[part]) if part else key] = value
    swapped.load_state_dict(state, strict=True)
    once = prism(temporal_positions="none")
    silent = {k: torch.zeros_like(v) if "temporal_cross.to_out" in k else v for k, v in row.state_dict().items()}
    once.load_state_dict({k: v for k, v in row.state_dict().items() if "temporal_cross" not in k}, strict=True)
    row.load_state_dict(silent)
    assert torch.equal(row(*inputs), once(*inputs))  # a second attention that says nothing leaves ours
    exchanged = {k: torch.zeros_like(v) if "spatial_cross.to_out" in k else v for k, v in swapped.state_dict().items()}
    swapped.load_state_dict(exchanged)
    assert torch.equal(swapped(*inputs), once(*inputs))  # and either of the two can be that one


@torch.no_grad()
def test_row_8_is_one_trunk_with_two_heads(inputs):
    """Its doubled input is one input whose first weights are added up, its two features two halves of one output."""
    row, trunk = prism(features=2), prism(out_channels=8)
    state = row.state_dict()
    weight = state["video_in.0.weight"]
    state["video_in.0.weight"] = weight[:, :4] + weight[:, 4:]
    trunk.load_state_dict(state, strict=True)
    torch.testing.assert_close(row(*inputs), trunk(*inputs))


@torch.no_grad()
def test_row_2_has_one_value_for_a_whole_frame(inputs):
    """The mean over all text tokens: R has no places, and the order of the tokens does not enter."""
    row, (latents, context) = prism(cross_attention="text_query"), inputs
    features = row(latents, context)
    assert features.shape == (1, 2 * 5, 4, 1, 1)
    torch.testing.assert_close(row(latents, context.flip(2)), features)


@torch.no_grad()
def test_row_2_unpooled_keeps_a_value_for_each_token(inputs):
    """Its mean over tokens is not that of pooled answers, since the output layers come after the mean."""
    row, (latents, context) = prism(cross_attention="text_query", pool_text=False), inputs
    features = row(latents, context)
    assert features.shape == (1, 2 * 5, 4, 1, TOKENS)
    torch.testing.assert_close(row(latents, context.flip(2)), features.flip(-1))
    pooled = prism(cross_attention="text_query")
    pooled.load_state_dict(row.state_dict(), strict=True)  # the same parameters, of another shape of R
    torch.testing.assert_close(pooled(latents, context[:, :, :1]), row(latents, context[:, :, :1]))


@torch.no_grad()
def test_tokens_are_read_with_their_frames_relative_positions_and_their_references_weights():
    """Against eq. 7's formula written out for one query; keys and values are kept without gradients."""
    frames, tokens, t, places, width = (3, 2), 4, 3, 6, 16
    layer = TokenReferenceAttention(width, IntegrationConfig(mode="tokens", head_dim=8, feature_channels=4))
    randomise(layer, seed=2)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, t, places, width, generator=generator)
    features = torch.randn(2, 5, 4, 1, tokens, generator=generator)
    context = ReferenceContext.build(features, frames, [1.0, 3.0])
    update = layer(x, features, context, (2, 3))
    b, i, place = 1, 2, 4
    q = layer.to_q(layer.norm(x[b, i, place])).view(1, 2, 1, 8)
    distances = [j - i for count in frames for j in range(count)]
    keys, values = (table.embeddings_table[[d + 16 for d in distances]] for table in layer.relative)  # (5, 8)
    r = features[b, :, :, 0].mT  # (5, tokens, 4)
    k, v = (
        (linear(r).view(5, tokens, 2, 8) + near[:, None, None]).flatten(0, 1).transpose(0, 1)[None]
        for linear, near in ((layer.to_k, keys), (layer.to_v, values))
    )
    bias = torch.tensor([1.0] * 3 * tokens + [3.0] * 2 * tokens).log()
    torch.testing.assert_close(update[b, i, place], layer.to_out(attend(q, k, v, bias=bias).flatten()))
    assert len(context.cache) == 1
    torch.testing.assert_close(layer(x, features, context, (2, 3)), update)


@torch.no_grad()
def test_row_8_with_two_prisms_shares_nothing(inputs):
    """Each half of R is what a prism of its own makes."""
    row = prism(features=2, separate_prisms=True)
    parts = [prism() for _ in range(2)]
    for number, part in enumerate(parts):
        start = f"prisms.{number}."
        state = {k.removeprefix(start): v for k, v in row.state_dict().items() if k.startswith(start)}
        part.load_state_dict(state, strict=True)
    assert torch.equal(row(*inputs), torch.cat([part(*inputs) for part in parts], dim=2))
    assert not torch.equal(parts[0](*inputs), parts[1](*inputs))
    assert len(row.blocks) == 2 * SIZES["depth"] and type(row.blocks[0]) is type(parts[0].blocks[0])


@pytest.mark.parametrize("changes", [{}, {"cross_attention": "text_query"}, {"features": 2, "separate_prisms": True}])
@torch.no_grad()
def test_a_centred_r_is_the_other_without_each_references_mean(inputs, changes):
    """The mean of each reference and channel, over its frames and places, and of no other reference."""
    plain, centred = prism(**changes), prism(**changes, centred=True)
    centred.load_state_dict(plain.state_dict(), strict=True)
    whole = plain(*inputs).unflatten(1, (2, 5))
    expected = (whole - whole.mean(dim=(2, 4, 5), keepdim=True)).flatten(1, 2)
    torch.testing.assert_close(centred(*inputs), expected)
    alone = centred(inputs[0][:, 1:], inputs[1][:, 1:])
    torch.testing.assert_close(alone, expected[:, 5:])


@pytest.mark.parametrize(
    ("prism_changes", "integration_changes", "words"),
    [
        ({"cross_attention": "text_query", "pool_text": False}, {}, "integration.mode: tokens"),
        ({}, {"mode": "tokens"}, "integration.mode: tokens"),
        ({"features": 2}, {}, "8 channels"),
    ],
)
def test_a_prism_and_an_integration_that_do_not_fit_are_refused(prism_changes, integration_changes, words):
    with pytest.raises(ConfigError, match=words):
        check_fit(PrismConfig(**SIZES, **prism_changes), IntegrationConfig(**integration_changes))


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(ConfigError, match="text_query"):
        PrismConfig(pool_text=False)
    with pytest.raises(ConfigError, match="features: 2"):
        PrismConfig(separate_prisms=True)
