"""Counts, intervals and agreement against known values; the report as files."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from aicl.apps.user_study import Store, markdown, summarise
from aicl.apps.user_study.report import krippendorff_alpha, pairwise_agreement
from aicl.apps.user_study.store import StoredPair

SCRIPT = Path(__file__).parents[2] / "scripts" / "user_study.py"

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): a row for each observer
TWO_OBSERVERS = ["0100000010", "1110010000"]
FOUR_OBSERVERS = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]


def units(rows: list[str]) -> list[list[str]]:
    return [[value for value in column if value != "."] for column in zip(*rows, strict=True)]


def test_alpha_has_the_values_of_krippendorffs_examples():
    assert krippendorff_alpha(units(TWO_OBSERVERS)) == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha(units(FOUR_OBSERVERS)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_and_agreement_at_their_ends():
    assert krippendorff_alpha(["aa", "bbb", "c"]) == 1
    assert krippendorff_alpha(["ab", "ab", "ab"]) < 0
    assert krippendorff_alpha(["aaa", "aa"]) is None  # no disagreement to expect
    assert krippendorff_alpha(["a", "b", ""]) is None  # nobody to agree with
    assert pairwise_agreement(["aab", "aa", "b"]) == pytest.approx((2 + 2) / (6 + 2))
    assert pairwise_agreement(["a"]) is None


@pytest.fixture
def store(tmp_path):
    """Two evaluators: the first answers all three pairs, the second the first two."""
    pairs = [StoredPair(n, "p", group, "o", "b", f"{n}a", f"{n}b") for n, group in enumerate(["x|y", "x|y", "z"])]
    store = Store.create(tmp_path / "study.sqlite", pairs, fingerprint="f", seed=0, ties=True)
    first, second = store.add_evaluator().number, store.add_evaluator().number
    store.save(first, 0, "uscc", "right", "left")  # changed below
    for evaluator, pair, question, choice, ours in [
        (first, 0, "uscc", "left", "left"),
        (first, 1, "uscc", "left", "left"),
        (first, 2, "uscc", "left", "right"),
        (first, 0, "usfc", "tie", "left"),
        (first, 1, "usfc", "right", "left"),
        (first, 2, "usfc", "tie", "right"),
        (second, 0, "uscc", "right", "right"),
        (second, 1, "uscc", "left", "right"),
        (second, 0, "usfc", "right", "right"),
    ]:
        store.save(evaluator, pair, question, choice, ours)
    return store


def test_the_report_counts_every_answer_once(store):
    report = summarise(store)
    assert (report["evaluators"], report["finished"], report["answers"], report["changed_answers"]) == (2, 1, 9, 1)
    rows = {(row["question"], row["group"]): row for row in report["results"]}
    assert list(rows) == [(q, g) for q in ("uscc", "usfc") for g in (None, "x|y", "z")]
    text, frames = rows["uscc", None], rows["usfc", None]
    assert (text["ours"], text["tie"], text["baseline"]) == (3, 0, 2)
    assert text["preference"]["value"] == pytest.approx(0.6)
    assert text["preference"]["count"] == 5
    assert (text["preference"]["low"], text["preference"]["high"]) == pytest.approx((0.2307, 0.8824), abs=1e-4)
    assert (text["by_pair"]["won"], text["by_pair"]["even"], text["by_pair"]["lost"]) == (1, 1, 1)
    assert text["left"] == pytest.approx(4 / 5)
    assert text["agreement"] == pytest.approx(1 / 2)  # pair 0 agrees, pair 1 doesn't, pair 2 has one answer
    assert (frames["ours"], frames["tie"], frames["baseline"]) == (1, 2, 1)
    assert frames["preference"]["count"] == 2  # ties are not decided
    assert rows["usfc", "z"]["preference"] is None
    assert rows["uscc", "x|y"]["ours"] == 3


def test_the_report_has_a_row_for_each_evaluator(store):
    first, second = summarise(store)["by_evaluator"]
    assert (first["evaluator"], first["pairs"], first["finished"]) == (1, 3, True)
    assert first["preference"] == {"uscc": pytest.approx(2 / 3), "usfc": 0}
    assert first["left"] == pytest.approx(3 / 4)
    assert (second["pairs"], second["finished"]) == (1, False)
    assert store.evaluators()[0].code not in json.dumps(summarise(store))  # codes let one answer as another


def test_a_higher_level_gives_a_wider_interval(store):
    narrow, wide = (summarise(store, level)["results"][0]["preference"] for level in (0.5, 0.99))
    assert wide["low"] < narrow["low"] < 0.6 < narrow["high"] < wide["high"]


def test_tables_have_as_many_cells_as_columns(store):
    text = markdown(summarise(store))
    assert "60.0 [23.1, 88.2]" in text
    for table in text.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.replace(r"\|", "").count("|") for line in lines}) <= 1
    assert "| USFC | z | - | 0 | 1 | 0 | - | - | - | - |" in text


def test_the_script_writes_the_report_and_never_over_another(store, tmp_path, monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["user_study.py", "report", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return stop.value.code, *capsys.readouterr()

    code, printed, _ = call("--out", str(tmp_path / "out" / "study"))
    assert code == 0
    assert json.loads((tmp_path / "out" / "study.json").read_text()) == summarise(store)
    assert (tmp_path / "out" / "study.md").read_text() == printed == markdown(summarise(store))
    code, _, problem = call("--out", str(tmp_path / "out" / "study"))
    assert code == 2 and "is there already" in problem and problem.count("\n") == 1
    assert call("--out", str(tmp_path / "out" / "study"), "--overwrite")[0] == 0
    assert call("--level", "95")[0] == 2


def test_a_study_without_answers_has_a_report(tmp_path):
    pairs = [StoredPair(0, "p", "", "o", "b", "1", "2")]
    report = summarise(Store.create(tmp_path / "s.sqlite", pairs, fingerprint="f", seed=0, ties=False))
    assert [row["preference"] for row in report["results"]] == [None, None]
    assert "| USCC | all | - | 0 | 0 | 0 | - | - | - | - |" in markdown(report)
