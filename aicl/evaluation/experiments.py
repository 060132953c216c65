"""Tables and experiments as presets, `configs/tables/*.yaml`: what to run, how often, and what to show of it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from aicl.evaluation import frechet, statistics
from aicl.evaluation.accuracy import top1
from aicl.evaluation.appearance import appearance_hits, leaks
from aicl.evaluation.figures import attention_sheet, feature_sheet, sample_sheet, sample_video
from aicl.evaluation.protocol import Protocol, Result, write_result
from aicl.evaluation.puppet_chunks import Chunk, ModelFiles, Store
from aicl.evaluation.puppet_rows import Evaluators, Measured, Row, joined
from aicl.evaluation.puppet_set import MAX_REFERENCES, PuppetData, Samples, draw_samples
from aicl.evaluation.statistics import Estimate
from aicl.evaluation.tables import COLUMNS, Table, latex, markdown
from aicl.pipeline import AICLPipeline
from aicl.pseudo_words import gerund
from aicl.puppets.data import FPS
from lvdm import config as configs
from lvdm.errors import ConfigError
from lvdm.files import atomic_path
from lvdm.hashing import text_hash
from lvdm.video import to_pixels, write_video

ANIMATED, SHEET_BATCH = 4, 10  # samples in an animation; videos made at once for a sheet
REAL_SEED = 1_000_003  # of the clips that Frechet distances and real lines are about: no row draws from it


@dataclass
class ModelPaths:
    """The model of all rows that name none of their own: a folder, and an adapter in place of the folder's own."""

    path: str
    adapter: str | None = None


@dataclass
class EvaluatorPaths:
    """Folders of the trained evaluators; without a CLIP, tables have no CC and FC."""

    classifier: str
    clip: str | None = None


@dataclass
class TableSpec:
    """One table of a preset.

    baseline: the label of a row; generated rows are then also compared with it sample by sample. paper: the paper's
    values by row label and metric, only what was read in the paper.
    """

    title: str
    metrics: list[str]
    rows: list[Row]
    data: PuppetData = field(default_factory=PuppetData)
    baseline: str | None = None
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        configs.check_keys(self.metrics, COLUMNS, f"the metrics of '{self.title}'")
        if self.baseline is not None and self.baseline not in (labels := [row.label for row in self.rows]):
            raise ConfigError(f"the baseline of '{self.title}' is '{self.baseline}': name one of its rows, {labels}")


@dataclass
class PictureSpec:
    """One picture for each of `samples` samples of the data: "features" (Fig. 4) or "attention" (Fig. 6).

    "samples" is one sheet of all of them: the first reference, the base model's video and AICL's; and an animation of
    the first few.
    """

    kind: Literal["samples", "features", "attention"]
    data: PuppetData = field(default_factory=PuppetData)
    samples: int = 4
    references: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.references <= MAX_REFERENCES or self.samples < 1:
            raise ConfigError(f"a picture needs 1 to {MAX_REFERENCES} references and one sample or more")


@dataclass
class Preset:
    """A file of `configs/tables`: tables, pictures, or both.

    videos: of each seed and row; real: how many real clips they are compared with. precision: of the generating model;
    "auto" is bfloat16 on a GPU and float32 elsewhere. compile: the UNet's blocks, which takes a minute for each size of
    batch, so `batch_size` should divide `videos`; it pays from a few thousand videos on. allow_few: compute Frechet
    distances of fewer videos than features, for a first look only.
    """

    model: ModelPaths
    evaluators: EvaluatorPaths
    tables: list[TableSpec] = field(default_factory=list)
    pictures: list[PictureSpec] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    videos: int = 220
    real: int = 2200
    batch_size: int = 110
    compile: bool = False
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    allow_few: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or REAL_SEED in self.seeds:
            raise ConfigError(f"seeds must be one or more different numbers other than {REAL_SEED}, got {self.seeds}")
        if self.videos < 2 or self.real < 2 or self.batch_size < 2:
            raise ConfigError("videos, real and batch_size must each be 2 or more")
        for row in (row for spec in self.tables for row in spec.rows if row.group is not None):
            if self.videos < 2 * row.group[1]:
                least = 2 * row.group[1]
                raise ConfigError(
                    f"row '{row.label}': {row.group[1]} groups need {least} videos or more, got {self.videos}"
                )


