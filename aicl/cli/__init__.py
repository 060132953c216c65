"""The command `aicl`: one verb, one file of this package.

A verb's module has `parser()`, which declares its options, and `main(args)`, which does the work and imports what that
takes. So help and mistakes in the options come at once, and a new verb is one file and one entry of `VERBS`.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import make_dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from lvdm import cli

OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
VERBS = {
    "sample": "generate videos whose action is shown by reference videos",
    "train": "train an autoencoder, a base model or AICL from a config",
    "evaluate": "score generated videos, and set results side by side",
    "reproduce": "measure the paper's tables and our experiments",
    "convert": "convert a published checkpoint into a model folder",
    "export": "put what training runs made into one folder that can be shared",
    "calibrate": "measure which references are usual for an adapter, so that samples from others get a warning",
    "check-data": "find the broken videos of a data set",
    "cache": "encode a data set once, for faster training",
    "index": "make a library of clips, to find references in",
    "search": "find clips of a library by text, motion or an example",
    "make-puppets": "write clips of the puppet world, a data set like any other",
    "benchmark": "measure what the library costs on this machine",
    "quickstart": "show in one video what AICL does, with the shipped models",
    "demo": "try AICL in a browser: prompts, references, videos beside each other",
    "doctor": "say what this machine can do, and what will not work and why",
    "user-study": "let people compare videos in a browser, and count",
}

ELSEWHERE = {"make-puppets": "aicl.puppets.make_puppets", "quickstart": "aicl.puppets.quickstart"}
"""Verbs of a package of its own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `aicl VERB ...` and exit. `arguments`: those after the program's name, by default the process's."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in VERBS:
        run_verb(arguments[0], arguments[1:])
    width = max(map(len, VERBS)) + 2
    parser = argparse.ArgumentParser(
        prog="aicl",
        description="Action in-context learning for video diffusion models (arXiv 2403.11535).",
        epilog="verbs:\n" + "".join(f"  {verb:{width}}{about}\n" for verb, about in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"aicl {_version()}")
    parser.add_argument("verb", metavar="VERB", help="what to do; 'aicl VERB --help' says how")
    verb = parser.parse_args(arguments[:1]).verb
    near = difflib.get_close_matches(verb, VERBS, n=1)
    parser.error(f"there is no verb '{verb}': " + (f"did you mean '{near[0]}'?" if near else "see aicl --help"))


def run_verb(verb: str, arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit, as the scripts of a checkout do. Exit codes and errors: see `lvdm.cli.run`."""
    module = verb_module(verb)
    cli.run(lambda: module.main(parse(verb, arguments)))


def parse(verb: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a verb. Exits with status 2, after a sentence on stderr, for what it does not know."""
    parser: Parser = verb_module(verb).parser()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser.check_spelling(arguments)
    if not parser.takes_overrides:
        return parser.parse_args(arguments)
    # In front of the options, none of several values can take them for its own.
    part, arguments = (arguments[:1], arguments[1:]) if parser.has_parts else ([], arguments)
    flags = parser.flags(*part)
    settings = [
        each
        for before, each in zip(["", *arguments], arguments)
        if OVERRIDE.match(each) and (before in flags or not before.startswith("-"))
    ]
    return parser.parse_args([*part, *settings, *(each for each in arguments if each not in settings)])


def data_schema() -> type:
    """What may be set in the config of a training by commands that read its data and train nothing, for checking
    overrides: all that `aicl train` takes in these sections, so that one set of overrides serves them all."""
    from lvdm.data import DataConfig
    from lvdm.training.settings import LoggingSettings, RunSettings, TrainingSettings

    sections = {"run": RunSettings, "training": TrainingSettings, "logging": LoggingSettings, "data": DataConfig}
    return make_dataclass("Config", [*sections.items(), ("references", Any)])


def verb_module(verb: str) -> ModuleType:
    """The module of a verb, one of `VERBS`."""
    return import_module(ELSEWHERE.get(verb, f"aicl.cli.{verb.replace('-', '_')}"))


class Parser(argparse.ArgumentParser):
    """A verb's parser; it may take settings, key=value, which stand anywhere between its options."""

    takes_overrides = False
    has_parts = False
    """Whether the name of one of its parts comes first, as in `aicl benchmark step`."""

    def flags(self, part: str = "") -> set[str]:
        """The options of this parser, or of one of its parts, that have no value."""
        return {name for action in self._part(part)._actions if action.nargs == 0 for name in action.option_strings}

    def check_spelling(self, arguments: Sequence[str]) -> None:
        """Name an option that does not exist, and one that is spelt alike, before what is missing without it."""
        part = self._part(next((each for each in arguments if not each.startswith("-")), ""))
        known = list(part._option_string_actions)
        for argument in arguments:
            name = argument.partition("=")[0]
            if name == "--":
                return
            if not name.startswith("--") or " " in argument or any(each.startswith(name) for each in known):
                continue
            near = difflib.get_close_matches(name, known, n=1)
            part.error(f"there is no option {name}" + (f": did you mean {near[0]}?" if near else ""))

    def error(self, message: str) -> NoReturn:
        """One sentence on stderr, and status 2. The usage of a verb fills the screen."""
        parts = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        if parts and message == f"the following arguments are required: {parts[0].dest}":
            message = f"say what to do, one of {', '.join(parts[0].choices)}"
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and not unknown.startswith("-"):  # words, such as those of a prompt
            settings = ", and a setting is written key=value" if self.takes_overrides else ""
            message = f"'{unknown}' belongs to no option: put what has several words in quotes{settings}"
        self.exit(2, f"error: {message.rstrip('.')} ({self.prog} --help lists the options)\n")

    def _part(self, name: str) -> argparse.ArgumentParser:
        """The parser of the part of that name, this one if there is none."""
        parts = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        found: argparse.ArgumentParser = next((each.choices[name] for each in parts if name in each.choices), self)
        return found

    def add_overrides(self, help: str) -> None:
        """Take any number of settings as `overrides`."""
        self.add_argument("overrides", nargs="*", metavar="key=value", help=help)
        self.takes_overrides = True


def new_parser(verb: str, description: str | None) -> Parser:
    """An empty parser for a verb, with its module's docstring as the help text."""
    formatter = argparse.RawDescriptionHelpFormatter
    return Parser(prog=f"aicl {verb}", description=description, formatter_class=formatter)


def _version() -> str:
    from aicl import __version__

    return __version__
