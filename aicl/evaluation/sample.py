"""What is made for a benchmark: a sample, and the real clips that belong to it; quick to import."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_REFERENCES = 3


@dataclass(frozen=True)
class Clip:
    """A real clip. key: names it within its benchmark. path: its file; or drawn: what the benchmark draws it from.

    caption: its own; bare: of its action alone, where that is known.
    """

    key: str
    caption: str
    label: str | None = None
    bare: str | None = None
    path: Path | None = None
    drawn: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Sample:
    """One video to make. seed: of its noise. label: the class of the action, where the benchmark has classes.

    references: MAX_REFERENCES independent clips of the same action; wrong: as many of one other action, or none.
    chosen: way of choosing -> as many clips, chosen from a library by the prompt or an example; they may show anything.
    target: a real clip that does what the prompt says; an image-to-video model gets its first frame.
    """

    number: int
    seed: int
    prompt: str
    label: str | None
    references: tuple[Clip, ...]
    wrong: tuple[Clip, ...] = ()
    target: Clip | None = None
    words: str = ""  # those of the prompt that name the action, for maps of the attention to them
    chosen: Mapping[str, tuple[Clip, ...]] = field(default_factory=dict, hash=False)
