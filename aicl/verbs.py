"""Which actions a caption names (III-D1): verbs by lemma, and whole phrases in uniform captions.

There is no tagger here, only lemminflect's dictionary of forms and the order of words, which suffices for the short
captions of video datasets ("Young woman running on the beach at sunset"). The rules, in the order they are asked:

- a gerund is an action ("running", "is dancing", "woman smiling"), unless it names or qualifies a thing
  ("the building", "a man in a running suit", "swimming pool", "morning");
- a third-person form is one after a subject ("a man walks", "she plays"), not where it is a plural ("ocean waves");
- a plain form is one after a plural subject ("people walk", "kids play"), or after "to", a modal or "and" + verb;
- a past form is one after a subject ("a boy jumped"), unless it says how things are ("dressed in", "surrounded by");
- "be", "have" and modal verbs are never actions; "do" is one only with its object, as a phrase ("do yoga").
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from lemminflect import getAllInflections, getAllInflectionsOOV, getAllLemmas, getAllLemmasOOV


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODALS = _words("can could may might must shall should will would")
AUXILIARIES = _words("be have") | MODALS
DETERMINERS = _words(
    "a an the this that these those his her its their our my your some any each every another one no old new"
)
PRONOUNS = _words("he she it they we you i who which that someone somebody everyone")
SINGULAR_SUBJECTS = _words(
    """man woman boy girl person child kid baby toddler guy lady gentleman boyfriend girlfriend husband
    wife mother father mom dad son daughter brother sister grandmother grandfather couple family friend team crowd
    group teenager teen adult student teacher doctor nurse scientist engineer worker builder farmer fisherman hunter
    chef cook waiter waitress barista baker bartender driver pilot cyclist biker rider runner jogger swimmer diver
    surfer skier snowboarder skater skateboarder dancer ballerina singer musician guitarist pianist drummer violinist dj
    artist painter writer photographer cameraman model actor actress athlete gymnast player footballer boxer fighter
    wrestler golfer climber hiker tourist traveler traveller businessman businesswoman manager employee customer client
    seller barber hairdresser mechanic welder carpenter potter blacksmith tailor soldier officer policeman firefighter
    bride groom monk priest king queen clown magician juggler robot
    dog puppy cat kitten horse pony cow bull calf sheep lamb goat pig rabbit hare squirrel mouse rat hamster monkey ape
    gorilla bear panda lion tiger leopard cheetah elephant giraffe zebra deer fox wolf camel kangaroo bird eagle hawk
    owl duck goose swan chicken rooster hen pigeon seagull gull parrot penguin peacock flamingo fish shark dolphin
    whale turtle tortoise frog snake lizard crocodile spider ant bee butterfly caterpillar snail crab jellyfish animal
    car truck bus train boat ship airplane plane helicopter drone"""
)
PLURAL_SUBJECTS = _words(
    """people men women children kids boys girls persons guys ladies friends babies mice geese sheep fish police
    fishermen businessmen policemen youngsters teenagers"""
)
ADVERBS = _words("also then often always never just again together alone now still")
# Before one of these a form in doubt is a verb: they say whither, or begin an object.
PREDICATE = DETERMINERS | _words(
    """over through across into along up down around towards toward away past onto off out against upon on slowly
    quickly happily together"""
)
FUNCTION_WORDS = (
    PRONOUNS
    | DETERMINERS
    | _words(
        """over through across into along up down around past onto off out in on at with for near under behind like
    after before and but then back front close next people video footage slow fast"""
    )
)
# Third-person forms that the dictionary also has as plurals, but captions hardly ever do.
CLEAR_THIRD = _words("stands takes makes goes gets holds keeps puts gives tries talks eats sleeps throws catches")
# Gerund-like words that name things, and past forms that say how things are rather than what happens.
THINGS = _words(
    """building wedding morning evening ceiling clothing ring king wing string spring thing anything something nothing
    everything during being having ping bing duckling sibling dumpling earring pudding sting viking herring lighting
    feeling sightseeing background timing wellbeing outing offspring living greeting darling railing awning
    interesting amazing stunning charming exciting relaxing outstanding surrounding following including according
    beijing missing existing remaining upcoming ongoing depending regarding concerning stocking landing"""
)
STATES = _words(
    """dressed covered surrounded isolated filmed blurred decorated located based used animated shot made tired old
    seated lit set filled called named known related detailed abandoned broken closed frozen colored coloured cooked
    dried fried grilled baked roasted sliced chopped mixed fresh cropped rendered generated aged bearded focused
    defocused unfocused excited concerned bored worried confused married retired ruined painted parked left found
    born lost forested gloved tattooed"""
)
# What a gerund before it qualifies: a thing made for the action, not the action.
COMPOUND_HEADS = _words(
    """pool suit suits shoes shoe machine machines table tables mall lot pan rink board rod rods gloves bag bags stick
    sticks room rooms center centre gear equipment track club class classes lesson lessons competition course line
    lines season school gown dress studio area hall house wheel bike mask glasses goggles chair chairs trunks costume
    tool tools iron boots stone bowl light lights star sun water plant station process site day night store shop cart
    paper field range ground grounds tower world city"""
)


@lru_cache(maxsize=65536)
def lemma(word: str) -> str | None:
    """The verb that `word` (lower case) is a form of, by the dictionary, or by the rules for an unknown gerund.

    None for a word that is no form of any verb. "skis" -> "ski", "breakdancing" -> "breakdance", "table" -> "table".
    """
    found = getAllLemmas(word, upos="VERB").get("VERB")
    if not found and word.endswith("ing") and len(word) > 5 and not getAllLemmas(word):
        found = getAllLemmasOOV(word, upos="VERB").get("VERB")
    return found[0] if found else None


@lru_cache(maxsize=65536)
def inflections(verb: str) -> frozenset[str]:
    """Every form of a verb, itself included: run, runs, ran, running. Rules are used for a verb no dictionary knows."""
    forms = getAllInflections(verb, upos="VERB") or getAllInflectionsOOV(verb, upos="VERB")
    return frozenset({verb, *(form for group in forms.values() for form in group)})


def words(caption: str) -> list[str]:
    """Lower-case words of a caption; hyphens split, apostrophes stay; punctuation that ends a clause is a word."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[.,;:!?()]", caption.lower().replace("’", "'"))


