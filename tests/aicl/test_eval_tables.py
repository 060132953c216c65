import json

import pytest

from aicl.cli import parse, reproduce
from aicl.evaluation.results import Protocol, Result, check_comparable, read_result, write_result
from aicl.evaluation.statistics import Estimate
from aicl.evaluation.tables import Table, latex, markdown
from lvdm import config as configs
from lvdm.errors import DataError, UserError


def result(row: str = "ours", acc: float = 0.5, **protocol) -> Result:
    described = {
        "data": "puppets & more",
        "generated": 100,
        "real": 200,
        "frames": 16,
        "size": (64, 48),
        "seeds": [0, 1],
    }
    described |= {"prompts": "abc", "real_list": "def", "networks": {"classifier": "0" * 64}, "fps": 8.0}
    described |= {"versions": {"classifier": 1, "acc": 1}}
    metrics = {
        "acc": Estimate(acc, acc - 0.1, acc + 0.1, 100, "Wilson"),
        "fvd": Estimate(12.34, 11, 13, 100, "jackknife"),
    }
    lines, rates = {"FC of a static video": 100.0}, {"generated": [8.0], "real": [24.0, 25.0]}
    return Result(row, {"base": "123"}, metrics, Protocol(**described | protocol), lines=lines, rates=rates)


def test_results_survive_the_disk(tmp_path):
    written = result()
    write_result(tmp_path / "r.json", written)
    assert read_result(tmp_path / "r.json") == written
    protocol = json.loads((tmp_path / "r.json").read_text())["protocol"]
    assert protocol["libraries"]["torch"] and protocol["versions"]["acc"] == 1 and protocol["device"]


def test_what_is_no_result_is_refused(tmp_path):
    for content, message in (("{}", "format"), ("[1", "no valid JSON"), ("[]", "format")):
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
        {"versions": {"acc": 2}},
        {"versions": {"classifier": 2}},
        {"real_list": "x"},
        {"fps": 4.0},
        {"seeds": [0, 2]},
        {"seeds": [0]},
        {"data": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_different_protocols_refuse_one_table(change):
    with pytest.raises(DataError, match=f"'base' and 'ours' were measured differently .*{next(iter(change))}"):
        Table("t", [("base", result("base")), ("none", None), ("ours", result(**change))], ["acc"])


def test_machines_may_differ():
    check_comparable([result(), result(device="another", libraries={"torch": "1.0"})])
    check_comparable([result(), result(seeds=[])])  # videos from elsewhere


def test_a_result_without_seeds_does_not_join_two_that_differ():
    with pytest.raises(DataError, match="seeds"):
        check_comparable([result(seeds=[]), result(seeds=[0]), result(seeds=[1])])


def test_results_need_not_have_the_same_metrics():
    check_comparable([result(), result(networks={"clip": "1" * 64}, versions={"clip": 1, "cc": 1})])


def test_markdown_shows_intervals_paper_and_missing_rows():
    rows = [("base", result("base", acc=0.1)), ("ours", result()), ("other", None)]
    text = markdown(Table("Table 0", rows, ["acc", "fvd"], paper={"ours": {"acc": "60.00"}, "base": {"acc": ""}}))
    assert "| base | 10.0 [0.0, 20.0] | 12.3 [11.0, 13.0] |" in text
    assert "| ours | 50.0 [40.0, 60.0] (paper 60.00) | 12.3 [11.0, 13.0] |" in text
    assert "| other | not run | not run |" in text
    assert "|  | ACC % ↑ | FVD ↓ |" in text
    assert "FC of a static video: 100.00" in text and "seeds 0, 1" in text
    assert "compared in 16 frames of 48x64 at 8 a second" in text
    assert "own frame rates of generated videos: 8 a second" in text and "of real videos: 24, 25 a second" in text
    assert "paper" not in markdown(Table("A folder", rows, ["acc"]))


def test_latex_escapes_what_latex_would_read():
    text = latex(Table("50% & more", [("a_b", result())], ["acc"]))
    assert r"a\_b & 50.0 [40.0, 60.0] \\" in text and r"50\% \& more" in text and r"ACC \% $\uparrow$" in text
    assert text.count("{tabular}") == 2 and "puppets \\& more" in text


def test_a_line_that_differs_between_rows_says_whose_it_is():
    first, second = result("base"), result("ours")
    first.lines, second.lines = {"chance": 10.0, "another image": 71.0}, {"chance": 10.0, "another image": 64.5}
    text = markdown(Table("t", [("base", first), ("ours", second)], ["acc"]))
    assert "- chance: 10.00\n" in text and "- another image: 71.00 (base), 64.50 (ours)\n" in text


def test_a_table_of_nothing_is_written_and_ends_with_an_error(tmp_path, monkeypatch):
    lacking, other = ({"label": label, "model": "nowhere"} for label in ("base", "other"))
    few = ["benchmark.size=32", "benchmark.frames=4", "sets=[{}]", "seeds=[0]", "videos=2", "real=2"]
    where = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    for name, rows in {"some": [{"label": "real", "kind": "real"}, lacking], "none": [lacking, other]}.items():
        configs.save(tmp_path / f"{name}.yaml", {"title": "T", "rows": rows, "metrics": ["dynamic_degree"]})
    some, none = (str(tmp_path / f"{name}.yaml") for name in ("some", "none"))
    assert reproduce.main(parse("reproduce", ["--preset", some, *where, *few])) == 0
    with pytest.raises(UserError) as caught:
        reproduce.main(parse("reproduce", ["--preset", none, some, *where, *few]))
    why = "no model 'nowhere' is given: model.nowhere=FOLDER"
    expected = f"nothing was measured for none_puppets (row 'base': {why}); the tables say what each row lacks"
    assert str(caught.value) == expected
    assert f"base: not run, {why}" in (tmp_path / "out/none_puppets.md").read_text(encoding="utf-8")
    assert "| base | not run |" in (tmp_path / "out/some_puppets.md").read_text(encoding="utf-8")
    monkeypatch.setenv("RANK", "1")  # of several processes the first says it
    assert reproduce.main(parse("reproduce", ["--preset", none, *where, *few])) == 2
