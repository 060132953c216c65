"""A preset from nothing to its tables: generate, look, estimate, write."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from aicl.evaluation.export import export_row, slug
from aicl.evaluation.generate import VideoStore
from aicl.evaluation.metric import build_evaluators, get_metrics
from aicl.evaluation.paper import paper_notes, paper_table, paper_tables, what_the_paper_reports
from aicl.evaluation.pictures import draw
from aicl.evaluation.presets import Preset
from aicl.evaluation.results import Result, write_result
from aicl.evaluation.row import Row
from aicl.evaluation.statistics import Estimate
from aicl.evaluation.table_run import TableRun
from aicl.evaluation.tables import STUDIED, Table, latex, markdown
from lvdm.errors import CheckpointError, DataError
from lvdm.files import atomic_path
from lvdm.outside import read_object

_QUESTIONS = {"uscc": "us_cc", "usfc": "us_fc"}  # of the user study -> columns


class Experiment:
    """A preset on one device; everything it makes lies in the folder `out`.

    Raises UserError for a preset that cannot be run at all; rows that cannot be run say so in their table.
    """

    def __init__(self, preset: Preset, out: str | os.PathLike[str], device: torch.device | str) -> None:
        self.preset, self.out, self.device = preset, Path(out), torch.device(device)
        asked = {name for spec in preset.sets for name in preset.measured(spec) if name not in STUDIED}
        roles = {role for metric in get_metrics(sorted(asked), "the metrics") for role in metric.roles()}
        if any(row.group for row in preset.rows):
            roles.add("flow")
        specs = {role: spec for role, spec in {"flow": {}, **preset.evaluators}.items() if role in roles}
        try:
            self.evaluators = build_evaluators(specs if preset.rows else {}, self.device)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; or leave its metrics out, with evaluators.NAME=null") from error
        if preset.user_study is not None:
            check_study(preset.user_study, [row.model for row in preset.rows if row.model is not None])
        self.videos = VideoStore(self.out / "videos")
        self.tables = [
            TableRun(preset, spec, self.evaluators, self.videos, self.out / "observations", self.device)
            for spec in preset.sets
        ]

    def run(
        self,
        rank: int = 0,
        world_size: int = 1,
        wait: Callable[[], None] = lambda: None,
        save_videos: str | None = None,
    ) -> tuple[int, int]:
        """Generate and look at what is missing, or at this process's share; returns how many videos each was.

        wait: returns when all processes have come to it. save_videos: also write each generated row as mp4 files to a
        folder below exported/ of this name, see `aicl.evaluation.export`. Rows that could not be made are in `failed`
        afterwards, and are rows that were not run. Raises ConfigError, before anything is generated, for sets of too
        few videos.
        """
        for table in self.tables:
            table.check_counts()
        made = [video for table in self.tables for video in table.all_made()]
        generated = self.videos.fill(
            made, self.device, batch_size=self.preset.batch_size, rank=rank, world_size=world_size
        )
        wait()
        self.videos.find_failures(made)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        looked = sum(table.look(self.preset.measure_batch_size, rank, world_size) for table in self.tables)
        if rank == 0:
            for table in self.tables:
                table.look_at_texts()
        if save_videos is not None:
            self._export(save_videos, rank, world_size)
        wait()
        for table in self.tables:
            table.observations.refresh()
        return generated, looked

    @property
    def failed(self) -> list[str]:
        """Labels of rows that `run` could not make, though all they need is there; their tables say why."""
        return list(dict.fromkeys(row.label for table in self.tables for row in table.rows if table.failure(row)))

    @property
    def why_nothing(self) -> str | None:
        """The first row and why it was not run, where no row of any table was; None where any was."""
        obstacles = [(row.label, table.obstacle(row)) for table in self.tables for row in table.rows]
        if any(why is None for _, why in obstacles):
            return None
        label, why = obstacles[0]
        return f"'{label}': {why}"

    def _export(self, name: str, rank: int, world_size: int) -> None:
        rows = [
            (table, row)
            for table in self.tables
            for row in table.rows
            if row.kind != "real" and row.group is None and table.obstacle(row) is None
        ]
        for table, row in rows[rank::world_size]:
            folder = self.out / "exported" / name
            export_row(table, row, folder if len(self.tables) == 1 else folder / slug(str(table.benchmark)))

    def write(self, name: str) -> str:
        """Write a JSON for each row that was run, and all tables as NAME.md and NAME.tex; returns the Markdown."""
        shown: dict[str, list[str]] = {"md": [], "tex": []}
        written: set[Path] = set()
        for number, run in enumerate(self.tables):
            results = [(row.label, self.result(run, row)) for row in run.rows]
            for index, (_, result) in enumerate(results):
                path = self.out / "results" / f"{name}-{number}-{index}.json"
                if result is not None:
                    write_result(path, result)
                    written.add(path)
            table = self.table(run, results)
            shown["md"].append(markdown(table))
            shown["tex"].append(latex(table))
        # those of rows that stood here before go: pages take all that there are
        for path in (self.out / "results").glob("*.json"):
            if path not in written and re.fullmatch(rf"{re.escape(name)}-\d+-\d+", path.stem):
                path.unlink()
        shown["md"] += self._apart()
        for ending, texts in shown.items():
            with atomic_path(self.out / f"{name}.{ending}") as temporary:
                temporary.write_text("\n".join(texts), encoding="utf-8")
        return "\n".join(shown["md"])

    def result(self, run: TableRun, row: Row) -> Result | None:
        """A row's estimates, with what people say of it."""
        result = run.result(row)
        if result is not None and self.preset.user_study is not None:
            side = _side(row)
            if sum(_side(other) == side for other in self.preset.rows) == 1:
                result.metrics |= studied(self.preset.user_study, row)
            elif side is not None:
                why = f"of several rows of {row.model}, the study does not say which people saw"
                result.missing |= {name: why for name in self.preset.measured(run.spec) if name in STUDIED}
        return result

    def table(self, run: TableRun, results: list[tuple[str, Result | None]]) -> Table:
        """The table of a set's results."""
        printed, notes = self._printed(run)
        obstacles = [f"{row.label}: not run, {why}" for row in run.rows if (why := run.obstacle(row)) is not None]
        metrics = self.preset.measured(run.spec)
        costs = [line for label, result in results if result is not None and (line := adapting(label, result))]
        return Table(run.title, results, metrics, printed, [*self.preset.notes, *notes, *costs, *obstacles])

    def _printed(self, run: TableRun) -> tuple[dict[str, dict[str, str]], list[str]]:
        """What the paper prints beside our rows, by their labels, and what to say of it: on its own data sets only."""
        name = f"{self.preset.paper} {run.benchmark.paper}"
        if self.preset.paper is None or name not in paper_tables():
            return {}, []
        paper = paper_table(self.preset.paper, str(run.benchmark.paper))
        cells = {
            row.label: {name: paper.cell(row.paper or row.label, name) for name in self.preset.measured(run.spec)}
            for row in run.rows
        }
        return cells, [*paper.notes, *paper_notes()]

    def _apart(self) -> list[str]:
        """The paper's tables, where no table of ours is on the paper's data."""
        if self.preset.paper is None or any(self._printed(run)[0] for run in self.tables):
            return []
        names = [name for name in paper_tables() if name.split(" ")[0] == self.preset.paper]
        return [what_the_paper_reports(table, data) for table, _, data in (name.partition(" ") for name in names)]

    def draw(self, name: str) -> list[Path]:
        """Draw all pictures as NAME-KIND-SAMPLE.png; returns the files. Raises CheckpointError without an adapter."""
        return [path for spec in self.preset.pictures for path in draw(self.tables[0], spec, self.out, name)]


