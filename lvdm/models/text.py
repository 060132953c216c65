"""Text encoders: prompts to context tokens for the UNet's cross-attention.

One class for all: OpenCLIP ViT-H/14 (VideoCrafter), CLIP ViT-L/14 (LVDM), and small encoders trained along with a UNet.
The transformer is open_clip's, built directly: nothing is ever downloaded, weights come from checkpoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lvdm.errors import ConfigError
from lvdm.models.tokenizer import CLIPTokenizer, WordTokenizer
from lvdm.outside import hinted, read_json
from lvdm.sizes import check_sizes


@dataclass
class TextConfig:
    """Size and habits of a text encoder.

    `output`: "last" for the features after all `layers` blocks, "penultimate" for those after all but the last; the
    final LayerNorm follows in both. `tokenizer`: "clip", a list of words, or the path of a JSON file with such a list
    (read at once, so that a saved configuration needs no other file). `pad`: what fills up a CLIP prompt, see
    `CLIPTokenizer`. `vocab_size`: None for the tokenizer's.
    """

    width: int
    layers: int
    heads: int
    context_length: int = 77
    vocab_size: int | None = None
    output: Literal["last", "penultimate"] = "last"
    act: Literal["gelu", "quick_gelu"] = "gelu"
    tokenizer: str | list[str] = "clip"
    pad: Literal["zero", "end"] = "zero"

    def __post_init__(self) -> None:
        check_sizes(self, "text", limit=2**20)  # of which only a vocabulary is so large
        if self.width % self.heads:
            raise ConfigError(f"text.width {self.width} must be a multiple of text.heads {self.heads}")
        if self.layers < 1 + (self.output == "penultimate"):
            raise ConfigError(f"text.layers is {self.layers}: too few for {self.output} features")
        if self.context_length < 2:
            raise ConfigError("text.context_length must be at least 2, for the start and end tokens")
        if isinstance(self.tokenizer, str) and self.tokenizer != "clip":
            self.tokenizer = _read_words(self.tokenizer)
        if isinstance(self.tokenizer, list) and self.pad == "end":
            raise ConfigError("text.pad 'end' is for the CLIP tokenizer only")

    @classmethod
    def openclip_vit_h_14(cls) -> "TextConfig":
        """What VideoCrafter 1 and 2 use: 1024 wide, penultimate features."""
        return cls(width=1024, layers=24, heads=16, output="penultimate")

    @classmethod
    def clip_vit_l_14(cls) -> "TextConfig":
        """What LVDM uses: 768 wide, last features, padded with end tokens."""
        return cls(width=768, layers=12, heads=12, act="quick_gelu", pad="end")

    @classmethod
    def small(
        cls, words: Sequence[str] | str, width: int = 128, layers: int = 4, heads: int = 4, context_length: int = 24
    ) -> "TextConfig":
        """An encoder to be trained with a UNet, over `words` (a list, or the path of a JSON list)."""
        tokenizer = words if isinstance(words, str) else list(words)
        return cls(width, layers, heads, context_length, tokenizer=tokenizer)

    def build_tokenizer(self) -> CLIPTokenizer | WordTokenizer:
        """CLIP's tokenizer, or one of the config's own words. Raises ConfigError for a file of them that is none."""
        if self.tokenizer == "clip":
            return CLIPTokenizer(self.context_length, self.pad)
        return WordTokenizer(self.tokenizer, self.context_length)


def _read_words(path: str) -> list[str]:
    with hinted("text.tokenizer must be 'clip', a list of words or a JSON file of them"):
        words = read_json(path, ConfigError)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{path} must hold a JSON list of words")
    return words


class TextEncoder(nn.Module):
    """Prompts to context: token ids (b, length) -> features (b, length, width), in the module's dtype.

    With penultimate features the last block would never be used, so it is not built: `config.layers` counts it,
    the state dict does not have it. The projection to CLIP's joint space is left out for the same reason.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        vocab_size = CLIPTokenizer.vocab_size if config.tokenizer == "clip" else self.tokenizer.vocab_size
        if config.vocab_size is not None and config.vocab_size < vocab_size:
            raise ConfigError(f"text.vocab_size {config.vocab_size} is less than the tokenizer's {vocab_size}")
        self.model = _build_transformer(config, config.vocab_size or vocab_size)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer | WordTokenizer:
        return self.config.build_tokenizer()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Prompts -> token ids, int64 (b, context_length), on the CPU. Too long a prompt is cut, with a warning."""
        if isinstance(texts, str):
            raise TypeError("give a list of prompts, not one string")
        return self.tokenizer(texts)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Prompts -> context (b, context_length, width). The empty prompt is a prompt like any other."""
        return self(self.tokenize(texts).to(self.model.positional_embedding.device, non_blocking=True))

    def ends(self, texts: Sequence[str], context: Tensor) -> Tensor:
        """Where each prompt ends in its context (b, tokens, width): the place (b,) of the end token, which has seen all
        others."""
        return self.tokenize(texts).argmax(dim=1)  # the first of the highest ids, which is that of the end token

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)


def _build_transformer(config: TextConfig, vocab_size: int) -> Any:
    from open_clip.transformer import QuickGELU, TextTransformer  # slow to import: only when an encoder is built

    model = TextTransformer(
        context_length=config.context_length,
        vocab_size=vocab_size,
        width=config.width,
        heads=config.heads,
        layers=config.layers - (config.output == "penultimate"),
        output_dim=None,
        pool_type="none",  # the features of all tokens
        act_layer=QuickGELU if config.act == "quick_gelu" else nn.GELU,
    )
    # Not in any state dict, so it must hold its values even where the weights are built on the meta device.
    length = config.context_length
    mask = torch.full((length, length), float("-inf"), device="cpu").triu(1)
    model.register_buffer("attn_mask", mask, persistent=False)
    return model
