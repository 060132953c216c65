"""One declaration of an option is its keyword, its place on the command line, its checks, and its entry in records."""

import argparse
import inspect
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest

from lvdm.errors import ConfigError
from lvdm.models.components import GenerationDefaults
from lvdm.options import GenerationOptions, add_arguments, option, read_options, takes_options


@dataclass(kw_only=True)
class More(GenerationOptions):
    """With one option more of each kind."""

    RENAMED: ClassVar[dict[str, str]] = GenerationOptions.RENAMED | {"noise": "churn", "h": "height and width"}

    churn: float = option(0.5, "noise that is added again", least=0, most=1, spellings=("stir",))
    mode: Literal["a", "b"] = option("a", "which one")
    words: list[str] = option([], "any number of them")  # noqa: RUF009 (a field)
    quiet: bool = option(False, "say nothing")


def parsed(*arguments: str) -> dict:
    parser = argparse.ArgumentParser()
    add_arguments(parser, More, {"sampling": "sampling"})
    return vars(parser.parse_args(arguments))


def test_a_declaration_is_an_option_of_the_command_line():
    assert parsed() == {}  # what was not said is absent, so it overrides nothing
    given = ["--churn", "0.25", "--mode", "b", "--words", "x", "y", "--quiet", "--steps", "7"]
    found = parsed(*given)
    assert found == {"churn": 0.25, "mode": "b", "words": ["x", "y"], "quiet": True, "num_inference_steps": 7}
    assert parsed("--stir", "1") == {"churn": 1.0}
    options = read_options(More, found)
    assert options.given() == found  # what records and caches keep
    assert More().given() == {} and More(words=[]).given() == {}


def test_help_and_mistakes(capsys):
    for arguments, message in (
        (["--help"], "noise that is added again"),
        (["--churn", "x"], "invalid float value: 'x'"),
        (["--mode", "c"], "invalid choice: 'c'"),
        (["--noise", "1"], "--noise is called --churn now: write that instead"),
        (["--h"], "--h is called --height and --width now"),
    ):
        with pytest.raises(SystemExit):
            parsed(*arguments)
        out = capsys.readouterr()
        assert message in out.out + out.err
        assert "--noise" not in out.out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"churn": 1.5}, "churn is 1.5: it must be from 0 to 1"),
        ({"churn": float("inf")}, "churn is inf: it must be finite"),
        ({"churn": "1"}, "the call.churn must be a number, got '1'"),
        ({"churn": True}, "the call.churn must be a number, got True"),
        ({"chrun": 0.1}, "unknown key 'chrun' in the call: did you mean 'churn'?"),
        ({"noise": 0.1}, "'noise' in the call is called 'churn' now"),
        ({"mode": "c"}, "the call.mode must be one of 'a', 'b', got 'c'"),
        ({"negative_prompt": "a\0b"}, "negative_prompt: has a NUL character"),
    ],
)
def test_wrong_values_are_one_sentence(given, message):
    with pytest.raises(ConfigError) as caught:
        read_options(More, given)
    assert message in str(caught.value)


def test_what_is_left_out_comes_from_the_model():
    defaults = GenerationDefaults(num_frames=3, size=(16, 32), num_inference_steps=9, guidance_scale=2.0, eta=0.5)
    filled = More(width=64).filled(defaults)
    assert (filled["num_frames"], filled["height"], filled["width"], filled["eta"]) == (3, 16, 64, 0.5)
    assert (filled["num_inference_steps"], filled["guidance_scale"], filled["churn"]) == (9, 2.0, 0.5)
    assert filled["sampler"] == "ddim"
    assert More(sampler="ddpm").filled(defaults)["eta"] is None  # only DDIM has one
    distilled = replace(defaults, sampler="lcm")
    found = [
        (given["sampler"], given["eta"]) for given in (More().filled(distilled), More(sampler="ddim").filled(distilled))
    ]
    assert found == [("lcm", None), ("ddim", 0.5)]


def test_a_function_shows_the_options_that_it_takes():
    @takes_options(More)
    def call(prompt: str, *, seed: int = 0, **options: object) -> None:
        """Do."""

    shown = inspect.signature(call).parameters
    assert list(shown)[:2] == ["prompt", "seed"] and "options" not in shown
    assert shown["churn"].default == 0.5 and shown["churn"].kind is inspect.Parameter.KEYWORD_ONLY
