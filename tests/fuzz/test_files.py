"""Spoilt files of every kind end in one sentence, or are read; no other error, and no endless or huge work.

The same inputs in every run. FUZZ_INPUTS says how many are tried of each kind; `make soak` tries many.
"""

import copy
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aicl.verbs import contains, phrase, verbs
from lvdm.errors import UserError
from tests.fuzz.formats import FORMATS, SPOILT_VALUES, Format

INPUTS = int(os.environ.get("FUZZ_INPUTS", "6"))
SECONDS = 20.0  # for one input, on a busy machine
STEADY = settings(
    max_examples=INPUTS, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def spoilt_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file cut, changed in places, with something put in or left out, or something else altogether."""
    kind = draw(st.sampled_from(["other", "cut", "changed", "inserted", "removed", "zeros"]))
    start = draw(st.integers(0, len(whole)))
    end = min(len(whole), start + draw(st.integers(1, 400)))
    if kind == "other":
        return draw(st.binary(max_size=300))
    if kind == "cut":
        return whole[:start]
    if kind == "inserted":
        return whole[:start] + draw(st.binary(min_size=1, max_size=40)) + whole[start:]
    if kind == "removed":
        return whole[:start] + whole[end:]
    if kind == "zeros":
        return whole[:start] + bytes(end - start) + whole[end:]
    changed = bytearray(whole)
    for place in draw(st.lists(st.integers(0, max(0, len(whole) - 1)), min_size=1, max_size=8)):
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed)


@st.composite
def spoilt_object(draw: st.DrawFn, whole: Any) -> Any:
    """A nested value with some of its members replaced, left out, renamed, or with one too many."""
    content = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(content))
        if not places or draw(st.integers(0, 9)) == 0:
            return copy.deepcopy(draw(st.sampled_from(SPOILT_VALUES)))
        holder, key = draw(st.sampled_from(places))
        value = copy.deepcopy(draw(st.sampled_from(SPOILT_VALUES)))
        kind = draw(st.sampled_from(["replace"] * 4 + ["remove", "add"]))
        if kind == "replace":
            holder[key] = value
        elif kind == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "x" * 300, "extra", "\ud800"]))] = value
        else:
            holder.append(value)
    return content


def _places(value: Any) -> Any:
    """(holder, key) of every member of a nested value."""
    for key, item in list(value.items()) if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


def read_or_one_sentence(form: Format, data: bytes) -> str | None:
    """Put the file into a folder and read it; returns the sentence that it ends in, None where it was read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for other, content in form.beside.items():
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_bytes(content)
        path = folder / form.name
        path.write_bytes(data)
        start = time.monotonic()
        try:
            form.read(path)
            sentence = None
        except UserError as error:
            sentence = str(error)
            sentence.encode()  # it can be printed
            assert sentence.strip() and len(sentence) < 3000, sentence[:300]
        assert time.monotonic() - start < SECONDS
        return sentence


@pytest.mark.parametrize("name", FORMATS)
def test_the_whole_file_is_read(name: str) -> None:
    """So that what is spoilt below was whole before."""
    form = FORMATS[name]
    sentence = read_or_one_sentence(form, form.write(form.whole))
    assert sentence is None, sentence


@pytest.mark.parametrize("name", FORMATS)
def test_spoilt_bytes_end_in_one_sentence(name: str) -> None:
    form = FORMATS[name]

    @STEADY
    @given(spoilt_bytes(form.write(form.whole)))
    def check(data: bytes) -> None:
        read_or_one_sentence(form, data)

    check()


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.dump is not None])
def test_spoilt_values_end_in_one_sentence(name: str) -> None:
    form = FORMATS[name]

    @settings(STEADY, max_examples=2 * INPUTS)
    @given(spoilt_object(form.whole))
    def check(content: Any) -> None:
        read_or_one_sentence(form, form.write(content))

    check()


@settings(STEADY, max_examples=10 * INPUTS)
@given(st.text(max_size=200))
def test_any_caption_can_be_read(caption: str) -> None:
    assert all(isinstance(verb, str) and verb for verb in verbs(caption))
    assert phrase(caption) is None or phrase(caption)
    assert contains(caption, ["run"]) in ((), ("run",))
