"""Which actions a caption names (III-D1): verbs by lemma, and whole phrases in uniform captions.

There is no tagger here, only lemminflect's dictionary of forms, the lists of `aicl.word_lists` and the order of words,
which suffices for the short captions of video datasets ("Young woman running on the beach at sunset"); the tests hold
how well. The rules:

- a gerund is an action after a doer, a form of "be", or at the start of a clause ("young woman drinking water", "is
  dancing", "slicing bread"), unless it names or qualifies a thing ("swimming pool", "a racing car", "morning");
- a third-person form is one after a singular subject ("a man walks", "Batman dances", "the man on the left waves"),
  not where it is a plural ("ocean waves");
- a plain form is one after a plural or joint subject ("kids play", "a man and a woman dance"), and after "to", a modal
  or "do" ("is about to jump", "can swim");
- a past form is one after a subject ("a boy jumped"), unless it says how things are ("dressed in");
- what is denied is no action ("is not dancing", "nobody runs", "without moving");
- "be", "have" and modal verbs are never actions; "do" is one only with its object, as a phrase ("do yoga").
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lemminflect import getAllInflections

from aicl import word_lists as lists
from aicl.word_forms import (
    animate,
    doubtful,
    form_of,
    inflections,
    is_adjective,
    is_adverb,
    is_plural,
    lemma,
    may_be_noun,
    unknown,
)
from aicl.word_lists import DETERMINERS

__all__ = ["contains", "generalised", "inflections", "lemma", "phrase", "verbs", "words"]

_NOUN_STOPS = (
    lists.PREPOSITIONS
    | lists.CONJUNCTIONS
    | lists.PUNCTUATION
    | lists.MODALS
    | lists.BE
    | lists.HAVE
    | lists.DO
    | lists.NEGATIONS
)
_GENERAL = {"gerund": "moving", "third": "moves", "plain": "move", "past": "moved"}
_UPS = re.compile(r"\b(push|sit|pull|chin|press)[ -]?ups?$")  # one spelling of the exercises
_CONTRACTIONS = {"ll": "will", "re": "are", "m": "am", "ve": "have", "d": "would"}


def words(caption: str) -> list[str]:
    """Lower-case words of a caption; hyphens split, apostrophes stay; punctuation that ends a clause is a word."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[.,;:!?()]", caption.lower().replace("’", "'"))


def verbs(caption: str) -> tuple[str, ...]:
    """The actions of a caption as verbs in their base form, each once, in order; empty if it names none.

    >>> verbs("A man is riding his bicycle while a dog runs behind him")
    ('ride', 'run')
    """
    return _Reading(_tokens(caption)).actions()


def phrase(caption: str) -> str | None:
    """The whole action of a caption written as "A person is ...", its verb in base form, without articles.

    Such uniform captions (UCF-101) name the action and nothing else, so all of it counts: "play guitar" is not
    "play violin". None for any other caption.
    """
    tokens = [token for token in words(caption.rstrip(" .")) if token not in DETERMINERS]
    verb = lemma(tokens[2]) if tokens[:2] == ["person", "is"] and len(tokens) > 2 else None
    return None if verb is None else " ".join([verb, *tokens[3:]])


def generalised(caption: str) -> str | None:
    """The caption, in lower case, with "move" in place of each action and of what is done to; None if it names none.

    >>> generalised("A man is riding his bicycle on a road while a dog runs behind him")
    'a man is moving on a road while a dog moves behind him'
    """
    reading = _Reading(_tokens(caption))
    if not reading.actions():
        return None
    kept: list[str] = []
    place = 0
    while place < len(reading.tokens):
        if place in reading.found and place not in reading.denied:
            kept.append(_GENERAL[reading.found[place]])
            place = reading.end_of_object(place + 1)
        else:
            kept.append(reading.tokens[place])
            place += 1
    return re.sub(r" (?=[.,;:!?])", "", " ".join(kept))


