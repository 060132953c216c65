"""metrics.csv: one line for each logged step. Lightning's own CSV logger deletes earlier lines when a run resumes."""

import csv
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from lvdm.files import atomic_path


class CSVLog(Logger):
    """Appends metrics to `path`. Lines after `resumed_at`, written by an interrupted run but not saved, are dropped."""

    def __init__(self, path: Path, resumed_at: int = 0):
        super().__init__()
        self.path, self.resumed_at = path, resumed_at
        self.columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> "CSVLog":
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is saved beside the run already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if not self.columns:
            self._rewrite(list(row))
        elif new := [name for name in row if name not in self.columns]:
            self._rewrite(self.columns + new)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self, columns: list[str]) -> None:
        """Write the file anew with these columns added to those it has, keeping its lines up to `resumed_at`."""
        rows: list[dict[str, str]] = []
        if self.path.exists():
            known, read, damaged = read_metrics(self.path)
            if damaged:
                aside = self.path.with_name(f"{self.path.stem}.damaged{self.path.suffix}")
                shutil.copyfile(self.path, aside)
                warnings.warn(
                    f"{self.path}: {damaged} damaged lines are left out; {aside.name} keeps them", stacklevel=2
                )
            rows = [row for row in read if self.columns or int(row["step"]) <= self.resumed_at]
            columns = list(dict.fromkeys([*known, *columns]))
        self.columns = columns
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def read_metrics(path: Path) -> tuple[list[str], list[dict[str, str]], int]:
    """The columns of a metrics.csv, its rows as text, and how many lines are no rows of it.

    A last line without an end, which a killed run was writing, is neither a row nor damage.
    """
    text = path.read_bytes().decode("utf-8", "replace")
    *complete, rest = text.split("\n")
    first, *lines = [line.removesuffix("\r") for line in complete] or [""]
    columns = first.split(",")
    if columns[0] != "step" or not all(re.fullmatch(r"[\w./-]+", name) for name in columns):
        return [], [], text.count("\n") + 1
    rows = [dict(zip(columns, line.split(","))) for line in lines if _is_row(line.split(","), len(columns))]
    cut = re.fullmatch(r"[\w.,+-]*", rest, re.ASCII) is not None
    return columns, rows, len(lines) - len(rows) + (not cut)


def _is_row(values: list[str], count: int) -> bool:
    try:
        numbers = [float(value) for value in values if value]
        return len(values) == count and int(values[0]) >= 0 and len(numbers) > 0
    except ValueError:
        return False
