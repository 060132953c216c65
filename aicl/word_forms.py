"""What a dictionary says of a single word: its verb, its form, and which other parts of speech it may be."""

from functools import lru_cache

from lemminflect import getAllInflections, getAllInflectionsOOV, getAllLemmas, getAllLemmasOOV

from aicl import word_lists as lists
from aicl.word_lists import DETERMINERS


@lru_cache(maxsize=65536)
def lemma(word: str) -> str | None:
    """The verb that `word` (lower case) is a form of, by the dictionary, or by the rules for a gerund it lacks.

    None for a word that is no form of any verb. "skis" -> "ski", "breakdancing" -> "breakdance", "skydiving" ->
    "skydive", "table" -> "table".
    """
    found = getAllLemmas(word, upos="VERB").get("VERB")
    if not found and word.endswith("ing") and len(word) > 5 and (not getAllLemmas(word) or _joined(word)):
        first, hyphen, last = word.rpartition("-")
        if hyphen and lemma(last):
            return f"{first}-{lemma(last)}"
        found = getAllLemmasOOV(word, upos="VERB").get("VERB")
    return found[0] if found else None


@lru_cache(maxsize=65536)
def inflections(verb: str) -> frozenset[str]:
    """Every form of a verb, itself included: run, runs, ran, running. Rules are used for a verb no dictionary knows."""
    forms = getAllInflections(verb, upos="VERB") or getAllInflectionsOOV(verb, upos="VERB")
    return frozenset({verb, *(form for group in forms.values() for form in group)})


def form_of(word: str) -> str:
    """Which form of its verb a word is: "plain", "gerund", "third" (person) or "past"; only for forms of verbs."""
    base = lemma(word)
    if base is None or word == base:
        return "plain"
    if word.endswith("ing"):
        return "gerund"
    return "third" if word in getAllInflections(base, upos="VERB").get("VBZ", ()) else "past"


@lru_cache(maxsize=65536)
def _joined(word: str) -> bool:
    """Whether a gerund is joined of a word and a gerund: "skydiving", not "lightning"."""
    first, hyphen, last = word.rpartition("-")
    if hyphen:
        return bool(first) and bool(getAllLemmas(last, upos="VERB"))
    for cut in range(3, len(word) - 4):
        verb = getAllLemmas(word[cut:], upos="VERB").get("VERB", ("be",))[0]
        if verb not in (word[cut:], "be") and getAllLemmas(word[:cut]):
            return True
    return word.startswith("para")


@lru_cache(maxsize=65536)
def doubtful(word: str) -> bool:
    """Whether the dictionary has `word` as something else than a verb too ("waves", "crash")."""
    others = set(getAllLemmas(word)) - {"VERB", "AUX"}
    return bool(others) or (word.endswith("s") and "NOUN" in getAllLemmas(lemma(word) or word))


@lru_cache(maxsize=65536)
def is_adverb(word: str) -> bool:
    """It is an adverb and nothing else, such as "quickly"; words in -ly that no dictionary has count."""
    if word in lists.ADVERBS or (word.endswith("ly") and len(word) > 4 and "NOUN" not in getAllLemmas(word)):
        return True
    return set(getAllLemmas(word)) == {"ADV"} and word not in lists.PREPOSITIONS | lists.CONJUNCTIONS


@lru_cache(maxsize=65536)
def is_adjective(word: str) -> bool:
    """It may be an adjective, and names nobody: "old", not "adult"."""
    return "ADJ" in getAllLemmas(word) and not animate(word)


@lru_cache(maxsize=65536)
def may_be_noun(word: str) -> bool:
    """It is a noun, perhaps among other things, or in no dictionary, and no determiner."""
    return (unknown(word) or "NOUN" in getAllLemmas(word)) and word not in DETERMINERS


def unknown(word: str) -> bool:
    """A word that no dictionary has is a name or a rare animal more often than anything else."""
    return word[:1].isalpha() and not getAllLemmas(word) and word not in lists.FUNCTION_WORDS


def is_plural(word: str) -> bool:
    """A noun's plural in -s: "dogs", but neither "glass" nor "people"."""
    if unknown(word):
        return word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word.endswith("s") and word not in getAllLemmas(word).get("NOUN", (word,))


@lru_cache(maxsize=65536)
def animate(word: str) -> bool:
    """A doer, singular or plural: "man", "dogs", "people"."""
    return not {word, *getAllLemmas(word).get("NOUN", ())}.isdisjoint(lists.SINGULAR_SUBJECTS | lists.PLURAL_SUBJECTS)
