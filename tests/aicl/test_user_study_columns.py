"""The user study's report as two columns of Table I."""

import json
from dataclasses import asdict

import pytest

from aicl.evaluation.metric import Observed, get_metric
from aicl.evaluation.metrics.user_study import user_study_estimates
from aicl.evaluation.statistics import wilson
from lvdm.errors import DataError


@pytest.fixture
def report(tmp_path):
    """Nine of ten answers for ours on US-CC, six of eight in group "LVDM"; nobody has answered US-FC."""
    rows = [
        {"question": "uscc", "group": None, "preference": asdict(wilson(9, 10))},
        {"question": "uscc", "group": "LVDM", "preference": asdict(wilson(6, 8))},
        {"question": "usfc", "group": None, "preference": None},
        {"question": "usfc", "group": "LVDM", "preference": None},
    ]
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"results": rows}))
    return path


def test_a_report_fills_the_rows_with_and_without_aicl(report):
    ours, baseline = (user_study_estimates(report, side) for side in ("ours", "baseline"))
    assert ours == {"us_cc": wilson(9, 10)}
    assert baseline["us_cc"].value == pytest.approx(0.1)
    assert baseline["us_cc"].low == pytest.approx(wilson(1, 10).low)
    assert baseline["us_cc"].high == pytest.approx(wilson(1, 10).high)
    assert user_study_estimates(report, "ours", "LVDM") == {"us_cc": wilson(6, 8)}
    with pytest.raises(DataError, match="no pairs of a group 'VC': its groups are LVDM"):
        user_study_estimates(report, "ours", "VC")


def test_the_columns_are_metrics_like_others(report):
    observed = Observed({}, study=user_study_estimates(report, "ours"))
    metric = get_metric("us_cc")
    assert metric.column == "US-CC %" and metric.factor * metric.estimate(observed).value == pytest.approx(90.0)
    with pytest.raises(DataError, match="US-FC % yet"):
        get_metric("us_fc").estimate(observed)
    assert metric.missing(Observed({})) == ["study"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON file"),
        ("[" * 100_000, "no JSON file"),
        ("[]", "no report"),
        ('{"results": [1]}', "no report"),
        ('{"results": [{"question": "uscc", "group": null, "preference": 0.5}]}', "another form"),
        (
            '{"results": [{"question": "uscc", "group": null, "preference": '
            '{"value": "x", "low": 0, "high": 1, "count": 3, "method": "Wilson"}}]}',
            "no share",
        ),
    ],
)
def test_what_is_no_report_is_said(tmp_path, content, message):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        user_study_estimates(path, "ours")
    with pytest.raises(DataError, match="cannot be read"):
        user_study_estimates(tmp_path / "missing.json", "ours")
