"""What was measured and how, beside every number: results as JSON files that explain themselves.

Two results may stand in one table only where their protocols agree in all that a difference could come from, other than
the model: the data, the frames, the counts, the seeds, the evaluators and their versions.
"""

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from aicl.evaluation.statistics import Estimate
from lvdm import config as configs
from lvdm.errors import DataError
from lvdm.files import write_json
from lvdm.outside import hinted, read_json

FORMAT_VERSION = 2
_LIBRARIES = ("aicl", "torch", "torchvision", "open_clip_torch", "transformers", "numpy", "av", "decord")
_DESCRIPTIVE = ("libraries", "device")  # may differ inside a table
_COMMON = ("networks", "versions")  # by what both have: a result may lack a metric


@dataclass
class Protocol:
    """All that a number depends on besides the model and its settings.

    data: which set, in words. generated, real: counts of videos; real_list: hash of the list of real videos. seeds: of
    the samples, empty where they are not known. prompts: hash of the list of prompts. frames, size: of each video, as
    compared. fps or stride: how frames were taken, one of them; fps is the rate (1/s) at which all are compared.
    filter: how videos were resized. networks: of each role, the evaluator's name and SHA-256. versions: of evaluators,
    by role, and of metrics, by name. settings: whatever else is set.
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
    versions: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=lambda: library_versions())
    device: str = field(default_factory=lambda: device_name())

    def differences(self, other: "Protocol") -> dict[str, tuple[Any, Any]]:
        """What keeps two results out of one table: field -> its two values."""
        found: dict[str, tuple[Any, Any]] = {}
        for each in dataclasses.fields(self):
            ours, theirs = getattr(self, each.name), getattr(other, each.name)
            if each.name in _COMMON:
                both = ours.keys() & theirs.keys()
                ours, theirs = ({name: part[name] for name in sorted(both)} for part in (ours, theirs))
            if each.name == "seeds" and not (ours and theirs):  # videos from elsewhere have no known seeds
                continue
            if each.name not in _DESCRIPTIVE and ours != theirs:
                found[each.name] = (ours, theirs)
        return found


@dataclass
class Result:
    """One row of a table. model: what made the videos, with its hashes and settings; a real set has a name only.

    metrics: estimates by the metric's name; by_seed: their values of each seed; by_label: of judgements, the share of
    each label's videos. differences: to the row `baseline` on
    the same samples. lines: values to be read beside them (floors, static and real videos), by their text. rates: the
    frame rates (1/s) of generated and real videos as they are, and at which both are compared ("compared").
    missing: metrics that were asked for, with the reason why they are not here. videos: hash of the list of videos.
    """

    row: str
    model: dict[str, Any]
    metrics: dict[str, Estimate]
    protocol: Protocol
    lines: dict[str, float] = field(default_factory=dict)
    by_seed: dict[str, list[float]] = field(default_factory=dict)
    by_label: dict[str, dict[str, float]] = field(default_factory=dict)
    baseline: str | None = None
    differences: dict[str, Estimate] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    videos: str = ""
    format: int = FORMAT_VERSION


def write_result(path: str | os.PathLike[str], result: Result) -> None:
    """Write a result as JSON, atomically."""
    write_json(path, configs.to_mapping(result))


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read such a file. Raises DataError where it is missing, no result, or of another format version."""
    with hinted("measure again"):
        content = read_json(path, DataError)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT_VERSION:
        raise DataError(f"{path} is no result of format {FORMAT_VERSION}: measure again with this version")
    return configs.from_mapping(Result, content, where=str(path))


def check_comparable(results: Sequence[Result]) -> None:
    """Raise DataError, naming the rows and the fields, unless all results follow one protocol."""
    for index, other in enumerate(results):
        for first in results[:index]:  # every pair: seeds that are not known are like any
            if found := first.protocol.differences(other.protocol):
                values = "; ".join(f"{name}: {ours!r} against {theirs!r}" for name, (ours, theirs) in found.items())
                raise DataError(
                    f"'{first.row}' and '{other.row}' were measured differently ({values}): no common table"
                )


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
