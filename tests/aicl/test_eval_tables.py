import json

import pytest
from aicl.evaluation.protocol import Protocol, Result, check_comparable, read_result, write_result

from aicl.evaluation.statistics import Estimate
from aicl.evaluation.tables import Table, latex, markdown
from lvdm.errors import DataError


def result(row: str = "ours", acc: float = 0.5, **protocol) -> Result:
    described = {
        "data": "puppets & more",
        "generated": 100,
        "real": 200,
        "frames": 16,
        "size": (64, 48),
        "seeds": [0, 1],
    }
    described |= {"prompts": "abc", "real_list": "def", "networks": {"classifier": "0" * 64}}
    metrics = {
        "acc": Estimate(acc, acc - 0.1, acc + 0.1, 100, "Wilson"),
        "fvd": Estimate(12.34, 11, 13, 100, "jackknife"),
    }
    return Result(row, {"base": "123"}, metrics, Protocol(**described | protocol), lines={"fc_static": 100.0})


def test_results_survive_the_disk(tmp_path):
    written = result()
    write_result(tmp_path / "r.json", written)
    assert read_result(tmp_path / "r.json") == written
    protocol = json.loads((tmp_path / "r.json").read_text())["protocol"]
    assert protocol["libraries"]["torch"] and protocol["versions"]["frechet"] >= 1 and protocol["device"]


def test_what_is_no_result_is_refused(tmp_path):
    for content, message in (("{}", "format"), ("[1", "no JSON"), ("[]", "format")):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(DataError, match=message):
            read_result(tmp_path / "r.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_result(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 8},
        {"generated": 99},
        {"prompts": "other"},
        {"networks": {"classifier": "1" * 64}},
        {"versions": {"frechet": 0}},
        {"real_list": "x"},
        {"stride": 2.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_different_protocols_refuse_one_table(change):
    with pytest.raises(DataError, match=f"'base' and 'ours' were measured differently .*{next(iter(change))}"):
        Table("t", [("base", result("base")), ("none", None), ("ours", result(**change))], ["acc"])


def test_machines_may_differ():
    check_comparable([result(), result(device="another", libraries={"torch": "1.0"})])
    check_comparable([result(), result(seeds=[])])  # videos from elsewhere


def test_markdown_shows_intervals_paper_and_missing_rows():
    rows = [("base", result("base", acc=0.1)), ("ours", result()), ("other", None)]
    text = markdown(Table("Table 0", rows, ["acc", "fvd"], paper={"ours": {"acc": 60.0}}))
    assert "| base | 10.0 [0.0, 20.0] | 12.3 [11.0, 13.0] |" in text
    assert "| ours | 50.0 [40.0, 60.0] (paper 60) | 12.3 [11.0, 13.0] |" in text
    assert "| other | not run | not run |" in text
    assert "|  | ACC % ↑ | FVD ↓ |" in text
    assert "FC of a static video: 100.00" in text and "16 frames of 48x64" in text and "seeds 0, 1" in text
    assert "not entered" not in text
    assert "paper's numbers are not entered" in markdown(Table("Table 0", rows, ["acc"], paper={}))
    assert "paper" not in markdown(Table("A folder", rows, ["acc"]))


def test_latex_escapes_what_latex_would_read():
    text = latex(Table("50% & more", [("a_b", result())], ["acc"]))
    assert r"a\_b & 50.0 [40.0, 60.0] \\" in text and r"50\% \& more" in text and r"ACC \% $\uparrow$" in text
    assert text.count("{tabular}") == 2 and "puppets \\& more" in text
