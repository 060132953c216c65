"""Verb phrases that mean nothing, such as "floob the dask", and the inflected forms of verb phrases."""

import re
from collections.abc import Callable, Collection, Sequence
from random import Random
from string import ascii_lowercase

_ONSETS = ("b", "bl", "br", "ch", "d", "dr", "f", "fl", "fr", "g", "gl", "gr", "h", "j", "k", "kl", "kr", "l", "m",
           "n", "p", "pl", "pr", "qu", "r", "s", "sh", "sk", "sl", "sn", "sp", "st", "t", "th", "tr", "v", "w",
           "y", "z")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "oo", "ee", "ai", "ou", "oa")
_CODAS = ("", "", "b", "ck", "d", "ff", "g", "k", "l", "m", "n", "nd", "ng", "nk", "p", "r", "rk", "rt", "sh", "sk",
          "st", "t", "v", "x", "z")  # fmt: skip


def gerund(phrase: str) -> str:
    """A verb phrase in base form -> its gerund: "hop on one leg" -> "hopping on one leg"."""
    return _inflect(phrase, _gerund)


def third_person(phrase: str) -> str:
    """A verb phrase in base form -> its third person: "hop on one leg" -> "hops on one leg"."""
    return _inflect(phrase, _third_person)


def made_up_phrase(random: Random, taken: Collection[str]) -> str:
    """A verb phrase in base form that means nothing: pronounceable in three of four cases, else just letters.

    None of its forms contains a word of `taken`, apart from the article "the".
    """
    while True:
        kind = random.random()
        if kind < 0.25:
            words = [_letters(random) for _ in range(1 + (random.random() < 0.4))]
        elif kind < 0.7:
            words = [_word(random)]
        else:
            words = [_word(random), *(["the"] if kind < 0.9 else []), _word(random)]
        phrase = " ".join(words)
        forms = {word for form in (phrase, gerund(phrase), third_person(phrase)) for word in form.split()} - {"the"}
        if not forms & set(taken):
            return phrase


def _word(random: Random) -> str:
    syllables = 1 + (random.random() < 0.5)
    word = "".join(_pick(random, _ONSETS) + _pick(random, _VOWELS) for _ in range(syllables)) + _pick(random, _CODAS)
    return word if len(word) > 2 else word + "nk"


def _letters(random: Random) -> str:
    return "".join(_pick(random, ascii_lowercase) for _ in range(3 + int(random.random() * 6)))


def _pick(random: Random, options: Sequence[str]) -> str:
    return options[int(random.random() * len(options))]


def _inflect(phrase: str, change: Callable[[str], str]) -> str:
    verb, *rest = phrase.split(" ")
    return " ".join([change(verb), *rest])


def _gerund(verb: str) -> str:
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    if re.fullmatch(r"[^aeiou]*(qu)?[aeiou][^aeiouwxy]", verb):  # one short syllable: its last letter doubles
        return verb + verb[-1] + "ing"
    return verb + "ing"


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return verb + ("s" if verb.endswith("oo") else "es")
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + "s"
