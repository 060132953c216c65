"""Captions of scenes: looks and action in one sentence, plain or free, and reading them back.

Plain: "a person in a red shirt and blue trousers is waving a hand in front of a green background". Free captions say
the same in other words and other orders: "while it rains a tall man in a red shirt and blue trousers waves a hand
slowly in front of a striped green background".
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from torch import Tensor

from aicl.pseudo_words import gerund, made_up_phrase, third_person
from aicl.puppets.actions import ACTIONS, SEEN_INDICES
from aicl.puppets.scene_parameters import BACKGROUNDS, COLOURS, FIELD, HEIGHTS, PACES, kind_of
from lvdm.errors import DataError

GENERIC = ("move", "do something", "perform an action")
PEOPLE = ("person", "man", "woman")
# What a caption may add and no picture shows; a model has to learn to ignore it.
SETTINGS = (
    "while it rains",
    "on a sunny day",
    "early in the morning",
    "late at night",
    "while nobody looks",
    "in the middle of winter",
    "with great joy",
    "as the crowd cheers",
)
_CLOTH, _WALLS = tuple(COLOURS), tuple(BACKGROUNDS)
_HEIGHT_WORDS = tuple(word for word in HEIGHTS if word)
_PACE_WORDS = tuple(word for word in PACES if word)


@dataclass(frozen=True)
class Description:
    """What a caption says. `phrase` is a verb phrase in base form; None or "" stands for what is left unsaid."""

    phrase: str
    shirt: str | None = None
    trousers: str | None = None
    background: str | None = None
    shirt_striped: bool = False
    background_striped: bool = False
    height: str | None = None
    pace: str | None = None


@dataclass(frozen=True)
class Wording:
    """How it is said: the noun, "waves" or "is waving", an idle remark, and what the sentence begins with."""

    person: str = "person"
    progressive: bool = True
    setting: str = ""
    setting_first: bool = True
    background_first: bool = False


def describe(row: Tensor, phrase: str, *, looks: bool = True) -> Description:
    """The description of a scene (FIELDS,) doing `phrase`; without `looks`, of the action alone."""
    if not looks:
        return Description(phrase)

    def value(name: str) -> float:
        return float(row[FIELD[name]])

    return Description(
        phrase,
        shirt=_CLOTH[int(value("shirt"))],
        trousers=_CLOTH[int(value("trousers"))],
        background=_WALLS[int(value("background"))],
        shirt_striped=value("shirt_striped") > 0.5,
        background_striped=value("background_striped") > 0.5,
        height=kind_of(HEIGHTS, value("height")),
        pace=kind_of(PACES, value("speed")),
    )


def random_wording(random: Random) -> Wording:
    """A free wording; `random` decides all of it."""
    setting = SETTINGS[int(random.random() * len(SETTINGS))] if random.random() < 0.5 else ""
    return Wording(
        person=PEOPLE[int(random.random() * len(PEOPLE))],
        progressive=random.random() < 0.5,
        setting=setting,
        setting_first=random.random() < 0.6,
        background_first=random.random() < 0.3,
    )


def caption(description: Description, wording: Wording | None = None) -> str:
    """The sentence, in lower case and without punctuation."""
    wording = wording or Wording()
    d = description
    subject = _article(" ".join(filter(None, [d.height, wording.person])))
    if d.shirt and d.trousers:
        subject += f" in {_article(_striped(d.shirt_striped) + d.shirt)} shirt and {d.trousers} trousers"
    action = f"is {gerund(d.phrase)}" if wording.progressive else third_person(d.phrase)
    place = f"in front of {_article(_striped(d.background_striped) + d.background)} background" if d.background else ""
    before = [wording.setting if wording.setting_first else "", place if wording.background_first else ""]
    after = ["" if wording.background_first else place, "" if wording.setting_first else wording.setting]
    return " ".join(filter(None, [*before, subject, action, d.pace, *after]))


def parse(text: str) -> Description:
    """Read a caption of this grammar back. A phrase that is no known one is returned as it stands in the caption.

    Raises DataError where the text is no such caption.
    """
    rest = text
    for setting in SETTINGS:
        rest = rest.removeprefix(setting + " ").removesuffix(" " + setting)
    place = re.search(_PLACE, rest)
    if place:
        rest = (rest[: place.start()] + " " + rest[place.end() :]).strip()
    match = re.fullmatch(_SENTENCE, rest)
    if match is None:
        raise DataError(f"'{text}' is no caption of the puppet world: write '{caption(_EXAMPLE)}'")
    surface = match["action"]
    return Description(
        phrase=_surface_forms().get(surface, surface),
        shirt=match["shirt"],
        trousers=match["trousers"],
        background=place["background"] if place else None,
        shirt_striped=bool(match["striped"]),
        background_striped=bool(place and place["striped"]),
        height=match["height"],
        pace=match["pace"],
    )


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word that a training caption of a named action can contain, sorted: no word of an unseen action's name.

    This is the word list of the puppet models' tokenizer; what is not in it is spelled in pieces.
    """
    phrases = [ACTIONS[index].phrase for index in SEEN_INDICES] + list(GENERIC)
    texts = [form(phrase) for phrase in phrases for form in (gerund, third_person)]
    texts += [*PEOPLE, *SETTINGS, *_CLOTH, *_WALLS, *_HEIGHT_WORDS, *_PACE_WORDS, caption(_EXAMPLE), "an"]
    return tuple(sorted({word for text in texts for word in re.findall(r"[a-z]+", text)}))


@lru_cache(maxsize=1)
def unseen_words() -> frozenset[str]:
    """Every word of every form of the unseen actions' names."""
    phrases = [action.phrase for index, action in enumerate(ACTIONS) if index not in SEEN_INDICES]
    return frozenset(
        word for phrase in phrases for form in (str, gerund, third_person) for word in form(phrase).split()
    )


def all_words() -> tuple[str, ...]:
    """The vocabulary with the words of the unseen actions' names added, for measuring evaluators."""
    return tuple(sorted({*vocabulary(), *unseen_words()}))


def made_up(random: Random) -> str:
    """A made-up name in base form, of words that are in no caption of a named action, seen or unseen."""
    return made_up_phrase(random, _taken())


@lru_cache(maxsize=1)
def _taken() -> frozenset[str]:
    return unseen_words() | set(vocabulary())


@lru_cache(maxsize=1)
def _surface_forms() -> dict[str, str]:
    """Inflected phrase -> base form, of all named actions and generic phrases."""
    phrases = [action.phrase for action in ACTIONS] + list(GENERIC)
    return {form(phrase): phrase for phrase in phrases for form in (gerund, third_person)}


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _striped(is_striped: bool) -> str:
    return "striped " if is_striped else ""


_EXAMPLE = Description("wave a hand", "red", "blue", "green", shirt_striped=True)
_PLACE = rf"\s*in front of an? (?P<striped>striped )?(?P<background>{'|'.join(_WALLS)}) background"
_SENTENCE = (
    rf"an? (?:(?P<height>{'|'.join(_HEIGHT_WORDS)}) )?(?:{'|'.join(PEOPLE)})"
    rf"(?: in an? (?P<striped>striped )?(?P<shirt>{'|'.join(_CLOTH)}) shirt"
    rf" and (?P<trousers>{'|'.join(_CLOTH)}) trousers)?"
    rf" (?:is )?(?P<action>(?!in an? ).+?)(?: (?P<pace>{'|'.join(_PACE_WORDS)}))?"
)
