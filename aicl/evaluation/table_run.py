"""One table on one benchmark: what is seen of its videos, and the estimates of its rows."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

from torch import Tensor

from aicl.evaluation.estimates import (
    describe,
    estimate,
    estimates_by_seed,
    lines_beside,
    own_rates,
    paired_differences,
    shares_by_label,
)
from aicl.evaluation.method import ADAPTATION_FILE
from aicl.evaluation.metric import Classifier, Metric, Observed, TextEvaluator, get_metric
from aicl.evaluation.observe import View, generated_view, look, look_at_texts, texts_seen
from aicl.evaluation.results import Protocol, Result
from aicl.evaluation.row import Row
from aicl.evaluation.sample import Clip
from aicl.evaluation.statistics import Estimate
from aicl.evaluation.table_plan import SPEED, TablePlan
from lvdm import config as configs
from lvdm.errors import DataError
from lvdm.hashing import text_hash
from lvdm.outside import read_object

_SIDES = ("reference", "other", "target")


class TableRun(TablePlan):
    """A set of a preset. Everything it computes follows from files, so several processes can share the work.

    Raises UserError for a benchmark that is not there, metrics that are unknown, and sets of too few videos.
    """

    # -- what is seen of them

    def views(self) -> list[View]:
        """Everything that evaluators are to look at, in a fixed order."""
        views: list[View] = []
        rows = [row for row in self.rows if self.obstacle(row) is None]
        for row in rows:
            for seed in self.preset.seeds:
                for side in ("videos", *_SIDES):
                    if roles := self.roles(side):
                        views += [replace(view, roles=frozenset(roles)) for view in self._side(row, seed, side) or ()]
        if rows:
            real = frozenset(self.roles("real"))
            views += [replace(self._view(clip), roles=real) for clip in self._real()]
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
    def _observed(self) -> dict[Row, list[Observed]]:
        return {}

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
            videos=self._seen([self._view(clip) for clip in clips], self.roles("real")),
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
            side: self._seen(found, roles) if found is not None and (roles := self.roles(side)) else {}
            for side, found in views.items()
        }
        prompts = [sample.prompt for sample in samples]
        source = self.source(row)
        whole = Observed(
            **seen,
            from_image=row.kind == "generated" and source is not None and source.takes_target(),
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

    def _classifier(self) -> Classifier | None:
        return cast(Classifier | None, self.evaluators.get("classifier"))

    # -- numbers

    def result(self, row: Row) -> Result | None:
        """The estimates of one row, or None where it was not run."""
        if self.obstacle(row) is not None:
            return None
        parts = self.observed(row)
        whole = Observed.joined(parts)
        missing = {m.name: f"no evaluators.{min(m.roles() - self.evaluators.keys())} is given" for m in self.asked
                   if not m.roles() <= self.evaluators.keys()}  # fmt: skip
        why = {"image": "for rows of models that take no image"}
        missing |= {
            m.name: why.get(lacks[0], f"{self.benchmark} has no {lacks[0]}")
            for m in self.metrics
            if (lacks := m.missing(whole))
        }
        own = self._compared_with_themselves(row)
        missing |= {
            m.name: "for rows of real clips, which would be compared with themselves"
            for m in self.metrics
            if m.context() & own
        }
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
            by_label=shares_by_label(metrics, whole),
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

    def _compared_with_themselves(self, row: Row) -> set[str]:
        """The kinds of context, see metric.CONTEXT, that hold the very clips which a row of real ones is made of."""
        if row.kind == "generated":
            return set()
        clips = {self.benchmark.content(s.target) for n in self.preset.seeds for s in self.samples(n) if s.target}
        shared = not clips.isdisjoint(self.benchmark.content(clip) for clip in self._real())
        return {"target", "real"} if shared else {"target"}

    def _differences(
        self, row: Row, whole: Observed, metrics: Sequence[Metric]
    ) -> tuple[str | None, dict[str, Estimate]]:
        """To the row's baseline on the same samples, of what is measured of each video."""
        label = row.baseline or self.preset.baseline
        other = next((other for other in self.rows if other.label == label), None)
        if other is None or other is row or {row.kind, other.kind} != {"generated"} or row.group != other.group:
            return None, {}
        if row.group is not None and row.wrong != other.wrong:  # groups by other references hold other samples
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
            adaptation = self.videos.place(source) / ADAPTATION_FILE
            if source.method is not None and adaptation.is_file():
                about["adaptation"] = read_object(adaptation, DataError)
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