def contains(caption: str, phrases: Iterable[str]) -> tuple[str, ...]:
    """Those of `phrases` that a caption names, whatever the form of their verb and the articles between."""
    tokens = [token for token in words(caption) if token not in DETERMINERS]
    starts = {f"{lemma(token)} {' '.join(tokens[i + 1 :])} " for i, token in enumerate(tokens) if lemma(token)}
    return tuple(p for p in phrases if any(start.startswith(p + " ") for start in starts))


@dataclass(frozen=True)
class _Noun:
    """The head of a noun phrase, its determiner ("" if none), and the place of its first word."""

    head: str
    determiner: str
    start: int

    @property
    def doer(self) -> bool:
        return animate(self.head) or unknown(self.head)

    @property
    def plural(self) -> bool:
        return self.head in lists.PLURAL_SUBJECTS or is_plural(self.head)


class _Reading:
    """One caption, read from left to right: `found` has the places of the verbs so far, denied ones too."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.found: dict[int, str] = {}  # place -> form
        self.denied: set[int] = set()
        self.objects: set[int] = set()  # places of what is done: "jumping jacks"

    def actions(self) -> tuple[str, ...]:
        actions: dict[str, None] = {}
        rules = {"gerund": self._gerund, "third": self._third, "plain": self._plain, "past": self._past}
        for i, word in enumerate(self.tokens):
            base = lemma(word)
            if base is None or base in lists.AUXILIARIES or word in lists.THINGS or word in lists.FUNCTION_WORDS:
                continue
            if i in self.objects:
                continue
            if base == "do":
                base = self._done(i)
            if base is None or (base == "go" and self._is_future(i)):
                continue
            form = form_of(word)
            if not (self._is_joined(i, form) or rules[form](i)):
                continue
            self.found[i] = form
            if self._is_denied(i):
                self.denied.add(i)
            else:
                actions[base] = None
        return tuple(actions)

    def end_of_object(self, start: int) -> int:
        """Where what an action is done to ends, which begins at `start`: there at once, if it does the next action."""
        end = start
        while end < len(self.tokens) and end not in self.found:
            if self.tokens[end] in _NOUN_STOPS or is_adverb(self.tokens[end]):
                break
            end += 1
        if end == start or not animate(self.tokens[end - 1]):
            return end
        clause = lists.PUNCTUATION | (lists.CONJUNCTIONS - {"and", "or", "&", "+"})
        rest = (i for i in range(end, len(self.tokens)) if i in self.found or self.tokens[i] in clause)
        return start if next(rest, None) in self.found else end

    def _at(self, i: int) -> str:
        return self.tokens[i] if 0 <= i < len(self.tokens) else "."

    def _back(self, i: int) -> int:
        """The place before i, adverbs skipped ("a man slowly walks")."""
        i -= 1
        while i >= 0 and is_adverb(self.tokens[i]):
            i -= 1
        return i

    def _noun(self, end: int) -> _Noun | None:
        """The noun phrase whose last word is at `end`."""
        if end < 0 or self.tokens[end] in _NOUN_STOPS or end in self.found or not may_be_noun(self.tokens[end]):
            return None
        start = end
        while start > 0 and self.tokens[start] not in DETERMINERS:
            before = self.tokens[start - 1]
            if before in _NOUN_STOPS or before in lists.PRONOUNS - DETERMINERS or start - 1 in self.found:
                break
            start -= 1
        return _Noun(self.tokens[end], self.tokens[start] if self.tokens[start] in DETERMINERS else "", start)

    def _subject(self, i: int) -> tuple[_Noun | None, _Noun | None, bool]:
        """(the noun right before place i, what it belongs to as in "man in the red shirt", whether two are joined)."""
        near = self._noun(self._back(i))
        if near is None:
            return None, None, False
        outer, first = None, near
        while self._at(first.start - 1) in lists.PREPOSITIONS:
            wider = self._noun(self._back(first.start - 1))
            if wider is None:
                break
            outer = first = wider
        joined = self._at(first.start - 1) in ("and", "&", ",") and self._noun(self._back(first.start - 1)) is not None
        return near, outer, joined and self._at(first.start - 1) != ","

    def _gerund(self, i: int) -> bool:
        word, after, place = self.tokens[i], self._at(i + 1), self._back(i)
        before = self._at(place)
        if before in lists.BE or place in self.found:
            return True
        noun = self._noun(place)
        doer = before in lists.PRONOUNS or (
            noun is not None and (noun.doer or (noun.plural and not is_adjective(before)))
        )
        if doer and not (word in lists.MOSTLY_THINGS and may_be_noun(after) and after not in DETERMINERS):
            return True
        if after == "of" and lemma(word) not in lists.OF_VERBS:
            return False
        if after in lists.COMPOUND_HEADS or (word, after) in lists.COMPOUNDS:
            return False
        if word in lists.MOSTLY_THINGS and after not in DETERMINERS and after not in lists.OBJECT_PRONOUNS:
            return False
        bare = may_be_noun(after) and after not in DETERMINERS and after not in _NOUN_STOPS
        if before == "'s" and not bare:  # "a man's dancing in the street", not "a child's crying face"
            return True
        if before in DETERMINERS or before.isdigit():
            return animate(after)  # "the meeting" is a thing, "a smiling woman" acts
        if before in lists.PREPOSITIONS:
            if before in ("in", "on", "at", "with", "to"):  # "with moving lights"
                return animate(after) or (not bare and after in DETERMINERS)
            return animate(after) or not bare or word not in lists.INTRANSITIVE
        if is_adjective(before):
            return animate(after) or not bare
        return True

    def _third(self, i: int) -> bool:
        word, after, before = self.tokens[i], self._at(i + 1), self._at(self._back(i))
        if before in lists.PRONOUNS - lists.PLURAL_PRONOUNS:
            return True
        near, outer, _ = self._subject(i)
        if near is None:
            return False
        if word in lists.BODY:
            return after in lists.OBJECT_PRONOUNS
        sure = not doubtful(word) or word in lists.CLEAR_THIRD
        likely = sure or lemma(word) in lists.COMMON
        if near.plural and not unknown(near.head):  # "a team of scientists works", not "sports shoes"
            return outer is not None and not outer.plural and likely
        if lemma(after) is not None and after.endswith("ing") and not sure:  # "water drops falling"
            return False
        if near.doer or near.determiner in lists.SINGULAR_DETERMINERS:
            return True
        if outer is not None and outer.doer and (likely or after in lists.PREDICATE):
            return True
        return sure or after in lists.PREDICATE

    def _plain(self, i: int) -> bool:
        word, after, place = self.tokens[i], self._at(i + 1), self._back(i)
        before = self._at(place)
        if before in lists.MODALS or before in lists.DO:
            return True
        if before == "to":
            return self._after_to(i, place)
        if before in lists.PRONOUNS:
            return True
        near, outer, joined = self._subject(i)
        if near is None or after in lists.COMPOUND_HEADS or (after.endswith("ing") and lemma(after) is not None):
            return False
        sure = not doubtful(word) or after in lists.PREDICATE
        likely = sure or lemma(word) in lists.COMMON
        if near.plural or joined:
            return likely or (near.plural and near.doer and not joined and after not in lists.PUNCTUATION)
        if outer is not None and outer.plural and outer.doer and outer.start >= 0:
            return not doubtful(word) or lemma(word) in lists.COMMON
        # a past form that looks the same, as in "a man cut the rope"
        return near.doer and after in DETERMINERS and word in getAllInflections(word, upos="VERB").get("VBD", ())

    def _after_to(self, i: int, place: int) -> bool:
        """Whether the word at i is an infinitive: "ready to jump" against "next to water"."""
        governor = self._back(place)
        if not doubtful(self.tokens[i]) or self._at(i + 1) in lists.PREDICATE or self._at(governor) in lists.READY:
            return True
        return governor in self.found and lemma(self.tokens[governor]) not in lists.MOTIONS

    def _past(self, i: int) -> bool:
        word, after, before = self.tokens[i], self._at(i + 1), self._at(self._back(i))
        if before == "being" or before in lists.HAVE:
            return True
        if word in lists.STATES or after == "by" or before in lists.BE:
            return False
        forms = getAllInflections(lemma(word), upos="VERB")
        if forms and word not in forms.get("VBD", ()):  # "seen", "driven"
            return False
        if before in lists.PRONOUNS:
            return True
        near, _, joined = self._subject(i)
        return near is not None and (near.doer or joined or word not in forms.get("VBN", (word,)))

    def _is_joined(self, i: int, form: str) -> bool:
        """Whether a verb goes on a row of verbs: "walks, stops and looks around"."""
        if self._at(self._back(i)) not in ("and", "or", "but", "then", ",", "&") or form == "gerund":
            return False
        denied_plain = form == "third" and any(
            self.found[j] == "plain" for j in self.denied
        )  # "does not run but walks"
        if form not in self.found.values() and not denied_plain:
            return False
        word, after = self.tokens[i], self._at(i + 1)
        return not doubtful(word) or lemma(word) in lists.COMMON or after in lists.PREDICATE

    def _is_denied(self, i: int) -> bool:
        """Whether "not", "never", "without" or a subject such as "nobody" denies the verb at i."""
        if self._at(i - 1) == "without" or (self.denied and self._at(i - 1) in ("or", "nor")):
            return True
        start = i
        while start > 0 and (
            is_adverb(self.tokens[start - 1])
            or self.tokens[start - 1] in lists.BE | lists.HAVE | lists.DO | lists.MODALS | lists.NEGATIONS
        ):
            start -= 1
            if self.tokens[start] in lists.NEGATIONS:
                return True
        if self._at(start - 1) in lists.NOBODY or self.tokens[max(0, start - 2) : start] == ["no", "one"]:
            return True
        noun = self._noun(start - 1)
        if noun is None:
            return False
        return noun.determiner == "no" or self._at(noun.start - 1) == "without"

    def _done(self, i: int) -> str | None:
        """The action that "do" at place i stands for, with its object; None where it is an auxiliary."""
        first = i + 1
        while self._at(first) in DETERMINERS:
            first += 1
        end = first
        while end < min(first + 3, len(self.tokens)) and self._is_object(end, first):
            end += 1
        if end == first or not may_be_noun(self.tokens[end - 1]):
            return None
        self.objects.update(range(first, end))
        while end - first > 1 and self.tokens[end - 1] in lists.GENERIC:
            end -= 1
        return "do " + _UPS.sub(r"\1-ups", " ".join(self.tokens[first:end]))

    def _is_object(self, i: int, first: int) -> bool:
        word = self.tokens[i]
        if word == "up" and i > first:  # "push up"
            return True
        return word not in _NOUN_STOPS and word not in lists.PRONOUNS and not is_adverb(word)

    def _is_future(self, i: int) -> bool:
        """Whether "going" at i only announces a verb: "is going to sing"."""
        return self._at(i + 1) == "to" and lemma(self._at(i + 2)) is not None and self.tokens[i] == "going"


def _tokens(caption: str) -> list[str]:
    """Lower-case words with hyphens kept and contractions written out, numbers, and punctuation."""
    tokens: list[str] = []
    text = caption.lower().replace("’", "'").replace("cannot", "can not")
    for word in re.findall(r"[^\W\d_]+(?:[-'][^\W\d_]+)*|\d+|[.,;:!?()&/+]", text):
        base, apostrophe, end = word.rpartition("'")
        if word.endswith("n't"):
            tokens += [{"ca": "can", "wo": "will", "sha": "shall"}.get(word[:-3], word[:-3]), "not"]
        elif apostrophe and end in _CONTRACTIONS:
            tokens += [base, _CONTRACTIONS[end]]
        elif apostrophe and end == "s":
            tokens += [base, "is" if base in lists.PRONOUNS or base in ("there", "here", "what") else "'s"]
        else:
            tokens.append(word)
    return tokens
