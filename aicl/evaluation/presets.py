"""Tables and experiments as presets over (benchmark, models, adapters): which rows, how many videos, what to measure.

A preset is put together from files of configs/: benchmarks/NAME.yaml (the data, the evaluators, where models lie),
tables/TABLE.yaml (the rows) and, where there is one, tables/NAME/TABLE.yaml (what is special about this table there).
Later ones win, and key=value wins over all. Quick to import, so that a misspelt key is refused at once.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aicl.evaluation.row import Row
from aicl.evaluation.sample import MAX_REFERENCES
from lvdm import config as configs
from lvdm.errors import ConfigError


@dataclass
class SetSpec:
    """One table of a preset: the benchmark with other options, and, where they differ, other metrics."""

    title: str = ""
    benchmark: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] | None = None


@dataclass
class PictureSpec:
    """One picture for each of `samples` samples: "features" of the generated video (Fig. 4), "attention" (Fig. 6), or
    "motion_features", those of the prism.

    "samples" is one sheet of all of them: the first reference, the base model's video and AICL's; and an animation of
    the first few. model, adapter: names, as in a row.
    """

    kind: Literal["samples", "features", "motion_features", "attention"]
    model: str = "lvdm"
    adapter: str | None = "lvdm"
    samples: int = 4
    references: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.references <= MAX_REFERENCES or self.samples < 1:
            raise ConfigError(f"a picture needs 1 to {MAX_REFERENCES} references and one sample or more")


@dataclass
class Preset:
    """What to measure.

    rows: of each table; sets: one table each, with these options of the benchmark. baseline: the label of a row;
    generated rows are then also compared with it sample by sample, unless they name another. paper: which of the
    paper's tables it is, "I" to "V" or "pseudo-words".
    model, adapter: paths by the names that rows use; None is not there. evaluators: see
    `aicl.evaluation.metric.build_evaluators`. metrics: the columns. user_study: a report of `aicl user-study`, for the
    columns us_cc and us_fc; its groups are called like the rows' models.
    seeds, videos: of each seed and row; real: how many real videos they are compared with, None for all. batch_size:
    videos made at once; measure_batch_size: those looked at together. precision: of the generating model; "auto" is
    bfloat16 on a GPU and float32 elsewhere. compile: how the UNet runs on a GPU, see `lvdm.acceleration`; the ways
    round differently. allow_few: measure sets of too few videos, for a first look only.
    """

    title: str
    benchmark: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    sets: list[SetSpec] = field(default_factory=lambda: [SetSpec()])
    pictures: list[PictureSpec] = field(default_factory=list)
    baseline: str | None = None
    paper: str | None = None
    notes: list[str] = field(default_factory=list)
    model: dict[str, str | None] = field(default_factory=dict)
    adapter: dict[str, str | None] = field(default_factory=dict)
    evaluators: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    user_study: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    videos: int = 100
    real: int | None = None
    batch_size: int = 1
    measure_batch_size: int = 32
    compile: Literal["none", "graphs", "full"] = "graphs"
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    allow_few: bool = False

    def __post_init__(self) -> None:
        from aicl.evaluation.tables import columns_of  # which imports the metrics

        kind = self.benchmark.get("kind")
        self.rows = [row for row in self.rows if row.only is None or kind in row.only]
        labels = [row.label for row in self.rows]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ConfigError(f"'{self.title}' has two rows '{twice}': give one of them another label")
        for name in (self.baseline, *(row.baseline for row in self.rows)):
            if self.rows and name is not None and name not in labels:
                raise ConfigError(f"the baseline of '{self.title}' is '{name}': name one of its rows, {labels}")
        for metrics in (self.metrics, *(spec.metrics for spec in self.sets if spec.metrics is not None)):
            columns_of(metrics)
        if not self.sets:
            raise ConfigError(f"'{self.title}' has no sets: give one or more, or leave sets out for a single table")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds must be one or more different numbers from 0 on, got {self.seeds}")
        if (
            self.videos < 2
            or (self.real is not None and self.real < 2)
            or min(self.batch_size, self.measure_batch_size) < 1
        ):
            raise ConfigError("videos and real must each be 2 or more, batch sizes 1 or more")
        for row in self.rows:
            if row.group is not None and self.videos < (least := 2 * row.group[1]):
                raise ConfigError(
                    f"row '{row.label}': {row.group[1]} groups need {least} videos or more, got {self.videos}"
                )

    @property
    def kind(self) -> str:
        """The kind of the benchmark."""
        return str(self.benchmark.get("kind"))

    def measured(self, spec: SetSpec) -> list[str]:
        """The metrics of one table."""
        return self.metrics if spec.metrics is None else spec.metrics


def load_preset(files: Sequence[str | os.PathLike[str]], overrides: Iterable[str] = ()) -> Preset:
    """Read a preset from its files. Raises ConfigError for keys and values that do not fit."""
    return configs.from_mapping(Preset, read_preset(files, overrides), where=Path(files[-1]).name)


def read_preset(files: Sequence[str | os.PathLike[str]], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A preset as a mapping, in which each key of `overrides` is known. Raises ConfigError for one that is not."""
    return configs.load(files, overrides, Preset)
