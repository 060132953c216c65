"""Text encoders against open_clip and transformers, their published layouts, and the tokenizers."""

import json
import socket

import open_clip
import pytest
import torch
import transformers
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import Transformer

from lvdm.checkpoints.text_layouts import convert_text
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.text import TextConfig, TextEncoder
from lvdm.models.tokenizer import CLIPTokenizer, WordTokenizer
from tests.parity import rebuild

WORDS = ["a", "cat", "runs", "it's", "3d"]
VOCABULARY = 764  # padding, 756 pieces, the five words, start and end
SMALL = {"width": 32, "layers": 3, "heads": 4, "context_length": 10, "tokenizer": WORDS}
PROMPTS = ["a cat runs", "", "zebra!"]


def shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


@pytest.fixture
def clip() -> CLIP:
    """open_clip's own model, with random weights."""
    torch.manual_seed(0)
    text = CLIPTextCfg(context_length=10, vocab_size=VOCABULARY, width=32, heads=4, layers=3)
    return CLIP(16, CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=7, image_size=14), text).eval()


def as_videocrafter(clip: CLIP) -> dict[str, torch.Tensor]:
    state = {key: value for key, value in clip.state_dict().items() if not key.startswith("visual.")}
    return {f"cond_stage_model.model.{key}": value for key, value in state.items()}


@torch.no_grad()
@pytest.mark.parametrize("output", ["penultimate", "last"])
@pytest.mark.parametrize("whole_clip", [False, True])
def test_features_are_those_inside_open_clip(clip, output, whole_clip):
    encoder = TextEncoder(TextConfig(**SMALL, output=output)).eval()
    published = clip.state_dict() if whole_clip else as_videocrafter(clip)
    encoder.load_state_dict(convert_text(published, output), strict=True)
    tokens, seen = encoder.tokenize(PROMPTS), []
    block = clip.transformer.resblocks[-1 if output == "last" else -2]
    hook = block.register_forward_hook(lambda module, inputs, result: seen.append(result))
    clip.encode_text(tokens)
    hook.remove()
    features = encoder(tokens)
    assert features.shape == (3, 10, 32)
    torch.testing.assert_close(features, clip.ln_final(seen[0]))


@torch.no_grad()
def test_penultimate_features_are_those_of_a_sequence_first_open_clip(clip):
    """Releases before 2.25, which the published models were trained with, ran (length, batch, width)."""
    transformer = Transformer(width=32, layers=3, heads=4, batch_first=False).eval()
    transformer.load_state_dict(clip.transformer.state_dict())
    encoder = TextEncoder(TextConfig(**SMALL, output="penultimate")).eval()
    encoder.load_state_dict(convert_text(as_videocrafter(clip)), strict=True)
    tokens = encoder.tokenize(PROMPTS)
    x = (clip.token_embedding(tokens) + clip.positional_embedding).transpose(0, 1)
    for block in transformer.resblocks[:-1]:
        x = block(x, attn_mask=clip.attn_mask)
    torch.testing.assert_close(encoder(tokens), clip.ln_final(x.transpose(0, 1)))


@torch.no_grad()
@pytest.mark.parametrize(
    "prefix", ["cond_stage_model.transformer.text_model.", "transformer.text_model.", "text_model."]
)
def test_features_are_those_of_transformers(prefix):
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=10,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=0,
    )
    assert config.hidden_act == "quick_gelu"
    other = transformers.CLIPTextModel(config).eval()
    # Weights large enough to tell the two activations apart; some releases prefix their names by themselves.
    layout = {key.removeprefix("text_model."): value.shape for key, value in other.state_dict().items()}
    weights = rebuild.weights_for({key: shape for key, shape in layout.items() if not key.endswith("position_ids")})
    own = {key: weights[key.removeprefix("text_model.")] for key in other.state_dict() if "position_ids" not in key}
    other.load_state_dict(own, strict=False)
    published = {f"{prefix}{key}": value for key, value in weights.items()}
    published[f"{prefix}embeddings.position_ids"] = torch.arange(10)[None]

    encoder = TextEncoder(TextConfig(**SMALL, act="quick_gelu")).eval()
    encoder.load_state_dict(convert_text(published), strict=True)
    tokens = encoder.tokenize(PROMPTS)
    expected = other(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(encoder(tokens), expected, rtol=0, atol=1e-4)
    gelu = TextEncoder(TextConfig(**SMALL, act="gelu")).eval()
    gelu.load_state_dict(encoder.state_dict())
    assert (gelu(tokens) - expected).abs().max() > 1e-3


OPENCLIP_UNUSED = {"cond_stage_model.model.text_projection", "cond_stage_model.model.logit_scale"}


@pytest.mark.parametrize("model", rebuild.full_layouts())
def test_full_size_layouts_are_the_published_ones(model):
    layout = {key: shape for key, shape in rebuild.full_layouts()[model].items() if key.startswith("cond_stage_model.")}
    config = TextConfig.clip_vit_l_14() if model.startswith("lvdm") else TextConfig.openclip_vit_h_14()
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, shape in layout.items()}
        encoder = TextEncoder(config)
    converted = convert_text(published)
    assert shapes(converted) == shapes(encoder.state_dict())
    if model.startswith("lvdm"):  # two of the three projections of queries, keys and values are joined into the first
        joined = 2 * 2 * config.layers
        assert len(converted) == len(layout) - joined - len({"position_ids"})
    else:
        last = {key for key in layout if ".resblocks.23." in key}
        assert len(last) == 12
        assert {f"cond_stage_model.{key}" for key in converted} == set(layout) - OPENCLIP_UNUSED - last


