"""US-CC and US-FC: how often people prefer a model's videos to its rival's, from the report of a user study.

The report is the JSON that `aicl user-study report` writes (`aicl.apps.user_study`). Its pairs set the model with AICL
("ours") against the same model without it ("baseline"), so one report fills two rows of Table I, which add up to 100.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from aicl.evaluation.metric import Metric, Observed, register
from aicl.evaluation.statistics import Estimate
from lvdm.errors import DataError

QUESTIONS = {"us_cc": "uscc", "us_fc": "usfc"}  # a metric's name -> the report's
_FIELDS = [field.name for field in dataclasses.fields(Estimate)]


def user_study_estimates(
    report: str | os.PathLike[str], side: Literal["ours", "baseline"], group: str | None = None
) -> dict[str, Estimate]:
    """The shares, in [0, 1], of decided answers that prefer a side, with Wilson's interval, as "us_cc" and "us_fc".

    group: the pairs of this group alone (a base model, a data set); None: all. A question that nobody has answered is
    left out. Raises DataError for a file that is missing or no report, and for a group that it does not have.
    """
    rows, found = _rows(Path(report)), {}
    groups = {row.get("group") for row in rows}
    if group not in groups:
        known = ", ".join(sorted(str(name) for name in groups if name)) or "none"
        raise DataError(f"{report} has no pairs of a group '{group}': its groups are {known}")
    for name, question in QUESTIONS.items():
        row = next((row for row in rows if row.get("question") == question and row.get("group") == group), None)
        if row is not None and row.get("preference") is not None:
            ours = _estimate(row["preference"], report)
            found[name] = ours if side == "ours" else _mirrored(ours)
    return found


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the user study's report {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON file: write the user study's report again") from error
    rows = content.get("results") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "question" in row for row in rows):
        raise DataError(
            f"{path} is no report of a user study: give the JSON file that the study's report command writes"
        )
    return rows


def _estimate(said: Any, report: str | os.PathLike[str]) -> Estimate:
    if not isinstance(said, dict) or sorted(said) != sorted(_FIELDS):
        raise DataError(f"{report} has a preference of another form: write the user study's report again")
    numbers = [said[name] for name in ("value", "low", "high")]
    if not all(isinstance(x, int | float) and 0 <= x <= 1 for x in numbers) or not isinstance(said["count"], int):
        raise DataError(f"{report} has a preference that is no share of answers: write the user study's report again")
    return Estimate(*(float(x) for x in numbers), count=said["count"], method=str(said["method"]))


def _mirrored(ours: Estimate) -> Estimate:
    return Estimate(1 - ours.value, 1 - ours.high, 1 - ours.low, ours.count, ours.method)


def _metric(name: str, column: str, question: str) -> Metric:
    def estimate(observed: Observed) -> Estimate:
        if name not in observed.study:
            raise DataError(f"nobody has answered the user study's question for {column} yet")
        return observed.study[name]

    return Metric(
        name=name,
        column=column,
        better=1,
        needs=("study",),
        about=f"Share of decided answers of people who were asked {question} and preferred this model's.",
        estimate=estimate,
        factor=100,
        decimals=2,
    )


register(_metric("us_cc", "US-CC %", "which of two videos fits the text better"))
register(_metric("us_fc", "US-FC %", "which of two videos is more consistent from frame to frame"))
