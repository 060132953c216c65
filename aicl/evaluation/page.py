"""Tables of a page of documentation, rebuilt from the result files behind them, so that no number stands there alone.

A table follows a comment that says what it is made of:

    <!-- results: table_1_puppets-0; columns: cc fc fd_puppets/0 acc leakage! -->

The results are NAME-0.json, NAME-1.json, ... in the folder of results, a row each, in order; NAME + OTHER has the rows
of both. A column is a metric, with "!" without its interval, with "/N" in N decimals (1 by default). `rows: 0 2 3`
takes some of the rows, by their places.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from aicl.evaluation.results import Result, check_comparable, read_result
from aicl.evaluation.tables import Column, columns_of, shown
from lvdm.errors import DataError

_MARK = re.compile(
    r"^<!-- results: (?P<name>\S+(?: \+ \S+)*); (?:rows: (?P<rows>[\d ]+); )?columns: (?P<columns>.+?) -->$"
)
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def rebuild(text: str, folder: Path) -> str:
    """The page with every marked table made anew. Raises DataError for results that are missing or do not fit."""
    return "\n".join(_lines(text.split("\n"), folder))


def marked(text: str) -> list[str]:
    """The names of the results that a page's tables are made of."""
    return [name for line in text.split("\n") if (m := _MARK.match(line)) for name in m["name"].split(" + ")]


def table(name: str, rows: str | None, columns: str, folder: Path) -> list[str]:
    """The lines of one table, of the results that a mark names. Raises DataError as `rebuild`."""
    results = [result for part in name.split(" + ") for result in results_of(part, folder)]
    if rows is not None:
        chosen = [int(number) for number in rows.split()]
        if len(results) <= max(chosen):
            raise DataError(f"{folder}/{name} has {len(results)} rows, row {max(chosen)} is asked for")
        results = [results[number] for number in chosen]
    check_comparable(results)
    wanted = [re.fullmatch(r"(\w+?)(?:/(\d))?(!?)", word) for word in columns.split()]
    if None in wanted:
        raise DataError(f"'{columns}' is no list of columns such as: cc fvd/0 dynamic_degree!")
    names = [match[1] for match in wanted if match]
    known = columns_of(names)
    heads = [known[name].title + _ARROWS[known[name].better] for name in names]
    lines = [f"|  | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(names)}"]
    for result in results:
        cells = [_cell(result, m[1], known[m[1]], int(m[2] or 1), not m[3]) for m in wanted if m]
        lines.append(f"| {result.row} | {' | '.join(cells)} |")
    return lines


def results_of(name: str, folder: Path) -> list[Result]:
    """The results NAME-0.json, NAME-1.json, ... that were run, in order. Raises DataError where there are none."""
    paths = sorted(folder.glob(f"{name}-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    if not paths:
        raise DataError(f"{folder} has no results {name}-0.json, ...: copy them there, or correct the name")
    return [read_result(path) for path in paths]


def _cell(result: Result, name: str, column: Column, decimals: int, interval: bool) -> str:
    estimate = result.metrics.get(name)
    if estimate is None:
        return ""
    column = Column(column.title, column.better, column.factor, decimals)
    return shown(column, estimate) if interval else f"{column.factor * estimate.value:.{decimals}f}"


def _lines(lines: list[str], folder: Path) -> Iterator[str]:
    """All lines; those of a table behind a mark are left out for new ones."""
    inside = False
    for line in lines:
        inside = inside and line.startswith("|")
        if not inside:
            yield line
        if match := _MARK.match(line):
            yield from table(match["name"], match["rows"], match["columns"], folder)
            inside = True
