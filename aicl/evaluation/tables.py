"""Results as tables, in Markdown and LaTeX; those of different protocols refuse to stand in one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aicl.evaluation.metric import get_metrics
from aicl.evaluation.results import Result, check_comparable
from aicl.evaluation.statistics import Estimate

NOT_RUN = "not run"
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_LATEX_ARROWS = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}


@dataclass(frozen=True)
class Column:
    """How a metric is shown: its heading, which direction is better (+1, -1, 0), a factor, and decimals."""

    title: str
    better: int = 1
    factor: float = 1.0
    decimals: int = 1


STUDIED = {"us_cc": Column("US-CC %", factor=100), "us_fc": Column("US-FC %", factor=100)}
"""What people say, not evaluators: see `aicl.apps.user_study`."""


def columns_of(names: Sequence[str]) -> dict[str, Column]:
    """The columns of metrics and of what people say. Raises ConfigError for an unknown name."""
    metrics = get_metrics([name for name in names if name not in STUDIED], "the metrics")
    columns = {m.name: Column(m.column, m.better, m.factor, m.decimals) for m in metrics} | STUDIED
    return {name: columns[name] for name in names}


@dataclass
class Table:
    """Rows in order: a label and its result, or None where it was not run. All results share one protocol.

    paper: what the paper prints, by row label and metric, for a table on the paper's own data; it stands beside ours.
    """

    title: str
    rows: list[tuple[str, Result | None]]
    metrics: Sequence[str]
    paper: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_comparable([result for _, result in self.rows if result is not None])

    def columns(self) -> dict[str, Column]:
        """Those of the metrics that any row has, or the paper where it stands beside; of all where nothing was run."""
        known = {name for _, result in self.rows if result is not None for name in result.metrics}
        known |= {name for values in self.paper.values() for name in values}
        return columns_of([name for name in self.metrics if name in known or not known])


def markdown(table: Table) -> str:
    """The table with its lines and protocol, as Markdown; intervals of 95% stand in brackets.

    Beneath it stand the differences to a baseline of the rows that have them.
    """
    columns = table.columns()
    head = ["", *(column.title + _ARROWS[column.better] for column in columns.values())]
    lines = [f"### {table.title}", "", *_head(head)]
    lines += [_row([label, *_cells(table, columns, label, result)]) for label, result in table.rows]
    lines += _differences(table, columns)
    lines += ["", *(f"- {text}" for text in _remarks(table))]
    return "\n".join(lines).rstrip() + "\n"


def latex(table: Table) -> str:
    """The table as a LaTeX `table` for booktabs."""
    columns = table.columns()
    titles = [_escape(column.title) + _LATEX_ARROWS[column.better] for column in columns.values()]
    head = " & ".join(["", *titles])
    body = [
        " & ".join(_escape(cell) for cell in [label, *_cells(table, columns, label, result)]) + r" \\"
        for label, result in table.rows
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"    \toprule",
            f"    {head} " + r"\\",
            r"    \midrule",
            *(f"    {row}" for row in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            rf"  \caption{{{_escape('. '.join([table.title, *_remarks(table)]))}}}",
            r"\end{table}",
            "",
        ]
    )


def _cells(table: Table, columns: Mapping[str, Column], label: str, result: Result | None) -> list[str]:
    cells = []
    for name, column in columns.items():
        estimate = None if result is None else result.metrics.get(name)
        text = NOT_RUN if result is None else "" if estimate is None else shown(column, estimate)
        if printed := table.paper.get(label, {}).get(name):
            text = f"{text} (paper {printed})".strip()
        cells.append(text)
    return cells


def shown(column: Column, estimate: Estimate, sign: str = "") -> str:
    """A value with its interval, as it stands in a cell."""
    value, low, high = (
        f"{column.factor * x:{sign}.{column.decimals}f}" for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def _differences(table: Table, columns: Mapping[str, Column]) -> list[str]:
    """The lines of a second table: what is measured of each video, against the same samples of the baseline."""
    results = [(label, result) for label, result in table.rows if result is not None and result.differences]
    names = [name for name in columns if any(name in result.differences for _, result in results)]
    lines = []
    for baseline in dict.fromkeys(result.baseline for _, result in results):
        lines += ["", *_head([f"minus {baseline}", *(columns[name].title for name in names)])]
        for label, differences in ((label, r.differences) for label, r in results if r.baseline == baseline):
            cells = [shown(columns[name], differences[name], "+") if name in differences else "" for name in names]
            lines.append(_row([label, *cells]))
    return lines


def _remarks(table: Table) -> list[str]:
    results = [result for _, result in table.rows if result is not None]
    texts = list(table.notes)
    if not results:
        return texts
    lines: dict[str, dict[str, str]] = {}
    for result in results:
        for text, value in result.lines.items():
            lines.setdefault(text, {})[result.row] = f"{value:.2f}"
    for text, values in lines.items():  # most are the same for all rows that have them
        several = len(set(values.values())) > 1
        said = [f"{value} ({row})" for row, value in values.items()] if several else list(values.values())[:1]
        texts.append(f"{text}: {', '.join(said)}")
    protocol = results[0].protocol
    height, width = protocol.size
    pace = f"at {protocol.fps:g} a second" if protocol.fps else f"{protocol.stride:g} apart"
    texts.append(
        f"{protocol.data}; {protocol.generated} videos a row, {protocol.real} real ones; "
        + (f"seeds {', '.join(map(str, protocol.seeds))}; " if protocol.seeds else "")
        + f"compared in {protocol.frames} frames of {width}x{height} {pace}"
    )
    for kind in ("generated", "real"):
        if rates := sorted({rate for result in results for rate in result.rates.get(kind, [])}):
            texts.append(f"own frame rates of {kind} videos: {', '.join(f'{rate:g}' for rate in rates)} a second")
    missing = dict.fromkeys(lack for result in results for lack in result.missing.items())
    texts += [f"{name} is left out: {why}" for name, why in missing]
    texts += [f"{role}: {network}" for role, network in protocol.networks.items()]
    return texts


def _head(cells: Sequence[str]) -> list[str]:
    """The head of a Markdown table whose columns but the first are numbers."""
    return [_row(cells), _row(["---"] + ["---:"] * (len(cells) - 1))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    for character in "&%#_":
        text = text.replace(character, "\\" + character)
    return text