class Experiment:
    """A preset on one device: knows its chunks, measures them, and writes the tables."""

    def __init__(self, preset: Preset, out: str | os.PathLike, device: torch.device | str) -> None:
        self.preset, self.out, device = preset, Path(out), torch.device(device)
        auto = "bfloat16" if device.type == "cuda" else "float32"
        self.dtype = getattr(torch, auto if preset.precision == "auto" else preset.precision)
        self.evaluators = Evaluators(preset.evaluators.classifier, preset.evaluators.clip, device)
        self.store = Store(self.out / "chunks", self.evaluators)

    def model(self, row: Row) -> ModelFiles:
        """The files of a row's model: its own, else the preset's."""
        own = row.model is not None
        path = row.model if own else self.preset.model.path
        adapter = row.adapter or (None if own else self.preset.model.adapter)
        return ModelFiles(Path(path), None if adapter is None else Path(adapter))

    def obstacle(self, row: Row) -> str | None:
        """Why a row cannot be run, or None."""
        return row.missing or self.model(row).obstacle(row)

    def chunks(self, spec: TableSpec, row: Row) -> list[Chunk]:
        """What a row needs, one chunk a seed."""
        count, model = self.preset.videos, self.model(row)
        compiled = self.preset.compile
        return [Chunk(row, spec.data, seed, count, model, self.dtype, compiled) for seed in self.preset.seeds]

    def real_chunk(self, spec: TableSpec) -> Chunk:
        """The real clips of a table."""
        row = Row("real clips to compare with", kind="real")
        return Chunk(row, spec.data, REAL_SEED, self.preset.real, self.model(row), self.dtype)

    def run(self, rank: int = 0, world_size: int = 1, save_videos: bool = False) -> int:
        """Measure what is missing, or this process's share of it; returns how many chunks that was.

        Raises ConfigError, before anything is generated, for Frechet distances of too few videos.
        """
        self._check_counts()
        chunks = []
        for spec in self.preset.tables:
            rows = [row for row in spec.rows if self.obstacle(row) is None]
            chunks += [chunk for row in rows for chunk in self.chunks(spec, row)]
            chunks += [self.real_chunk(spec)] if rows else []
        videos = self.out / "videos" if save_videos else None
        return self.store.fill(
            chunks, batch_size=self.preset.batch_size, save_videos=videos, rank=rank, world_size=world_size
        )

    def result(self, spec: TableSpec, row: Row) -> Result | None:
        """The estimates of one row, or None where it was not run."""
        if self.obstacle(row) is not None:
            return None
        parts, real = self._parts(spec, row), self.store.read(self.real_chunk(spec))
        if real is None or parts is None:
            return None
        chunks, measured = self.chunks(spec, row), joined(parts)
        shown = self._shown_metrics(spec)
        estimates = {
            name: self._estimate(name, measured, real, spec) for name in shown if name in _VALUES or name == "fvd"
        }
        by_seed = {
            name: [self._estimate(name, part, real, spec).value for part in parts] for name in shown if name in _VALUES
        }
        differences = self._differences(spec, row, measured)
        model = {"files": str(self.model(row).path), **self.store.model_hashes(chunks[0])}
        model["settings"] = configs.to_mapping(row)
        return Result(
            row=row.label,
            model=model,
            metrics=estimates,
            protocol=self._protocol(spec, len(measured["actions"])),
            lines=self._lines(spec, real, len(measured["actions"])),
            videos=text_hash(self.store.path(chunk).stem for chunk in chunks),
            by_seed=by_seed,
            baseline=spec.baseline if differences else None,
            differences=differences,
        )

    def write(self, name: str) -> str:
        """Write a JSON for each row that was run, and all tables as NAME.md and NAME.tex; returns the Markdown."""
        shown = {"md": [], "tex": []}
        for number, spec in enumerate(self.preset.tables):
            results = [(row.label, self.result(spec, row)) for row in spec.rows]
            for index, (_, result) in enumerate(results):
                path = self.out / "results" / f"{name}-{number}-{index}.json"
                if result is not None:
                    write_result(path, result)
                else:
                    path.unlink(missing_ok=True)  # of a row that stood here before
            notes = [*spec.notes, *self._obstacles(spec)]
            table = Table(spec.title, results, self._shown_metrics(spec), spec.paper, notes)
            shown["md"].append(markdown(table))
            shown["tex"].append(latex(table))
        for ending, texts in shown.items():
            with atomic_path(self.out / f"{name}.{ending}") as temporary:
                temporary.write_text("\n".join(texts), encoding="utf-8")
        return "\n".join(shown["md"])

    def draw(self, name: str) -> list[Path]:
        """Draw all pictures as NAME-KIND-SAMPLE.png; returns the files. Raises CheckpointError without an adapter."""
        written = []
        for spec in self.preset.pictures:
            chunk = Chunk(Row("", references=spec.references), spec.data, 0, 0, self.model(Row("")), self.dtype)
            pipe, samples = chunk.load(self.evaluators.device), draw_samples(spec.data, 0, 0, spec.samples)
            clips = to_pixels(self.evaluators.render(samples.references.flatten(0, 1)))  # (samples * 3, t, h, w, 3)
            shown = [list(some) for some in clips.unflatten(0, (-1, MAX_REFERENCES))[:, : spec.references]]
            if spec.kind == "samples":
                written += self._draw_samples(self.out / f"{name}-samples", pipe, samples, shown)
                continue
            for index, (prompt, phrase) in enumerate(zip(samples.prompts, samples.phrases)):
                if spec.kind == "features":
                    labels = [f"{gerund(phrase)}, person {number}" for number in range(1, spec.references + 1)]
                    sheet = feature_sheet(pipe, shown[index], [prompt] * spec.references, labels)
                else:
                    sheet = attention_sheet(pipe, prompt, gerund(phrase), shown[index], seed=samples.noise_seeds[index])
                written.append(self.out / f"{name}-{spec.kind}-{index}.png")
                with atomic_path(written[-1]) as temporary:
                    sheet.save(temporary)
        return written

    def _draw_samples(
        self, path: Path, pipe: AICLPipeline, samples: Samples, shown: list[list[Tensor]]
    ) -> Sequence[Path]:
        """Write PATH.png and, of the first samples, PATH.gif: the first reference, the base model and AICL."""
        base, ours = [], []
        for start in tqdm(range(0, len(shown), SHEET_BATCH), desc="sampling", unit="batch"):
            part = slice(start, start + SHEET_BATCH)
            options = {"seed": samples.noise_seeds[part], "progress": False}
            base += pipe(samples.prompts[part], **options).cpu()
            ours += pipe(samples.prompts[part], references=shown[part], **options).cpu()
        rows = [[clips[0].cpu(), without, with_] for clips, without, with_ in zip(shown, base, ours)]
        labels = [[f"reference: {gerund(phrase)}", "base model", "AICL"] for phrase in samples.phrases]
        sheet = path.with_suffix(".png")
        with atomic_path(sheet) as temporary:
            sample_sheet(rows, labels, samples.prompts).save(temporary)
        video = sample_video(
            rows[:ANIMATED], [[gerund(phrase), *labels[0][1:]] for phrase in samples.phrases[:ANIMATED]]
        )
        return sheet, write_video(path.with_suffix(".gif"), video, FPS, overwrite=True)

    def _check_counts(self) -> None:
        """Raise ConfigError for Frechet distances of too few videos."""
        preset, features = self.preset, self.evaluators.classifier.config.features
        most, advice = features, "or set allow_few=true if only trends matter"
        if preset.allow_few:  # its interval leaves out one of three or more
            most, advice = 2, "or leave fvd out of its metrics"
        for spec in (spec for spec in preset.tables if "fvd" in spec.metrics):
            groups = [row.group[1] if row.group else 1 for row in spec.rows if self.obstacle(row) is None]
            counts = preset.videos // max(groups, default=1) * len(preset.seeds), preset.real
            if groups and min(counts) <= most:
                raise ConfigError(
                    f"'{spec.title}': a Frechet distance of {features} features needs more than {most} videos a "
                    f"row, and as many real ones, got {counts[0]} and {counts[1]}: raise videos and real, {advice}"
                )

    def _parts(self, spec: TableSpec, row: Row) -> list[Measured] | None:
        """The samples of a row, seed by seed, or None where some are missing."""
        parts = [self.store.read(chunk) for chunk in self.chunks(spec, row)]
        if any(part is None for part in parts):
            return None
        return parts if row.group is None else [_group(part, *row.group) for part in parts]

    def _differences(self, spec: TableSpec, row: Row, measured: Measured) -> dict[str, Estimate]:
        """To the table's baseline on the same samples, of what is measured of each video."""
        other = next((other for other in spec.rows if other.label == spec.baseline), None)
        if other is None or other is row or {row.kind, other.kind} != {"generated"} or row.group != other.group:
            return {}
        if self.obstacle(other) is not None or (parts := self._parts(spec, other)) is None:
            return {}
        theirs, shown = joined(parts), self._shown_metrics(spec)
        return {
            name: statistics.difference(_VALUES[name](measured, spec.data), _VALUES[name](theirs, spec.data))
            for name in shown
            if name in _VALUES and name != "leak"  # copies that could leak differ in number
        }

    def _shown_metrics(self, spec: TableSpec) -> list[str]:
        """The table's metrics without those that need a CLIP, where there is none."""
        return [name for name in spec.metrics if self.evaluators.clip is not None or name not in ("cc", "fc")]

    def _obstacles(self, spec: TableSpec) -> list[str]:
        return [f"{row.label}: not run, {why}" for row in spec.rows if (why := self.obstacle(row)) is not None]

    def _estimate(self, name: str, measured: Measured, real: Measured, spec: TableSpec) -> Estimate:
        if name == "fvd":
            return frechet.distance_with_interval(
                measured["features"], real["features"], allow_few=self.preset.allow_few
            )
        values = _VALUES[name](measured, spec.data)
        return statistics.share(values) if values.dtype == torch.bool else statistics.mean(values)

    def _lines(self, spec: TableSpec, real: Measured, count: int) -> dict[str, float]:
        lines = {"dynamics_real": real["dynamics"].mean().item()}
        lines["acc_real"] = 100 * top1(real["action_logits"], real["actions"]).double().mean().item()
        if "fc" in real:
            lines |= {"fc_static": 100.0, "fc_real": real["fc"].mean().item(), "cc_real": real["cc"].mean().item()}
        if "fvd" in spec.metrics:
            lines |= frechet.floor_lines(real["features"], count, allow_few=self.preset.allow_few)
        return lines

    def _protocol(self, spec: TableSpec, count: int) -> Protocol:
        preset = self.preset
        prompts = [text for seed in preset.seeds for text in draw_samples(spec.data, seed, 0, preset.videos).prompts]
        return Protocol(
            data=str(spec.data),
            generated=count,
            real=preset.real,
            frames=self.evaluators.frames,
            size=(self.evaluators.size, self.evaluators.size),
            seeds=list(preset.seeds),
            prompts=text_hash(prompts),
            real_list=text_hash([f"{spec.data} {REAL_SEED} {preset.real}"]),
            stride=1.0,
            networks=dict(self.evaluators.hashes),
            settings={"precision": str(self.dtype).removeprefix("torch."), "fc_pairs": "consecutive"},
        )