def check_study(report: str, models: Sequence[str]) -> None:
    """Raise DataError for a file that is no report of `aicl user-study`, or one whose groups are none of the models."""
    groups = {str(entry["group"]) for entry in _answers(report) if entry["group"] is not None}
    if not groups & set(models):
        raise DataError(
            f"{report} has the groups {', '.join(sorted(groups)) or 'none'}, and the rows' models are "
            f"{', '.join(dict.fromkeys(models))}: serve the study with --group and these names"
        )


def studied(report: str, row: Row) -> dict[str, Estimate]:
    """The shares of people who prefer a row, from a report of `aicl user-study`.

    Its groups are called like the rows' models; ours is the row with references. Raises DataError for no such report.
    """
    found = {
        _QUESTIONS.get(entry["question"], ""): entry["preference"]
        for entry in _answers(report)
        if entry["group"] == row.model and entry["preference"] is not None
    }
    if row.kind != "generated" or row.wrong:
        return {}
    return {name: e if row.references else _other(e) for name, e in found.items() if name in STUDIED}


def adapting(label: str, result: Result) -> str | None:
    """What a row's method did before it made videos, in words; None for rows without a method that says so."""
    about = result.model.get("adaptation")
    return f"{label}: {about['summary']}" if isinstance(about, dict) and "summary" in about else None


def _side(row: Row) -> tuple[str | None, bool] | None:
    """What a study knows of a row: its model, and whether it is the one with references; None: it is never in one."""
    return None if row.kind != "generated" or row.wrong else (row.model, row.references > 0)


def _other(ours: Estimate) -> Estimate:
    """The share of the other side of a forced choice."""
    return Estimate(1 - ours.value, 1 - ours.high, 1 - ours.low, ours.count, ours.method)


def _answers(report: str) -> list[dict[str, Any]]:
    """Question, group and preference (an Estimate or None) of each row of a report. Raises DataError for no report."""
    try:
        return [
            {
                "question": entry["question"],
                "group": entry["group"],
                "preference": Estimate(**entry["preference"]) if entry["preference"] else None,
            }
            for entry in read_object(report, DataError)["results"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{report} is no report of aicl user-study: write one with `report --out`") from error
