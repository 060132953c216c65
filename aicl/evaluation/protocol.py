"""What was measured and how, beside every number: results as JSON files that explain themselves.

Two results may stand in one table only where their protocols agree in all that a difference could come from, other than
the model: the data, the frames, the counts, the measuring networks and their versions.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aicl.evaluation import accuracy, appearance, clip_scores, features, frechet, motion
from aicl.evaluation.statistics import Estimate
from lvdm import config as configs
from lvdm.errors import DataError
from lvdm.files import write_json

FORMAT_VERSION = 1
VERSIONS = {
    "accuracy": accuracy.VERSION,
    "appearance": appearance.VERSION,
    "clip_scores": clip_scores.VERSION,
    "features": features.VERSION,
    "frechet": frechet.VERSION,
    "motion": motion.VERSION,
}
_LIBRARIES = ("aicl", "torch", "torchvision", "open_clip_torch", "transformers", "numpy", "scipy", "av", "decord")
_DESCRIPTIVE = ("libraries", "device")  # may differ inside a table


@dataclass
class Protocol:
    """All that a number depends on besides the model and its settings.

    data: which set, in words. generated, real: counts of videos; real_list: hash of the list of real videos. seeds: of
    the videos, empty where they are not known. prompts: hash of the list of prompts. stride or fps: how frames were
    taken, one of them. filter: how videos were resized. networks: SHA-256 of each measuring network. settings: options
    of the metrics.
    """

    data: str
    generated: int
    real: int
    frames: int
    size: tuple[int, int]
    seeds: list[int]
    prompts: str
    real_list: str
    stride: float | None = None
    fps: float | None = None
    filter: str = "none"
    networks: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=lambda: dict(VERSIONS))
    libraries: dict[str, str] = field(default_factory=lambda: library_versions())
    device: str = field(default_factory=lambda: device_name())

    def differences(self, other: "Protocol") -> list[str]:
        """The names of the fields that keep two results out of one table."""
        skipped = set(_DESCRIPTIVE)
        if not (self.seeds and other.seeds):  # videos from elsewhere have no known seeds
            skipped.add("seeds")
        names = [f.name for f in dataclasses.fields(self) if f.name not in skipped]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclass
class Result:
    """One row of a table. model: what made the videos, with its hash and settings; a real set has a name only.

    metrics: estimates by their short name (see `tables.COLUMNS`); by_seed: their values of each seed. differences: to
    the row `baseline` on the same samples. lines: values to be read beside them (floors, static and real videos), not
    of this row's model. videos: hash of the list of generated videos, or of what they follow from.
    """

    row: str
    model: dict[str, Any]
    metrics: dict[str, Estimate]
    protocol: Protocol
    lines: dict[str, float] = field(default_factory=dict)
    by_seed: dict[str, list[float]] = field(default_factory=dict)
    baseline: str | None = None
    differences: dict[str, Estimate] = field(default_factory=dict)
    videos: str = ""
    format: int = FORMAT_VERSION


def write_result(path: str | os.PathLike, result: Result) -> None:
    """Write a result as JSON, atomically."""
    write_json(path, configs.to_mapping(result))


def read_result(path: str | os.PathLike) -> Result:
    """Read such a file. Raises DataError where it is missing, no result, or of another format version."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"result {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON file: measure again") from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT_VERSION:
        raise DataError(f"{path} is no result of format {FORMAT_VERSION}: measure again with this version")
    return configs.from_mapping(Result, content, where=str(path))


def check_comparable(results: Sequence[Result]) -> None:
    """Raise DataError, naming the rows and the fields, unless all results follow one protocol."""
    for other in results[1:]:
        first = results[0]
        if names := first.protocol.differences(other.protocol):
            values = "; ".join(
                f"{name}: {getattr(first.protocol, name)!r} against {getattr(other.protocol, name)!r}" for name in names
            )
            raise DataError(f"'{first.row}' and '{other.row}' were measured differently ({values}): no common table")


def library_versions(names: Iterable[str] = _LIBRARIES) -> dict[str, str]:
    """Installed versions of what a number can depend on."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """The GPU, or the machine's processor type."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
