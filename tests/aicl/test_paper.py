"""The paper's numbers: complete, consistent where they must be, and honest about what is not legible."""

import pytest

from aicl.evaluation.paper import (
    METRICS,
    NOT_READABLE,
    paper_notes,
    paper_table,
    paper_tables,
    paper_text,
    what_the_paper_reports,
)
from lvdm.errors import ConfigError

I_TABLES = [paper_table("I", data) for data in ("webvid", "ucf101")]
BASES = ("LVDM", "VideoCrafter", "VideoCrafter2")


def falls() -> list[float]:
    """By how many percent FVD falls with AICL, in the rows of Table I."""
    pairs = [(table.rows[base]["fvd"], table.rows[f"{base} + AICL"]["fvd"]) for table in I_TABLES for base in BASES]
    return [100 * (before - after) / before for before, after in pairs]


def test_every_table_has_rows_of_known_metrics():
    assert [name.split()[0] for name in paper_tables()] == ["I", "I", "II", "III", "IV", "V", "pseudo-words"]
    for name in paper_tables():
        table = paper_table(*name.split())
        assert table.rows and all(values and values.keys() <= set(METRICS) for values in table.rows.values())
    with pytest.raises(ConfigError, match="no table 'VI ucf101'"):
        paper_table("VI", "ucf101")


def test_the_percentages_of_the_user_study_add_up():
    for table in I_TABLES:
        for base in BASES:
            for metric in ("us_cc", "us_fc"):
                total = table.rows[base][metric] + table.rows[f"{base} + AICL"][metric]
                assert total == pytest.approx(100, abs=0.005)


def test_tables_that_share_rows_agree():
    first, second, fifth = paper_table("I", "ucf101"), paper_table("II", "ucf101"), paper_table("V", "webvid")
    shared = ("cc", "fc", "fvd")
    assert [second.rows["base"][m] for m in shared] == [first.rows["LVDM"][m] for m in shared]
    for row in ("3", "6", "9"):
        assert [second.rows[row][m] for m in shared] == [first.rows["LVDM + AICL"][m] for m in shared]
    for row, name in (("0", "LVDM"), ("1", "LVDM + AICL")):
        assert [fifth.rows[row][m] for m in shared] == [paper_table("I", "webvid").rows[name][m] for m in shared]


def test_what_the_results_say_about_the_paper_is_so():
    """docs/results.md: the greatest fall of FVD is 29%, one CC goes down, and which percentages are n/48."""
    assert sorted(round(fall, 1) for fall in falls()) == [11.1, 14.9, 16.0, 17.9, 26.0, 29.2]
    assert max(falls()) < paper_text()["fvd_decrease_percent"]
    down = [
        (base, metric)
        for table in I_TABLES
        for base in BASES
        for metric, better in (("cc", 1), ("fc", 1), ("fvd", -1), ("us_cc", 1), ("us_fc", 1))
        if better * (table.rows[f"{base} + AICL"][metric] - table.rows[base][metric]) <= 0
    ]
    assert down == [("LVDM", "cc")]
    shares = [table.rows[base][metric] for table in I_TABLES for base in BASES for metric in ("us_cc", "us_fc")]
    groups = paper_text()["user_study_groups"]
    of_48 = [share for share in shares if abs(share * groups / 100 - round(share * groups / 100)) < 0.01]
    assert sorted(of_48) == [6.25, 16.67, 18.75, 20.83, 25.0, 39.58]
    assert sorted(set(shares) - set(of_48)) == [5.26, 9.09, 10.0, 14.29] and len(shares) - len(of_48) == 6


def test_cells_are_shown_as_the_paper_prints_them():
    fourth = paper_table("IV", "ucf101")
    assert fourth.cell("VideoCrafter", "acc") == "64.32" and fourth.cell("VideoCrafter", "fvd") == "1132"
    assert fourth.cell("VideoCrafter + AICL", "acc") == NOT_READABLE
    assert fourth.cell("VideoCrafter", "us_cc") == fourth.cell("LVDM", "cc") == ""
    assert any("?2.74" in note for note in fourth.notes)


def test_a_table_stands_apart_with_its_notes():
    text = what_the_paper_reports("IV", "ucf101")
    assert text.startswith("What the paper reports, Table IV on UCF-101:\n")
    assert "| VideoCrafter + AICL | 27.22 | 92.71 | 1125 | not readable |" in text
    assert all(f"- {note}" in text for note in (*fourth_notes(), *paper_notes()))
    assert what_the_paper_reports("pseudo-words", "").startswith("What the paper reports, pseudo-words:\n")


def fourth_notes() -> tuple[str, ...]:
    return paper_table("IV", "ucf101").notes
