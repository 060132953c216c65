"""Prompts to token ids: CLIP's byte-pair encoding, and a small word list for small models.

Both give int64 (b, context_length): start token, the prompt, end token, padding. A prompt that is too long loses its
end, with a warning.
"""

import re
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lvdm.errors import ConfigError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
OTHER = "#"  # stands for every character that is not a letter


class CLIPTokenizer:
    """CLIP's lower-cased byte-pair encoding, with the vocabulary that ships inside open_clip.

    Args:
        context_length: length of every row.
        pad: "zero" fills with id 0 (OpenCLIP's own habit), "end" repeats the end token (Hugging Face's habit, and so
            LVDM's). It matters: the UNet attends to the padding too.
    """

    vocab_size = 49408

    def __init__(self, context_length: int = 77, pad: str = "zero") -> None:
        from open_clip.tokenizer import SimpleTokenizer  # slow to import; only encoders with this vocabulary pay for it

        self.context_length = context_length
        self._bpe = SimpleTokenizer(context_length=context_length)
        self.start, self.end = self._bpe.sot_token_id, self._bpe.eot_token_id
        self.pad = {"zero": 0, "end": self.end}[pad]

    def unknown_words(self, text: str) -> list[str]:
        """None: the vocabulary spells any word, and was learned from any words."""
        return []

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return _rows([self._bpe.encode(text) for text in texts], self)


class WordTokenizer:
    """Whole words of a given list; any other word is spelled in pieces of two characters.

    Text is lower-cased, and everything but letters, digits and apostrophes separates words. A piece is one of 27 first
    characters (a letter or "#", which is anything else) and one of 28 second ones (the same, or none at the end of a
    word of odd length). Ids: 0 padding, 1 to 756 pieces, then the words in the order given, then start and end.

    Raises ConfigError for a word that repeats or that the tokenizer itself would split.
    """

    def __init__(self, words: Sequence[str], context_length: int = 77) -> None:
        seconds = LETTERS + OTHER
        pieces = [a + b for a in LETTERS + OTHER for b in [*seconds, ""]]
        self._pieces = {piece: index for index, piece in enumerate(pieces, start=1)}
        self._words: dict[str, int] = {}
        for word in words:
            if _split(word) != [word]:
                raise ConfigError(f"tokenizer word '{word}' must be one word in lower case, without punctuation")
            if word in self._words:
                raise ConfigError(f"tokenizer word '{word}' is listed twice")
            self._words[word] = 1 + len(pieces) + len(self._words)
        self.context_length = context_length
        self.pad = 0
        self.start = 1 + len(pieces) + len(self._words)
        self.end = self.start + 1
        self.vocab_size = self.end + 1

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that are not in the list: a model knows no meaning of their spelling."""
        return [word for word in _split(text) if word not in self._words]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return _rows([[token for word in _split(text) for token in self._spell(word)] for text in texts], self)

    def _spell(self, word: str) -> list[int]:
        if word in self._words:
            return [self._words[word]]
        plain = "".join(letter if letter in LETTERS else OTHER for letter in word)
        return [self._pieces[plain[i : i + 2]] for i in range(0, len(plain), 2)]


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("\u2019", "'"))


def _rows(prompts: list[list[int]], tokenizer: CLIPTokenizer | WordTokenizer) -> Tensor:
    """Add start, end and padding; cut what is too long."""
    length = tokenizer.context_length
    rows = torch.full((len(prompts), length), tokenizer.pad, dtype=torch.int64)
    for row, prompt in zip(rows, prompts):
        if len(prompt) > length - 2:
            warnings.warn(f"a prompt of {len(prompt)} tokens is cut after {length - 2}", stacklevel=3)
        tokens = [tokenizer.start, *prompt[: length - 2], tokenizer.end]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows
