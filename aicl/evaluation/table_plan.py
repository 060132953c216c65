"""One table on one benchmark, as it is planned: its metrics, its rows, and what makes their videos."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch

from aicl.evaluation.benchmark import build_benchmark, read_as
from aicl.evaluation.generate import Made, VideoStore
from aicl.evaluation.method import build_method, check_row
from aicl.evaluation.metric import Evaluator, Metric, get_metric, get_metrics
from aicl.evaluation.observe import ObservationStore, check_comparable_length
from aicl.evaluation.presets import Preset, SetSpec
from aicl.evaluation.row import Row
from aicl.evaluation.sample import Sample
from aicl.evaluation.source import Source, reference_captions
from aicl.evaluation.tables import STUDIED
from aicl.model_files import find_model_files
from lvdm.errors import CheckpointError, ConfigError, VideoError
from lvdm.hashing import text_hash

SPEED = "dynamic_degree"  # what groups of samples are formed by, of their references


class TablePlan:
    """What a set of a preset asks for, and what stands in its way. observations: the folder of what evaluators saw.

    Raises UserError for a benchmark that is not there, metrics that are unknown, and sets of too few videos.
    """

    def __init__(
        self,
        preset: Preset,
        spec: SetSpec,
        evaluators: Mapping[str, Evaluator],
        videos: VideoStore,
        observations: Path,
        device: torch.device,
    ) -> None:
        self.preset, self.spec, self.evaluators, self.device = preset, spec, evaluators, device
        self.videos = videos
        self.benchmark = build_benchmark({**preset.benchmark, **spec.benchmark}, device)
        auto = "bfloat16" if device.type == "cuda" else "float32"
        self.observations = ObservationStore(observations, read_as(self.benchmark))
        self.dtype: torch.dtype = getattr(torch, auto if preset.precision == "auto" else preset.precision)
        self._samples: dict[int, list[Sample]] = {}
        self._sources: dict[Row, Source | None] = {}
        self._obstacles: dict[Row, str | None] = {}
        self._methods = {row: build_method(row.method) for row in preset.rows if row.method is not None}
        count = self.benchmark.count
        if count is not None and preset.videos > count:
            raise ConfigError(f"{self.benchmark} has {count} samples, videos={preset.videos} are wanted: set fewer")

    # -- what is measured

    @cached_property
    def metrics(self) -> list[Metric]:
        """Those that are asked for, and whose evaluators are there."""
        return [metric for metric in self.asked if metric.roles() <= self.evaluators.keys()]

    @cached_property
    def asked(self) -> list[Metric]:
        """All metrics that are asked for."""
        return get_metrics([name for name in self.preset.measured(self.spec) if name not in STUDIED], self.title)

    @property
    def title(self) -> str:
        """Of the table."""
        return ": ".join(part for part in (self.preset.title, self.spec.title or str(self.benchmark)) if part)

    @property
    def rows(self) -> list[Row]:
        """Of the table."""
        return self.preset.rows

    def roles(self, side: str) -> set[str]:
        """The evaluators that are to look at one side of the comparison, see metric.CONTEXT, or at the "videos"."""
        everywhere = side in ("videos", "real")
        roles = {role for m in self.metrics if everywhere or side in m.context() for role in m.roles()}
        if side == "reference" and any(row.group for row in self.rows):
            roles |= get_metric(SPEED).roles()
        return roles

    def check_counts(self) -> None:
        """Raise ConfigError, before the work, where a set has too few videos for a metric or its frames are too few."""
        benchmark, preset = self.benchmark, self.preset
        for role, evaluator in self.evaluators.items():
            if evaluator.min_frames > benchmark.frames and any(role in metric.roles() for metric in self.metrics):
                raise ConfigError(
                    f"{evaluator.name} needs {evaluator.min_frames} frames or more, and {benchmark.frames} are "
                    "compared: set benchmark.frames higher, or leave its metrics out"
                )
        rows = [row for row in self.rows if self.obstacle(row) is None]
        groups = max((row.group[1] if row.group else 1 for row in rows), default=1)
        real = len(self.benchmark.real(preset.real)) if rows else 0
        for metric in (metric for metric in self.metrics if metric.least is not None and rows):
            assert metric.least is not None
            least, advice = metric.least(self.evaluators), "or set allow_few=true if only trends matter"
            if preset.allow_few:  # its interval leaves out one of three or more
                least, advice = 3, f"or leave {metric.name} out of its metrics"
            counts = preset.videos // groups * len(preset.seeds), real
            if min(counts) < least:
                raise ConfigError(
                    f"'{self.title}': {metric.column} needs {least} videos or more a row, and as many real ones, got "
                    f"{counts[0]} and {counts[1]}: raise videos and real, {advice}"
                )

    # -- where videos come from

    def source(self, row: Row) -> Source | None:
        """What makes the videos of a row, None for real clips. Raises UserError where it is not there."""
        if row not in self._sources:
            self._sources[row] = self._source(row)
        return self._sources[row]

    def _source(self, row: Row) -> Source | None:
        if row.kind == "real":
            return None
        name = str(row.model)
        path = self.preset.model.get(name)
        if path is None:
            raise CheckpointError(f"no model '{name}' is given: model.{name}=FOLDER")
        adapter = None
        if row.references:
            adapter = self.preset.adapter.get(row.adapter) if row.adapter is not None else None
        files = find_model_files(path, adapter)
        if row.references and row.adapter != name and row.adapter is not None and adapter is None:
            raise CheckpointError(f"no adapter '{row.adapter}' is given: adapter.{row.adapter}=FILE")
        method = self._methods.get(row)
        if method is not None:  # it changes what a network computes, which graphs of it would not notice
            return Source(row, files, self.dtype, method=method, pool=self._pool(row) if method.pooled else "")
        return Source(row, files, self.dtype, self.preset.compile if row.kind == "generated" else "none")

    def _pool(self, row: Row) -> str:
        """A hash of all references that a row shows, with what they are called. Raises ConfigError for no captions."""
        samples = [sample for seed in self.preset.seeds for sample in self.samples(seed)]
        shown = {
            f"{sample.label} {self.benchmark.content(clip)} {text}"
            for sample in samples
            for clip, text in zip(row.shown(sample), reference_captions(row, sample))
        }
        return text_hash(sorted(shown))

    def obstacle(self, row: Row) -> str | None:
        """Why a row cannot be run, or could not be made when it was tried, or None."""
        if row not in self._obstacles:
            self._obstacles[row] = self._obstacle(row)
        return self._obstacles[row] or self.failure(row)

    def failure(self, row: Row) -> str | None:
        """Why the videos of a row could not be made when it was tried, or None."""
        if not self.videos.failures or self._obstacles.get(row) is not None:
            return None
        gone = next((made.path for made in self.made(row) if not made.path.is_file()), None)
        return None if gone is None else self.videos.failures.get(gone.parent)

    def _obstacle(self, row: Row) -> str | None:
        try:
            source = self.source(row)
            if source is None:
                return None
            source.parts()
            source.check(self.benchmark.size)
            first = self.benchmark.samples(self.preset.seeds[0], 0, 1)[0]
            if len(row.shown(first)) < row.references:
                chosen = f" chosen by {row.chosen_by}" if row.chosen_by else ""
                return f"{self.benchmark} has no {'wrong ' if row.wrong else ''}references{chosen}"
            if first.target is None and source.takes_target():
                return f"{self.benchmark} has no real clip of each sample"
            if source.method is not None:
                source.method.check(source.config, first)
                check_row(source.method, row)
            if row.kind == "generated":
                defaults = source.defaults
                check_comparable_length(defaults.num_frames, defaults.save_fps, self.benchmark)
        except (CheckpointError, ConfigError, VideoError) as error:
            return str(error)
        return None

    def samples(self, seed: int) -> list[Sample]:
        """The samples of a seed."""
        if seed not in self._samples:
            self._samples[seed] = self.benchmark.samples(seed, 0, self.preset.videos)
        return self._samples[seed]

    def made(self, row: Row) -> list[Made]:
        """The videos to generate for a row; none for real clips."""
        source = self.source(row)
        if source is None:
            return []
        return [
            made
            for seed in self.preset.seeds
            for made in self.videos.videos(source, self.benchmark, seed, self.samples(seed))
        ]

    def all_made(self) -> list[Made]:
        """The videos to generate for all rows that can be run."""
        return [made for row in self.rows if self.obstacle(row) is None for made in self.made(row)]
