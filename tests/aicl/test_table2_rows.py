"""What docs/evaluation.md says of the rows of Table II: which of them differ from ours, and by what."""

import pytest
import torch

from aicl import PrismConfig
from aicl.action_prism import ActionPrism, build_prism
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
