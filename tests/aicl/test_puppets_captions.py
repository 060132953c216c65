"""Captions of the puppet world: grammar both ways, inflection, made-up names, vocabulary."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from aicl.pseudo_words import gerund, third_person
from aicl.puppets.actions import ACTIONS, SEEN_INDICES, UNSEEN_INDICES
from aicl.puppets.captions import (
    GENERIC,
    Description,
    Wording,
    all_words,
    caption,
    describe,
    made_up,
    parse,
    random_wording,
    unseen_words,
    vocabulary,
)
from aicl.puppets.scene_parameters import FIELD, FIELDS
from lvdm import config
from lvdm.errors import DataError
from lvdm.models.tokenizer import WordTokenizer

ROOT = Path(__file__).parents[2]
FULL = Description("wave a hand", "red", "blue", "green")


@pytest.mark.parametrize(
    ("description", "wording", "text"),
    [
        (FULL, Wording(), "a person in a red shirt and blue trousers is waving a hand in front of a green background"),
        (
            replace(FULL, phrase="hammer", shirt="orange", shirt_striped=True, height="tall", pace="slowly"),
            Wording(person="man", progressive=False, setting="while it rains"),
            "while it rains a tall man in a striped orange shirt and blue trousers hammers slowly "
            "in front of a green background",
        ),
        (
            replace(FULL, background="orange", background_striped=True),
            Wording(background_first=True, setting="late at night", setting_first=False),
            "in front of a striped orange background a person in a red shirt and blue trousers is waving a hand "
            "late at night",
        ),
        (Description("squat"), Wording(), "a person is squatting"),
    ],
)
def test_sentences(description, wording, text):
    assert caption(description, wording) == text
    assert parse(text) == description


def test_every_caption_of_every_action_parses_back():
    random = Random(0)
    for number, phrase in enumerate([*(action.phrase for action in ACTIONS), *GENERIC] * 3):
        described = Description(
            phrase,
            shirt="white",
            trousers="black",
            background="grey" if number % 3 else None,
            shirt_striped=number % 2 == 0,
            background_striped=number % 3 == 1,
            height=(None, "tall", "short")[number % 3],
            pace=(None, "quickly", "slowly")[number // 2 % 3],
        )
        assert parse(caption(described, random_wording(random))) == described


def test_made_up_names_parse_to_what_stands_there():
    random = Random(4)
    for _ in range(200):
        name = made_up(random)
        assert parse(caption(replace(FULL, phrase=name))).phrase == gerund(name)
        assert parse(caption(replace(FULL, phrase=name), Wording(progressive=False))).phrase == third_person(name)


@pytest.mark.parametrize("text", ["", "a dog runs", "waving a hand", "a person in a pink shirt is waving"])
def test_other_text_is_refused(text):
    with pytest.raises(DataError, match="no caption"):
        parse(text)


@pytest.mark.parametrize(
    ("phrase", "forms"),
    [
        ("clap", "clapping claps"),
        ("wave a hand", "waving a hand waves a hand"),
        ("row", "rowing rows"),
        ("march", "marching marches"),
        ("do push-ups", "doing push-ups does push-ups"),
        ("squat", "squatting squats"),
        ("ski", "skiing skis"),
        ("hammer", "hammering hammers"),
        ("sway", "swaying sways"),
        ("practise karate", "practising karate practises karate"),
        ("stir a pot", "stirring a pot stirs a pot"),
        ("floob the dask", "floobing the dask floobs the dask"),
        ("fly", "flying flies"),
    ],
)
def test_inflection(phrase, forms):
    assert f"{gerund(phrase)} {third_person(phrase)}" == forms


def test_unseen_names_share_no_word_with_training_captions():
    assert not unseen_words() & set(vocabulary())
    assert "hammering" in unseen_words() and "hammering" in all_words()
    for index in UNSEEN_INDICES:
        assert not set(gerund(ACTIONS[index].phrase).split()) & set(vocabulary())


def test_made_up_names_are_new_words_and_mostly_pronounceable():
    random = Random(1)
    names = [made_up(random) for _ in range(400)]
    words = {word for name in names for word in f"{gerund(name)} {third_person(name)}".split()} - {"the"}
    assert not words & set(all_words())
    assert len(set(names)) > 380
    assert sum(any(vowel in name for vowel in "aeiou") for name in names) > 320


def test_the_model_config_has_this_vocabulary():
    text = config.load(ROOT / "configs/models/puppets.yaml")["text"]
    assert text["tokenizer"] == list(vocabulary())
    tokenizer = WordTokenizer(vocabulary(), text["context_length"])
    known = tokenizer._words.keys()
    for index in SEEN_INDICES:
        spoken = caption(replace(FULL, phrase=ACTIONS[index].phrase)).replace("-", " ")
        assert set(spoken.split()) <= known


def test_a_scene_is_described_by_its_numbers():
    row = torch.zeros(len(FIELDS))
    for name, value in {
        "shirt": 3,
        "trousers": 7,
        "background": 6,
        "shirt_striped": 1,
        "height": 1.09,
        "speed": 0.65,
    }.items():
        row[FIELD[name]] = value
    expected = Description("hop", "green", "black", "grey", shirt_striped=True, height="tall", pace="slowly")
    assert describe(row, "hop") == expected
    assert describe(row, "hop", looks=False) == Description("hop")
