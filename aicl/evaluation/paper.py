"""The numbers that the paper prints, beside which ours are shown: `paper_tables.yaml`, with what is uncertain in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from aicl.evaluation.metric import Metric
from lvdm.errors import ConfigError

NOT_READABLE = "not readable"
METRICS = ("cc", "fc", "fvd", "us_cc", "us_fc", "acc")


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    rows: its rows in order, by their names there; a row's values by metric, in the paper's units (percent for us_cc,
    us_fc and acc), None for a value that could not be read. notes: what is uncertain in this table, in sentences.
    """

    rows: dict[str, dict[str, float | None]]
    notes: tuple[str, ...]

    def cell(self, row: str, metric: str) -> str:
        """A value as the paper prints it, NOT_READABLE, or "" where the paper has no such row or value."""
        values = self.rows.get(row, {})
        if metric not in values:
            return ""
        value = values[metric]
        if value is None:
            return NOT_READABLE
        return f"{value:.0f}" if metric == "fvd" else f"{value:.2f}"


def paper_table(name: str, data: str = "") -> PaperTable:
    """A table by its number ("I" to "V") and data set ("ucf101" or "webvid"); "pseudo-words" has no data set.

    Raises ConfigError for one that the paper does not have.
    """
    tables, key = _content()["tables"], f"{name} {data}".strip()
    if key not in tables:
        raise ConfigError(f"the paper has no table '{key}': choose one of {', '.join(tables)}")
    table = tables[key]
    return PaperTable({str(row): dict(values) for row, values in table["rows"].items()}, tuple(table["notes"]))


def paper_tables() -> tuple[str, ...]:
    """The names of all tables, with the data set after a space."""
    return tuple(_content()["tables"])


def paper_notes() -> tuple[str, ...]:
    """What holds for all tables: why only directions compare."""
    return tuple(_content()["notes"])


def paper_text() -> dict[str, float]:
    """The numbers that stand outside tables, by name."""
    return dict(_content()["text"])


def what_the_paper_reports(name: str, data: str, metrics: Sequence[Metric] = ()) -> str:
    """A table of the paper as Markdown, with its notes, to stand apart from measurements on other data.

    metrics: those whose headings to use; the paper's own abbreviations stand for the others.
    """
    table, headings = paper_table(name, data), {metric.name: metric.column for metric in metrics}
    columns = [metric for metric in METRICS if any(metric in values for values in table.rows.values())]
    lines = [
        f"What the paper reports, {'Table ' if name in ('I', 'II', 'III', 'IV', 'V') else ''}{name}"
        + (f" on {DATA_NAMES[data]}:" if data else ":"),
        "",
        f"|  | {' | '.join(headings.get(metric, HEADINGS[metric]) for metric in columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    lines += [f"| {row} | {' | '.join(table.cell(row, metric) for metric in columns)} |" for row in table.rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in (*table.notes, *paper_notes()))]) + "\n"


HEADINGS = {"cc": "CC", "fc": "FC", "fvd": "FVD", "us_cc": "US-CC %", "us_fc": "US-FC %", "acc": "ACC %"}
DATA_NAMES = {"ucf101": "UCF-101", "webvid": "WebVid"}


@cache
def _content() -> dict[str, Any]:
    text = resources.files("aicl.evaluation").joinpath("paper_tables.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
