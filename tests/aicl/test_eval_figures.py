from pathlib import Path

import pytest
import torch

from aicl import ActionPrism, AICLPipeline, IntegrationConfig, PrismConfig, integrate
from aicl.evaluation.figures import (
    attention_sheet,
    feature_sheet,
    generated_feature_sheet,
    principal_colours,
    recorded_attention,
    recorded_features,
    sample_video,
    text_attentions,
    token_positions,
)
from lvdm import config as configs
from lvdm.errors import ConfigError
from lvdm.models.components import ModelConfig, build_components
from lvdm.pipeline import VideoPipeline
from tests.aicl.tiny_models import randomise

MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"
PROMPT = "a red person walks"


@pytest.fixture(scope="module", params=["tiny_lvdm", "tiny_videocrafter"])
def pipe(request) -> AICLPipeline:
    torch.manual_seed(0)
    config = configs.from_mapping(ModelConfig, configs.load(MODELS / f"{request.param}.yaml"))
    components = build_components(config).eval()
    randomise(components.unet, seed=0)
    prism = ActionPrism(PrismConfig(context_dim=32, width=16, depth=1, heads=2, head_dim=8, text_width=10))
    integrated = integrate(components.unet, IntegrationConfig(head_dim=16))
    for seed, module in enumerate((prism, integrated.blocks), 1):
        randomise(module, seed)
    return AICLPipeline(VideoPipeline(components, config), prism, integrated)


def clip(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_principal_colours_find_what_varies():
    across = torch.linspace(-1, 1, 11).expand(2, 3, 1, 5, 11)
    features = torch.cat([0.1 * across.flip(3), 7 + 5 * across, 0 * across, -3 * across], 2)
    colours = principal_colours(features)
    assert colours.shape == (2, 3, 5, 11, 3) and colours.min() == 0 and colours.max() == 1
    first = colours[0, 0, 0, :, 0]
    assert (first.diff() > 0).all() or (first.diff() < 0).all()
    assert principal_colours(torch.randn(2, 3, 2, 4, 4)).shape[-1] == 3  # fewer channels than colours


def test_tokens_of_words_are_found_where_they_stand(pipe):
    assert token_positions(pipe, PROMPT, "person walks") == [3, 4]
    pieces = token_positions(pipe, "a person flooming", "flooming")  # spelled in pieces of two letters
    assert pieces == [3, 4, 5, 6]
    for words in ("waves", ""):
        with pytest.raises(ConfigError, match="does not hold"):
            token_positions(pipe, PROMPT, words)


def test_recorded_attention_is_that_of_the_layers(pipe):
    """All tokens together get a weight of 1; what is generated does not change, and no hook stays behind."""
    count = pipe.base.components.text.config.context_length
    with recorded_attention(pipe, range(count)) as record:
        recorded = pipe(PROMPT, num_inference_steps=2, progress=False)
    torch.testing.assert_close(record.mean((4, 16, 16)), torch.ones(4, 16, 16), rtol=1e-4, atol=1e-4)
    assert torch.equal(recorded, pipe(PROMPT, num_inference_steps=2, progress=False))
    assert text_attentions(pipe.base.components.unet)
    assert not any(layer._forward_pre_hooks for layer in text_attentions(pipe.base.components.unet))


def test_what_is_recorded_is_not_replayed_as_graphs(pipe):
    """Preset rows ask for graphs, which call no hooks; a pipeline of its own may take them by itself."""
    before = pipe.base.acceleration
    pipe.accelerate("graphs")
    graphs = pipe.base.acceleration
    for recording in (recorded_features(pipe), recorded_attention(pipe, [1])):
        with pytest.raises(KeyError), recording:
            assert pipe.base.acceleration.mode == "none"
            raise KeyError
        assert pipe.base.acceleration is graphs
    pipe.base.acceleration = before


def test_recorded_features_are_the_decoders_at_the_step_asked_for(pipe):
    """Each call's features are compared with those that a hook of the test sees, and no hook stays behind."""
    unet = pipe.base.components.unet
    blocks, seen, times = unet.extensible_blocks(), [], []
    block = blocks[3 * len(blocks) // 4]
    assert block.name.startswith("output_blocks.")  # in the decoder
    hooks = [
        block.module.register_forward_hook(lambda module, args, tokens: seen.append(tokens[-1])),
        unet.register_forward_pre_hook(lambda module, args: times.append(float(args[1][-1]))),
    ]
    for noise in (1.0, 0.4, 0.0):
        seen.clear(), times.clear()
        with recorded_features(pipe, noise) as record:
            recorded = pipe(PROMPT, references=[clip(0)], num_inference_steps=4, progress=False)
        nearest = min(range(len(times)), key=lambda i: abs(times[i] - noise * 999))
        grid = record.features()
        assert torch.equal(grid.movedim(1, -1).flatten(1, 2), seen[nearest])
        assert grid.shape[0] == 4 and grid.shape[2] == grid.shape[3]
    for hook in hooks:
        hook.remove()
    assert times == sorted(times, reverse=True) and len(times) == 4
    with recorded_features(pipe) as record, pytest.raises(ConfigError, match="was not called"):
        record.features()
    assert torch.equal(recorded, pipe(PROMPT, references=[clip(0)], num_inference_steps=4, progress=False))
    assert not unet._forward_pre_hooks or len(unet._forward_pre_hooks) == 1  # the integration's own


def test_features_of_a_generated_video_are_those_that_aicl_changed(pipe):
    plain, shown = (recorded(pipe, references) for references in ((), [clip(0)]))
    torch.testing.assert_close(plain, recorded(pipe, ()))
    assert not torch.allclose(plain, shown)


def recorded(pipe, references):
    with recorded_features(pipe) as record:
        pipe(PROMPT, references=references, num_inference_steps=2, progress=False)
    return record.features()


def test_sheets_show_all_rows(pipe):
    sheet = feature_sheet(pipe, [clip(0), clip(1)], [PROMPT, PROMPT], ["one", "two"], frames=3)
    other = attention_sheet(pipe, PROMPT, "walks", [clip(0)], num_inference_steps=1, frames=3)
    made = generated_feature_sheet(pipe, PROMPT, [clip(0)], num_inference_steps=2, frames=3)
    for image, rows in ((sheet, 4), (other, 4), (made, 5)):
        assert image.width == 3 * 32 + 2 * 4 and image.height >= rows * 32


def test_samples_stand_in_a_grid_row_after_row():
    videos = [[torch.full((2, 8, 8, 3), 20 * i + j, dtype=torch.uint8) for j in range(3)] for i in range(3)]
    whole = sample_video(videos, [["a", "b", "c"]] * 3, height=16)
    alone = [sample_video([row], [["a", "b", "c"]], height=16, columns=1) for row in videos]
    _, height, width, _ = alone[0].shape
    assert whole.shape[:2] == (2, 2 * height) and whole.shape[2] >= 2 * width
    assert torch.equal(whole[:, :height, :width], alone[0]) and torch.equal(whole[:, :height, -width:], alone[1])
    assert torch.equal(whole[:, height:, :width], alone[2]) and (whole[:, height:, -width:] == 255).all()