def load_preset(path: str | os.PathLike, overrides: list[str] | None = None) -> Preset:
    """Read a preset. Raises ConfigError for keys and values that do not fit."""
    mapping: dict[str, Any] = configs.load(path, overrides or (), Preset)
    return configs.from_mapping(Preset, mapping, where=Path(path).name)


def _group(measured: Measured, index: int, groups: int) -> Measured:
    """The `index`-th of `groups` equal groups of samples, ordered by how much their references move."""
    order = measured["reference_dynamics"].argsort(stable=True)
    chosen = order.tensor_split(groups)[index].sort().values
    return {name: value[chosen] for name, value in measured.items()}


# What is measured of each video, (n,), or judged, bool (n,) or (n, k).
_VALUES: dict[str, Callable[[Measured, PuppetData], Tensor]] = {
    "cc": lambda m, data: m["cc"],
    "fc": lambda m, data: m["fc"],
    "acc": lambda m, data: top1(m["action_logits"], m["actions"]),
    "choice": lambda m, data: top1(m["action_logits"], m["actions"], data.pool),
    "reference_acc": lambda m, data: top1(m["action_logits"], m["shown_actions"]),
    "looks": lambda m, data: appearance_hits(m["looks_logits"], m["looks"]),
    "leak": lambda m, data: leaks(m["looks_logits"], m["looks"], m["shown_looks"]),
    "dynamics": lambda m, data: m["dynamics"],
    "motion": lambda m, data: m["motion"],
    "motion_other": lambda m, data: m["motion_other"],
}
