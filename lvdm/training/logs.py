"""metrics.csv: one line for each logged step. Lightning's own CSV logger deletes earlier lines when a run resumes."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

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
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                kept = [row for row in reader if self.columns or int(row["step"]) <= self.resumed_at]
                rows, columns = kept, list(dict.fromkeys([*(reader.fieldnames or []), *columns]))
        self.columns = columns
        with atomic_path(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
