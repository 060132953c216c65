"""One table on one benchmark: which videos it is made of, what is seen of them, and the estimates of its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from aicl.evaluation.benchmark import Clip, Sample, build_benchmark
from aicl.evaluation.estimates import (
    describe,
    estimate,
    estimates_by_seed,
    lines_beside,
    own_rates,
    paired_differences,
)
from aicl.evaluation.generate import Made, VideoStore
from aicl.evaluation.metric import Evaluator, Metric, Observed, TextEvaluator, get_metric, get_metrics
from aicl.evaluation.observe import (
    ObservationStore,
    View,
    check_comparable_length,
    generated_view,
    look,
    look_at_texts,
    texts_seen,
)
from aicl.evaluation.presets import Preset, SetSpec
from aicl.evaluation.results import Protocol, Result
from aicl.evaluation.row import Row, Source
from aicl.evaluation.statistics import Estimate
from aicl.evaluation.tables import STUDIED
from aicl.model_files import find_model_files
from lvdm import config as configs
from lvdm.checkpoints.folder import read_model_config
from lvdm.errors import CheckpointError, ConfigError, VideoError
from lvdm.hashing import text_hash

SPEED = "dynamic_degree"  # what groups of samples are formed by, of their references
_SIDES = ("reference", "other", "target")


class TableRun:
    """A set of a preset. Everything it computes follows from files, so several processes can share the work.

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
        benchmark = self.benchmark
        reading = f"{benchmark.frames} frames at {benchmark.fps:g} a second from the middle, {benchmark.size}"
        self.observations = ObservationStore(observations, reading)
        auto = "bfloat16" if device.type == "cuda" else "float32"
        self.dtype: torch.dtype = getattr(torch, auto if preset.precision == "auto" else preset.precision)
        self._samples: dict[int, list[Sample]] = {}
        self._observed: dict[Row, list[Observed]] = {}
        if benchmark.count is not None and preset.videos > benchmark.count:
            raise ConfigError(
                f"{benchmark} has {benchmark.count} samples, videos={preset.videos} are wanted: set fewer"
            )

    # -- what is measured

    @cached_property
    def metrics(self) -> list[Metric]:
        """Those that are asked for, and whose evaluators are there."""
        return [metric for metric in self._asked if metric.roles() <= self.evaluators.keys()]

    @cached_property
    def _asked(self) -> list[Metric]:
        return get_metrics([name for name in self.preset.measured(self.spec) if name not in STUDIED], self.title)

    @property
    def title(self) -> str:
        """Of the table."""
        return ": ".join(part for part in (self.preset.title, self.spec.title or str(self.benchmark)) if part)

    @property
    def rows(self) -> list[Row]:
        """Of the table."""
        return self.preset.rows

    def _roles(self, side: str) -> set[str]:
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
        return Source(row, files, self.dtype, self.preset.compile if row.kind == "generated" else "none")

    def obstacle(self, row: Row) -> str | None:
        """Why a row cannot be run, or None."""
        try:
            source = self.source(row)
            if source is None:
                return None
            source.parts()
            first = self.benchmark.samples(self.preset.seeds[0], 0, 1)[0]
            if len(row.shown(first)) < row.references:
                return f"{self.benchmark} has no {'wrong ' if row.wrong else ''}references"
            if first.target is None and source.takes_target():
                return f"{self.benchmark} has no real clip of each sample"
            if row.kind == "generated":
                defaults = read_model_config(source.files.base).defaults
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

    # -- what is seen of them

    def views(self) -> list[View]:
        """Everything that evaluators are to look at, in a fixed order."""
        views: list[View] = []
        rows = [row for row in self.rows if self.obstacle(row) is None]
        for row in rows:
            for seed in self.preset.seeds:
                for side in ("videos", *_SIDES):
                    if roles := self._roles(side):
                        views += [replace(view, roles=frozenset(roles)) for view in self._side(row, seed, side) or ()]
        if rows:
            roles = frozenset(self._roles("real"))
            views += [replace(self._view(clip), roles=roles) for clip in self._real()]
        return views

    def look(self, batch_size: int, rank: int, world_size: int) -> int:
        """Let evaluators look at what they have not seen, or at this process's share; returns how much that was."""
        label = f"'{self.title}'"
        self._views = {}
        return look(
            self.observations,
            self.views(),
            self.benchmark,
            self.evaluators,
            batch_size=batch_size,
            label=label,
            rank=rank,
            world_size=world_size,
        )

    def look_at_texts(self) -> None:
        """Let evaluators read the prompts."""
        prompts = [sample.prompt for seed in self.preset.seeds for sample in self.samples(seed)]
        for evaluator in self._readers():
            look_at_texts(self.observations, evaluator, [*prompts, *(clip.caption for clip in self._real())])

    def _readers(self) -> list[TextEvaluator]:
        roles = {role for metric in self.metrics if "prompt" in metric.needs for role in metric.roles()}
        return [e for role, e in self.evaluators.items() if role in roles and isinstance(e, TextEvaluator)]

    def _side(self, row: Row, seed: int, side: str) -> list[View] | None:
        """One view for each sample; None where the benchmark lacks such clips."""
        samples = self.samples(seed)
        if side == "videos" and row.kind != "real":
            source = self.source(row)
            assert source is not None
            made = self.videos.videos(source, self.benchmark, seed, samples)
            return [self._generated(each.path) for each in made]
        choose = {
            "videos": lambda sample: sample.target,
            "target": lambda sample: sample.target,
            "reference": row.compared,
            "other": row.contrast,
        }
        clips = [choose[side](sample) for sample in samples]
        return None if any(clip is None for clip in clips) else [self._view(clip) for clip in clips]

    def _view(self, clip: Clip) -> View:
        return View(self.benchmark.content(clip), clip=clip)

    def _generated(self, path: Path) -> View:
        if path not in self._views:
            self._views[path] = generated_view(path, ())
        return self._views[path]

    @cached_property
    def _views(self) -> dict[Path, View]:
        return {}

    def _real(self) -> list[Clip]:
        return self.benchmark.real(self.preset.real)

    def _seen(self, views: Sequence[View], roles: set[str]) -> dict[str, Tensor]:
        contents = [view.content for view in views]
        return {
            f"{role}.{name}": value
            for role in sorted(roles)
            for name, value in self.observations.read(self.evaluators[role], contents).items()
        }

    def _texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {
            f"{evaluator.role}.{name}": value
            for evaluator in self._readers()
            for name, value in texts_seen(self.observations, evaluator, prompts).items()
        }

    @cached_property
    def real(self) -> Observed:
        """What was seen of the real videos."""
        clips = self._real()
        labels = [clip.label for clip in clips]
        return Observed(
            videos=self._seen([self._view(clip) for clip in clips], self._roles("real")),
            texts=self._texts([clip.caption for clip in clips]),
            prompts=[clip.caption for clip in clips],
            labels=None if None in labels else [str(label) for label in labels],
            pool=self.benchmark.pool,
            classifier=self._classifier(),
            allow_few=self.preset.allow_few,
        )

    def observed(self, row: Row) -> list[Observed]:
        """What was seen of a row, seed by seed."""
        if row not in self._observed:
            self._observed[row] = [self._observe(row, seed) for seed in self.preset.seeds]
        return self._observed[row]

    def _observe(self, row: Row, seed: int) -> Observed:
        samples = self.samples(seed)
        views = {side: self._side(row, seed, side) for side in ("videos", *_SIDES)}
        shown = [row.shown(sample) or (row.compared(sample),) for sample in samples]
        labels = [sample.label for sample in samples]
        shown_labels = [clips[0].label for clips in shown]
        seen = {
            side: self._seen(found, roles) if found is not None and (roles := self._roles(side)) else {}
            for side, found in views.items()
        }
        prompts = [sample.prompt for sample in samples]
        whole = Observed(
            **seen,
            texts=self._texts(prompts),
            facts=self.benchmark.facts(samples, shown),
            prompts=prompts,
            labels=None if None in labels else [str(label) for label in labels],
            shown_labels=None if None in shown_labels else [str(label) for label in shown_labels],
            pool=self.benchmark.pool,
            real=self.real,
            classifier=self._classifier(),
            allow_few=self.preset.allow_few,
        )
        if row.group is None:
            return whole
        speed = get_metric(SPEED).values
        assert speed is not None
        order = speed(Observed(videos=whole.reference)).argsort(stable=True)
        return whole.select(order.tensor_split(row.group[1])[row.group[0]].sort().values)

    def _classifier(self):  # type: ignore[no-untyped-def]
        return self.evaluators.get("classifier")

    # -- numbers

    def result(self, row: Row) -> Result | None:
        """The estimates of one row, or None where it was not run."""
        if self.obstacle(row) is not None:
            return None
        parts = self.observed(row)
        whole = Observed.joined(parts)
        missing = {m.name: f"no evaluators.{min(m.roles() - self.evaluators.keys())} is given" for m in self._asked
                   if not m.roles() <= self.evaluators.keys()}  # fmt: skip
        missing |= {m.name: f"{self.benchmark} has no {lacks[0]}" for m in self.metrics if (lacks := m.missing(whole))}
        metrics = [metric for metric in self.metrics if metric.name not in missing]
        baseline, differences = self._differences(row, whole, metrics)
        contents = [v.content for seed in self.preset.seeds for v in self._side(row, seed, "videos") or ()]
        return Result(
            row=row.label,
            model=self._model(row),
            metrics={metric.name: estimate(metric, whole) for metric in metrics},
            protocol=self._protocol(len(whole)),
            lines=lines_beside(metrics, whole),
            by_seed=estimates_by_seed(metrics, parts),
            baseline=baseline,
            differences=differences,
            rates={
                "generated": own_rates(whole.videos),
                "real": own_rates(self.real.videos),
                "compared": [self.benchmark.fps],
            },
            missing=missing,
            videos=text_hash(contents),
        )

    def _differences(
        self, row: Row, whole: Observed, metrics: Sequence[Metric]
    ) -> tuple[str | None, dict[str, Estimate]]:
        """To the row's baseline on the same samples, of what is measured of each video."""
        label = row.baseline or self.preset.baseline
        other = next((other for other in self.rows if other.label == label), None)
        if other is None or other is row or {row.kind, other.kind} != {"generated"} or row.group != other.group:
            return None, {}
        if self.obstacle(other) is not None:
            return None, {}
        found = paired_differences(metrics, whole, Observed.joined(self.observed(other)))
        return (label, found) if found else (None, {})

    def _model(self, row: Row) -> dict[str, object]:
        source = self.source(row)
        about: dict[str, object] = {"row": configs.to_mapping(row)}
        if source is not None:
            parts = source.parts()
            about |= {"name": row.model, "files": {n: str(p) for n, p in parts.items()}}
            about |= {"sha256": self.videos.hashes(parts), "settings": source.settings()}
        return about

    def _protocol(self, count: int) -> Protocol:
        benchmark, preset = self.benchmark, self.preset
        networks, versions = describe(self.evaluators, self.metrics)
        clips = self._real()
        return Protocol(
            data=str(benchmark),
            generated=count,
            real=len(clips),
            frames=benchmark.frames,
            size=benchmark.size,
            seeds=list(preset.seeds),
            prompts=text_hash([sample.prompt for seed in preset.seeds for sample in self.samples(seed)]),
            real_list=text_hash(benchmark.content(clip) for clip in clips),
            fps=benchmark.fps,
            filter="antialiased bilinear to cover, centre crop",
            networks=networks,
            versions=versions,
            settings={"precision": str(self.dtype).removeprefix("torch.")},
        )
