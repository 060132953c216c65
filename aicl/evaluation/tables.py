"""Results as tables, in Markdown and LaTeX; those of different protocols refuse to stand in one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aicl.evaluation.protocol import Result, check_comparable
from aicl.evaluation.statistics import Estimate

NOT_RUN = "not run"


@dataclass(frozen=True)
class Column:
    """How a metric is shown: its heading, which direction is better (+1, -1, 0), a factor, and decimals."""

    title: str
    better: int = 1
    factor: float = 1.0
    decimals: int = 1


COLUMNS = {
    "cc": Column("CC", decimals=2),
    "fc": Column("FC", decimals=2),
    "fvd": Column("FVD", better=-1),
    "acc": Column("ACC %", factor=100),
    "choice": Column("choice %", factor=100),
    "looks": Column("looks %", factor=100),
    "leak": Column("leak %", better=-1, factor=100),
    "dynamics": Column("dynamics", better=0, decimals=2),
    "motion": Column("motion", decimals=1),
    "motion_other": Column("motion, other action", better=0),
    "reference_acc": Column("ACC as reference %", better=0, factor=100),
    "similarity": Column("similarity", better=0),
    "similarity_others": Column("similarity, others", better=0),
}
LINES = {  # values to be read beside the rows
    "fvd_floor": "FVD of {fvd_floor_count:.0f} real videos against other real ones",
    "fc_static": "FC of a static video",
    "fc_real": "FC of real videos",
    "cc_real": "CC of real videos",
    "dynamics_real": "dynamics of real videos",
    "acc_real": "ACC of real videos, %",
}
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_LATEX_ARROWS = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}


@dataclass
class Table:
    """Rows in order: a label and its result, or None where it was not run. All results share one protocol.

    paper: the paper's values by row label and metric, in the units of the table; only what was read in the paper. None
    for a table that the paper does not have.
    """

    title: str
    rows: list[tuple[str, Result | None]]
    metrics: Sequence[str]
    paper: Mapping[str, Mapping[str, float]] | None = None
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_comparable([result for _, result in self.rows if result is not None])


def markdown(table: Table) -> str:
    """The table with its lines and protocol, as Markdown; intervals of 95% stand in brackets.

    Beneath it stand the differences to a baseline of the rows that have them.
    """
    columns = [COLUMNS[name] for name in table.metrics]
    head = ["", *(column.title + _ARROWS[column.better] for column in columns)]
    lines = [f"### {table.title}", "", *_head(head)]
    lines += [_row([label, *_cells(table, label, result)]) for label, result in table.rows]
    lines += _differences(table)
    lines += ["", *(f"- {text}" for text in _remarks(table))]
    return "\n".join(lines).rstrip() + "\n"


def latex(table: Table) -> str:
    """The table as a LaTeX `table` for booktabs."""
    columns = [COLUMNS[name] for name in table.metrics]
    head = " & ".join(["", *(_escape(c.title) + _LATEX_ARROWS[c.better] for c in columns)])
    body = [
        " & ".join(_escape(cell) for cell in [label, *_cells(table, label, result)]) + r" \\"
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


def _cells(table: Table, label: str, result: Result | None) -> list[str]:
    cells = []
    for name in table.metrics:
        column, paper = COLUMNS[name], (table.paper or {}).get(label, {}).get(name)
        estimate = None if result is None else result.metrics.get(name)
        text = NOT_RUN if result is None else "" if estimate is None else _shown(column, estimate)
        cells.append(text if paper is None else f"{text} (paper {paper:g})")
    return cells


def _shown(column: Column, estimate: Estimate, sign: str = "") -> str:
    value, low, high = (
        f"{column.factor * x:{sign}.{column.decimals}f}" for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def _differences(table: Table) -> list[str]:
    """The lines of a second table: what is measured of each video, against the same samples of the baseline."""
    results = [(label, result) for label, result in table.rows if result is not None and result.differences]
    names = [name for name in table.metrics if any(name in result.differences for _, result in results)]
    lines = []
    for baseline in dict.fromkeys(result.baseline for _, result in results):
        lines += ["", *_head([f"minus {baseline}", *(COLUMNS[name].title for name in names)])]
        for label, differences in ((label, r.differences) for label, r in results if r.baseline == baseline):
            cells = [_shown(COLUMNS[name], differences[name], "+") if name in differences else "" for name in names]
            lines.append(_row([label, *cells]))
    return lines


def _remarks(table: Table) -> list[str]:
    results = [result for _, result in table.rows if result is not None]
    texts = list(table.notes)
    if not results:
        return texts
    lines = results[0].lines
    texts += [f"{LINES[name].format(**lines)}: {value:.2f}" for name, value in lines.items() if name in LINES]
    protocol = results[0].protocol
    height, width = protocol.size
    texts.append(
        f"{protocol.data}; {protocol.generated} videos a row, {protocol.real} real ones; "
        + (f"seeds {', '.join(map(str, protocol.seeds))}; " if protocol.seeds else "")
        + f"{protocol.frames} frames of {width}x{height}"
    )
    texts += [f"{name}, SHA-256 {sha[:12]}" for name, sha in protocol.networks.items()]
    if table.paper == {}:
        texts.append("the paper's numbers are not entered in this preset")
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
