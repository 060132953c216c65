"""The tables of docs/results*.md are made of the result files that are tracked beside it."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aicl.evaluation.page import marked, rebuild, table
from aicl.evaluation.results import Protocol, Result, write_result
from aicl.evaluation.statistics import Estimate
from lvdm.errors import ConfigError, DataError
from scripts.rebuild_results import CHARTS, PAGES, draw_gaps

DOCS = Path(__file__).resolve().parents[2] / "docs"


def write(folder: Path, name: str, row: int, acc: float, seeds: tuple[int, ...] = (0,)) -> None:
    protocol = Protocol("x", 10, 10, 4, (8, 8), list(seeds), "a", "b", fps=8.0)
    metrics = {"acc": Estimate(acc, acc - 0.1, acc + 0.1, 10, "Wilson"), "fvd": Estimate(12.34, 11, 13.6, 10, "")}
    write_result(folder / f"{name}-{row}.json", Result(f"row {row}", {}, metrics, protocol))


def test_a_page_is_rebuilt_from_its_results(tmp_path):
    for row in (0, 1, 10):
        write(tmp_path, "t-0", row, 0.25 + row / 100)
    mark = "<!-- results: t-0; columns: acc fvd/0! cc -->"
    page = f"# Page\n\n{mark}\n| old | 1 |\n| --- | --- |\n| x | 2 |\n\nText | with a bar\n\n| other | table |\n"
    text = rebuild(page, tmp_path)
    assert text.split("\n")[3:8] == [
        "|  | ACC % ↑ | FVD ↓ | CC ↑ |",
        "| --- | ---: | ---: | ---: |",
        "| row 0 | 25.0 [15.0, 35.0] | 12 |  |",
        "| row 1 | 26.0 [16.0, 36.0] | 12 |  |",
        "| row 10 | 35.0 [25.0, 45.0] | 12 |  |",
    ]
    assert text.endswith("\n\nText | with a bar\n\n| other | table |\n") and "old" not in text
    assert rebuild(text, tmp_path) == text and marked(text) == ["t-0"]
    assert [line.split(" |")[0] for line in table("t-0", "2 0", "acc", tmp_path)[2:]] == ["| row 10", "| row 0"]
    write(tmp_path, "u-0", 2, 0.5)
    both = "<!-- results: u-0 + t-0; rows: 0 3; columns: acc! -->"
    assert rebuild(both, tmp_path).split("\n")[3:] == ["| row 2 | 50.0 |", "| row 10 | 35.0 |"]
    assert marked(both) == ["u-0", "t-0"]


def test_what_cannot_be_rebuilt_is_said(tmp_path):
    write(tmp_path, "t-0", 0, 0.5)
    write(tmp_path, "t-0", 1, 0.5, seeds=(1,))
    for arguments, message in (
        (("t-0", None, "acc"), "seeds"),
        (("t-1", None, "acc"), "has no results t-1-0.json"),
        (("t-0", "5", "acc"), "2 rows, row 5 is asked for"),
        (("t-0", "0", "acc?"), "no list of columns"),
    ):
        with pytest.raises(DataError, match=message):
            table(*arguments, tmp_path)
    with pytest.raises(ConfigError, match="unknown key 'accc'"):
        table("t-0", "0", "accc", tmp_path)


def test_the_tables_of_our_pages_are_those_of_the_tracked_results():
    shown: set[str] = set()
    for name in PAGES:
        page = (DOCS / name).read_text(encoding="utf-8")
        assert rebuild(page, DOCS / "results") == page
        shown |= set(marked(page))
    tracked = {re.sub(r"-\d+$", "", path.stem) for path in (DOCS / "results").glob("*.json")}
    assert tracked == shown, "every tracked result stands in a page, and nothing else"


@pytest.mark.parametrize("name", CHARTS)
def test_the_charts_of_our_pages_are_drawn_of_the_tracked_numbers(name, tmp_path):
    draw_gaps(DOCS / "figures" / f"{name}.csv", tmp_path / "x.png")
    anew, tracked = (
        np.asarray(Image.open(path).convert("L"), dtype=float)
        for path in (tmp_path / "x.png", DOCS / "figures" / f"{name}.png")
    )
    assert anew.shape == tracked.shape
    assert np.abs(anew - tracked).mean() < 0.5, "letters may look a little different with another Pillow, courses not"