def verbs(caption: str) -> tuple[str, ...]:
    """The actions of a caption as verbs in their base form, each once, in order; empty if it names none.

    >>> verbs("A man is riding his bicycle while a dog runs behind him")
    ('ride', 'run')
    """
    tokens = words(caption)
    found: dict[str, str] = {}  # verb -> form
    for i, word in enumerate(tokens):
        base = lemma(word)
        if base is None or base in AUXILIARIES or word in THINGS or word in FUNCTION_WORDS:
            continue
        form = _form(word, base)
        if base == "do":
            base = f"do {_object(tokens, i)}"  # "do yoga"; on its own it is an auxiliary
            if base.endswith(" "):
                continue
        before, after = _before(tokens, i), tokens[i + 1] if i + 1 < len(tokens) else "."
        joined = before == "and" and form in found.values()  # "walks and talks"
        if joined or _IS_ACTION[form](word, before, after):
            found.setdefault(base, form)
    return tuple(found)


def _object(tokens: list[str], i: int) -> str:
    """The noun that follows token i, determiners skipped, "push ups" included; empty if something else follows."""
    rest = [token for token in tokens[i + 1 : i + 4] if token not in DETERMINERS]
    if not rest or not _is_noun(rest[0]):
        return ""
    return f"{rest[0]} up" if rest[1:2] in (["up"], ["ups"]) else rest[0]


def _form(word: str, base: str) -> str:
    if word == base:
        return "plain"
    if word.endswith("ing"):
        return "gerund"
    return "third" if word in getAllInflections(base, upos="VERB").get("VBZ", ()) else "past"


def _before(tokens: list[str], i: int) -> str:
    """The word before token i, adverbs skipped ("a man slowly walks"); "." at the start."""
    while i > 0 and (tokens[i - 1] in ADVERBS or (tokens[i - 1].endswith("ly") and len(tokens[i - 1]) > 4)):
        i -= 1
    return tokens[i - 1] if i else "."


def _gerund(word: str, before: str, after: str) -> bool:
    if after in COMPOUND_HEADS:  # "swimming pool", "a running suit"
        return False
    return before not in DETERMINERS or _animate(after)  # "the meeting" is a thing, "a smiling woman" acts


def _third(word: str, before: str, after: str) -> bool:
    if before in PRONOUNS or before in SINGULAR_SUBJECTS:
        return True
    return _is_noun(before) and (not _doubtful(word) or word in CLEAR_THIRD or after in PREDICATE)


def _plain(word: str, before: str, after: str) -> bool:
    if before in MODALS:
        return True
    if before == "to":  # "ready to jump" against "next to water"
        return not _doubtful(word) or after in PREDICATE
    if before in PLURAL_SUBJECTS or before in PRONOUNS or (_animate(before) and before not in SINGULAR_SUBJECTS):
        return True
    return _is_plural(before) and (not _doubtful(word) or after in PREDICATE)


def _past(word: str, before: str, after: str) -> bool:
    return word not in STATES and after != "by" and (before in PRONOUNS or _animate(before))


def phrase(caption: str) -> str | None:
    """The whole action of a caption written as "A person is ...", its verb in base form, without articles.

    Such uniform captions (UCF-101) name the action and nothing else, so all of it counts: "play guitar" is not
    "play violin". None for any other caption.
    """
    tokens = [token for token in words(caption.rstrip(" .")) if token not in DETERMINERS]
    if tokens[:2] != ["person", "is"] or len(tokens) < 3 or lemma(tokens[2]) is None:
        return None
    return " ".join([lemma(tokens[2]), *tokens[3:]])


def contains(caption: str, phrases: Iterable[str]) -> tuple[str, ...]:
    """Those of `phrases` that a caption names, whatever the form of their verb and the articles between."""
    tokens = [token for token in words(caption) if token not in DETERMINERS]
    starts = {f"{lemma(token)} {' '.join(tokens[i + 1 :])} " for i, token in enumerate(tokens) if lemma(token)}
    return tuple(p for p in phrases if any(start.startswith(p + " ") for start in starts))


_IS_ACTION = {"gerund": _gerund, "third": _third, "plain": _plain, "past": _past}


@lru_cache(maxsize=65536)
def _doubtful(word: str) -> bool:
    """Whether the dictionary has `word` as something else than a verb too ("waves", "crash")."""
    return bool(set(getAllLemmas(word)) - {"VERB", "AUX"})


@lru_cache(maxsize=65536)
def _is_noun(word: str) -> bool:
    return "NOUN" in getAllLemmas(word) and word not in DETERMINERS


def _is_plural(word: str) -> bool:
    return word.endswith("s") and word not in getAllLemmas(word).get("NOUN", (word,))


def _animate(word: str) -> bool:
    """A doer, singular or plural: "man", "dogs", "people"."""
    return not {word, *getAllLemmas(word).get("NOUN", ())}.isdisjoint(SINGULAR_SUBJECTS | PLURAL_SUBJECTS)
