"""Options that are declared once, as fields of a dataclass with their help and range.

One declaration makes an option a keyword of the pipelines, an option of the command line, a key of prompts files and
presets, and an entry of the records beside videos. This module is imported before options are read: it imports nothing
slow.
"""

import argparse
import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast

from lvdm import config as configs
from lvdm.errors import ConfigError
from lvdm.outside import check_text

SamplerName = Literal["ddim", "ddpm", "dpmpp_2m", "lcm", "scheduler"]
"""Of `lvdm.diffusion.samplers.SAMPLERS`; the last one is what models of diffusers have of their own."""

F = TypeVar("F", bound=Callable[..., Any])


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    group: str = "sampling",
    spellings: tuple[str, ...] = (),
    metavar: str | None = None,
) -> Any:
    """A field of an `Options` class.

    least, above, most: the range of a number, >=, > and <=. group: its heading in --help. spellings: further names on
    the command line. A list as default is copied for each object.
    """
    about: dict[str, Any] = {"help": help, "least": least, "above": above, "most": most, "group": group}
    about |= {"spellings": spellings, "metavar": metavar}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=about)
    return dataclasses.field(default=default, metadata=about)


@dataclass(kw_only=True)
class Options:
    """What classes of options share: their values are checked when one is made, and ConfigError names what is wrong.

    RENAMED: old name -> new name of options that had another name before.
    """

    RENAMED: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), field.metadata)

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain values: what identifies them in caches and records."""
        fresh = {f.name: f.default for f in dataclasses.fields(self)}
        fresh |= {f.name: f.default_factory() for f in dataclasses.fields(self) if callable(f.default_factory)}
        values = {name: getattr(self, name) for name in fresh}
        return {name: configs.to_mapping(value) for name, value in values.items() if value != fresh[name]}


@dataclass(kw_only=True)
class GenerationOptions(Options):
    """How a video is generated; None is the model's own default."""

    RENAMED: ClassVar[dict[str, str]] = {
        "steps": "num_inference_steps",
        "guidance": "guidance_scale",
        "size": "height and width",
    }

    num_frames: int | None = option(None, "length of the video in frames", least=1, most=2**16)
    height: int | None = option(None, "of the video, in pixels", least=1, most=2**16)
    width: int | None = option(None, "of the video, in pixels", least=1, most=2**16)
    fps: int | None = option(None, "frame rate (1/s) to condition on, for models that take one", least=1)
    num_inference_steps: int | None = option(
        None,
        "steps of the sampler (the published models take some more where the number does not divide 1000)",
        least=1,
        most=2**16,
        spellings=("steps",),
    )
    sampler: SamplerName | None = option(  # noqa: RUF009 (a Literal by another name, which cannot change)
        None,
        "how noise becomes a video (default: the model's own: ddim, or lcm for T2V-Turbo; models of diffusers have "
        "their own scheduler alone)",
    )
    eta: float | None = option(None, "noise that DDIM adds, 0 to 1", least=0, most=1)
    guidance_scale: float | None = option(
        None, "strength of the text, and of the references unless theirs is given; 1 is none", spellings=("guidance",)
    )
    negative_prompt: str | None = option(None, "what the video must not show")
    step_cache: int = option(
        1,
        "steps from one whole call of a UNet to the next, only its outermost level between (default: 1, all)",
        least=1,
    )
    window_frames: int | None = option(
        None,
        "frames that the network sees at once: a longer video is made of windows that overlap (default: all)",
        least=2,
        most=2**16,
    )
    window_overlap: int | None = option(
        None, "frames that two neighbouring windows share (default: half a window)", least=0, most=2**16
    )

    def clip(self) -> tuple[int, tuple[int, int]]:
        """The number of frames and the size (height, width). Raises ConfigError where these are not filled in."""
        if self.num_frames is None or self.height is None or self.width is None:
            raise ConfigError("num_frames, height and width are needed: fill them in with the model's defaults")
        return self.num_frames, (self.height, self.width)

    def windows(self) -> tuple[int, int] | None:
        """(frames, shared frames) of the windows that the video is made of; None where it is made at once.

        Raises ConfigError for an overlap without windows.
        """
        if self.window_frames is None:
            if self.window_overlap is not None:
                raise ConfigError("window_overlap says what windows share: give window_frames, or leave it out")
            return None
        return self.window_frames, self.window_frames // 2 if self.window_overlap is None else self.window_overlap

    def filled(self, defaults: Any) -> dict[str, Any]:
        """All options by name, those that are None taken from the attributes of `defaults` where it has them.

        An eta is filled in for DDIM alone, which is the only sampler that has one.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        filled = {name: getattr(defaults, name, None) if value is None else value for name, value in values.items()}
        if filled["sampler"] != "ddim":
            filled["eta"] = self.eta
        return filled


OptionsType = TypeVar("OptionsType", bound=Options)


def read_options(cls: type[OptionsType], given: Mapping[str, Any], where: str = "the call") -> OptionsType:
    """Options from keywords or a mapping. Raises ConfigError for an unknown name, a wrong type or a wrong value."""
    return configs.from_mapping(cls, given, where=where)


def takes_options(cls: type[Options]) -> Callable[[F], F]:
    """Decorator for a function whose `**options` are fields of `cls`: its signature and help show them one by one.

    A name that is neither an option nor an argument, and too many arguments without a name, raise ConfigError.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        hints = typing.get_type_hints(cls)
        added = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in dataclasses.fields(cls)
        ]
        by_place = [p.name for p in own if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        by_name = [p.name for p in own if p.kind is p.KEYWORD_ONLY]
        names = [name for name in (*by_place, *by_name, *(p.name for p in added)) if name != "self"]
        renamed = configs.renamed_keys(cls)

        @functools.wraps(function)
        def checked(*given: Any, **named: Any) -> Any:
            if len(given) > len(by_place):
                such = f", such as {by_name[0]}=" if by_name else ""
                raise ConfigError(f"only {by_place[-1]} may be given without its name: name all else{such}")
            configs.check_keys(named, names, "the call", renamed)
            return function(*given, **named)

        checked.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return cast(F, checked)

    return decorate


def add_arguments(
    parser: argparse.ArgumentParser, cls: type[Options], headings: Mapping[str, "str | argparse._ArgumentGroup"]
) -> None:
    """Put the options of `cls` on a command line; what is not given there is absent from the parsed arguments.

    headings: group -> its heading in --help, or the group of the parser that has it, in order. An old name ends in a
    sentence that says the new one.
    """
    groups = {
        name: parser.add_argument_group(heading) if isinstance(heading, str) else heading
        for name, heading in headings.items()
    }
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        about = field.metadata
        if about.get("group") not in groups:
            continue
        names = [field.name, *about["spellings"]]
        flags = [f"--{name.replace('_', '-')}" for name in names]
        kind = _argument(hints[field.name], about["metavar"])
        groups[about["group"]].add_argument(
            *flags, dest=field.name, default=argparse.SUPPRESS, help=about["help"], **kind
        )
    for old, new in cls.RENAMED.items():
        with suppress(argparse.ArgumentError):  # where the old name is an accepted spelling
            parser.add_argument(f"--{old.replace('_', '-')}", action=_Renamed, new=new, help=argparse.SUPPRESS)


class _Renamed(argparse.Action):
    """An option that is called otherwise now."""

    def __init__(self, option_strings: Sequence[str], dest: str, new: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, help=help)
        self.new = new

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in self.new.split(" and "))
        parser.error(f"{option} is called {names} now: write that instead")


def _argument(hint: Any, metavar: str | None) -> dict[str, Any]:
    """The keywords of `add_argument` for a type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        [hint] = [part for part in typing.get_args(hint) if part is not type(None)]
    if hint is bool:
        return {"action": "store_true"}
    if typing.get_origin(hint) is Literal:
        return {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) is list:
        [item] = typing.get_args(hint)
        return {"nargs": "+", "metavar": metavar, "type": item if item in (int, float) else str}
    return {"type": hint, "metavar": metavar or {int: "N", float: "X"}.get(hint)}


def _check(name: str, value: Any, about: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a value is one that can be written and lies in its option's range."""
    if isinstance(value, str):
        check_text(value, name, ConfigError)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise ConfigError(f"{name} is {value}: it must be finite")
    least, above, most = about.get("least"), about.get("above"), about.get("most")
    if least is not None and most is not None and not least <= value <= most:
        raise ConfigError(f"{name} is {value}: it must be from {least} to {most}")
    if least is not None and value < least:
        raise ConfigError(f"{name} is {value}: it must be at least {least}")
    if above is not None and value <= above:
        raise ConfigError(f"{name} is {value}: it must be above {above}")