def test_what_is_not_known_is_kept_for_strict_loading_to_report(clip):
    odd = as_videocrafter(clip) | {"cond_stage_model.model.odd.weight": torch.zeros(1)}
    assert "model.odd.weight" in convert_text(odd)
    with pytest.raises(CheckpointError, match="published text encoder"):
        convert_text({"model.diffusion_model.out.2.bias": torch.zeros(4)})
    halved = {
        "transformer.text_model.embeddings.token_embedding.weight": torch.zeros(5, 4),
        "transformer.text_model.encoder.layers.0.self_attn.q_proj.bias": torch.zeros(4),
    }
    with pytest.raises(CheckpointError, match="in_proj_bias' cannot be joined without its k, v"):
        convert_text(halved)


@torch.no_grad()
def test_an_encoder_built_on_meta_works_once_its_weights_are_there():
    encoder = TextEncoder(TextConfig(**SMALL)).eval()
    with torch.device("meta"):
        other = TextEncoder(TextConfig(**SMALL)).eval()
    other.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    assert torch.equal(other.encode(PROMPTS), encoder.encode(PROMPTS))


@torch.no_grad()
def test_features_do_not_depend_on_later_tokens():
    encoder = TextEncoder(TextConfig(**SMALL)).eval()
    short, long = encoder.encode(["a cat", "a cat runs"])
    torch.testing.assert_close(short[:3], long[:3])
    assert not torch.allclose(short[3:], long[3:])


@torch.no_grad()
def test_precision_follows_the_module():
    encoder = TextEncoder(TextConfig(**SMALL)).eval()
    expected = encoder.encode(PROMPTS)
    low = encoder.to(torch.bfloat16).encode(PROMPTS)
    assert low.dtype == torch.bfloat16
    assert (low - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_small_encoder_trains_in_every_weight():
    encoder = TextEncoder(TextConfig.small(WORDS, width=32, layers=2, heads=4, context_length=8))
    encoder.encode(PROMPTS).mul(torch.randn(8, 32)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())


def test_building_never_asks_the_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("an encoder asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with torch.device("meta"):
        encoder = TextEncoder(TextConfig.clip_vit_l_14())
    assert encoder.tokenize(["a cat"]).shape == (1, 77)


def test_clip_tokens_are_open_clips():
    prompts = ["A cat's 3 kittens, running fast!", "", "naïve café &amp; crème", "  two   spaces\n"]
    assert torch.equal(CLIPTokenizer()(prompts), open_clip.tokenize(prompts))


def test_lvdm_tokens_are_those_of_transformers():
    bpe = open_clip.tokenizer.SimpleTokenizer()
    rename = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {rename.get(token, token): index for token, index in bpe.encoder.items()}
    other = transformers.CLIPTokenizer(vocab=vocabulary, merges=list(bpe.bpe_ranks))
    prompts = ["A cat's 3 kittens, running fast!", "", "a horse, jumping over the fence", "word " * 100]
    expected = other(prompts, truncation=True, max_length=77, padding="max_length", return_tensors="pt").input_ids
    with pytest.warns(UserWarning, match="a prompt of 100 tokens is cut after 75"):
        tokens = TextConfig.clip_vit_l_14().build_tokenizer()(prompts)
    assert torch.equal(tokens, expected)
    assert tokens[1].tolist() == [49406] + [49407] * 76


def test_words_have_ids_of_their_own_and_others_are_spelled():
    tokenizer = WordTokenizer(WORDS, context_length=8)
    assert tokenizer.vocab_size == VOCABULARY
    start, end = VOCABULARY - 2, VOCABULARY - 1
    rows = tokenizer(["A cat -- it\u2019s 3D.", "", "abc a_ a", "é9"]).tolist()
    assert rows[0] == [start, 757, 758, 760, 761, end, 0, 0]
    assert rows[1] == [start, end, 0, 0, 0, 0, 0, 0]
    a, b, c, other, nothing = 0, 1, 2, 26, 27
    piece = lambda first, second: 1 + 28 * first + second  # noqa: E731
    assert rows[2] == [start, piece(a, b), piece(c, nothing), 757, 757, end, 0, 0]
    assert rows[3] == [start, piece(other, other), end, 0, 0, 0, 0, 0]


def test_long_prompts_are_cut_with_a_warning():
    tokenizer = WordTokenizer(WORDS, context_length=4)
    with pytest.warns(UserWarning, match="a prompt of 3 tokens is cut after 2"):
        rows = tokenizer(["a cat runs", "a cat"])
    assert rows[0].tolist() == rows[1].tolist() == [762, 757, 758, 763]


@pytest.mark.parametrize("word", ["Cat", "two words", "stop.", "", "a_b"])
def test_a_listed_word_must_be_one_word(word):
    with pytest.raises(ConfigError, match="must be one word in lower case"):
        WordTokenizer([word])


def test_word_lists_come_from_files_too(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(WORDS))
    assert TextConfig.small(str(path)).tokenizer == WORDS
    path.write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="must hold a JSON list of words"):
        TextConfig.small(str(path))
    with pytest.raises(ConfigError, match=r"must be 'clip', a list of words or a JSON file"):
        TextConfig(width=8, layers=1, heads=1, tokenizer="bert")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30}, "text.width 30 must be a multiple of text.heads 4"),
        ({"layers": 1, "output": "penultimate"}, "too few for penultimate"),
        ({"context_length": 1}, "context_length"),
        ({"pad": "end"}, "for the CLIP tokenizer only"),
        ({"vocab_size": 500}, "text.vocab_size 500 is less than the tokenizer's 764"),
        ({"tokenizer": ["a", "a"]}, "'a' is listed twice"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        TextEncoder(TextConfig(**SMALL | options))


def test_one_string_is_not_a_list_of_prompts():
    with pytest.raises(TypeError, match="list of prompts"):
        TextEncoder(TextConfig(**SMALL)).encode("a cat")
