"""Reading what is compared, and the plan of who sees it in which order and on which side."""

import csv
import json
from collections import Counter

import pytest

from aicl.apps.user_study import Pair, read_folders, read_manifest
from aicl.apps.user_study.pairs import order, our_sides
from aicl.cli import parse
from aicl.cli.user_study import given_pairs
from lvdm.errors import ConfigError, DataError
from tests.aicl.study_samples import BASELINE, OURS, write_pairs, write_sample


def test_a_manifest_gives_the_same_pairs_as_jsonl_and_as_csv(tmp_path):
    jsonl = write_pairs(tmp_path, 3)
    rows = [json.loads(line) for line in jsonl.read_text().splitlines()]
    with open(tmp_path / "pairs.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["group", "baseline", "prompt", "ours"])
        writer.writeheader()
        writer.writerows(rows)
    pairs = read_manifest(jsonl)
    assert pairs == read_manifest(tmp_path / "pairs.csv")
    assert [(pair.prompt, pair.group) for pair in pairs] == [("prompt 0", "a"), ("prompt 1", "b"), ("prompt 2", "a")]
    assert pairs[1].ours == tmp_path / OURS / f"{OURS}_1.mp4"
    assert pairs[1].baseline == tmp_path / BASELINE / f"{BASELINE}_1.mp4"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "lists no pairs"),
        (["{"], "line 1: is no valid JSON"),
        (['["a"]'], "line 1: must be an object"),
        (['{"prompt": "p", "ours": "a.mp4"}'], "line 1 needs 'baseline'"),
        (['{"prompt": " ", "ours": "a.mp4", "baseline": "b.mp4"}'], "line 1 needs 'prompt'"),
        (['{"prompt": 3, "ours": "a.mp4", "baseline": "b.mp4"}'], "line 1 needs 'prompt' as text"),
        (["", '{"prompt": "p", "ours": "a.mp4", "baseline": "c.mp4"}'], "line 2 names c.mp4"),
        (['{"prompt": "p", "ours": "a.mp4", "baseline": "b.mp4"}'] * 2, "line 2 repeats line 1"),
    ],
)
def test_a_bad_manifest_ends_in_one_sentence(tmp_path, lines, sentence):
    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=sentence) as error:
        read_manifest(tmp_path / "pairs.jsonl")
    assert "\n" not in str(error.value)


def test_a_manifest_of_another_kind_or_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"neither \.csv nor \.jsonl"):
        read_manifest(tmp_path / "pairs.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(tmp_path / "pairs.csv")


def test_two_folders_pair_equal_names_with_the_captions_of_ours(tmp_path):
    for folder in ("ours", "base"):
        for number, name in enumerate(("1.mp4", "deep/2.mp4")):
            write_sample(tmp_path / folder / name, number)
    for name in ("1", "deep/2"):
        (tmp_path / "ours" / f"{name}.txt").write_text(f"text {name}\n")
    pairs = read_folders(tmp_path / "ours", tmp_path / "base")
    assert [(pair.prompt, pair.group) for pair in pairs] == [("text 1", ""), ("text deep/2", "")]
    assert pairs[1].baseline == tmp_path / "base" / "deep" / "2.mp4"
    (tmp_path / "captions.csv").write_text("file,caption,label\ndeep/2.mp4,second,b\n1.mp4,first,a\n")
    pairs = read_folders(tmp_path / "ours", tmp_path / "base", tmp_path / "captions.csv")
    assert [(pair.prompt, pair.group) for pair in pairs] == [("second", "b"), ("first", "a")]


def test_what_our_scripts_write_beside_a_video_is_no_video_of_the_study(tmp_path):
    for name in ("ours/1.mp4", "ours/1-compare.mp4", "base/1.mp4", "base/1-reference.mp4", "ours/a-compare.mp4"):
        write_sample(tmp_path / name, 0)
    with pytest.raises(DataError, match=r"base: lacks a-compare\.mp4"):  # there is no a.mp4 that it could belong to
        read_folders(tmp_path / "ours", tmp_path / "base")
    (tmp_path / "ours" / "a-compare.mp4").unlink()
    record = {"job": {"prompt": "sampled", "refs": ["gone.mp4"], "seed": 0}}
    (tmp_path / "ours" / "1.json").write_text(json.dumps(record))
    assert [pair.ours.name for pair in read_folders(tmp_path / "ours", tmp_path / "base")] == ["1.mp4"]


def test_prompts_are_found_in_what_our_scripts_write(tmp_path):
    for folder in ("ours", "base"):
        for number in range(2):
            write_sample(tmp_path / folder / f"{number}.mp4", number)
            record = {"job": {"prompt": f"sampled {number}", "refs": ["gone.mp4"], "seed": 0}}
            (tmp_path / folder / f"{number}.json").write_text(json.dumps(record))
    assert [pair.prompt for pair in read_folders(tmp_path / "ours", tmp_path / "base")] == ["sampled 0", "sampled 1"]
    lines = [{"file": f"{number}.mp4", "caption": f"listed {number}", "label": "run"} for number in range(2)]
    (tmp_path / "ours" / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pairs = read_folders(tmp_path / "ours", tmp_path / "base")
    assert [(pair.prompt, pair.group) for pair in pairs] == [("listed 0", "run"), ("listed 1", "run")]


def test_folders_that_do_not_fit_together_are_refused(tmp_path):
    for name in ("ours/1.mp4", "ours/2.mp4", "base/1.mp4"):
        write_sample(tmp_path / name, 0)
    with pytest.raises(DataError, match=r"base: lacks 2\.mp4, which is in .*ours \(1 such file\)"):
        read_folders(tmp_path / "ours", tmp_path / "base")
    with pytest.raises(DataError, match=r"base: lacks 2\.mp4"):
        read_folders(tmp_path / "base", tmp_path / "ours")
    with pytest.raises(DataError, match="nowhere: is not a folder"):
        read_folders(tmp_path / "ours", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no videos"):
        read_folders(tmp_path / "ours", tmp_path / "empty")
    write_sample(tmp_path / "base/2.mp4", 1)
    (tmp_path / "captions.csv").write_text("file,caption\n1.mp4,first\n")
    with pytest.raises(DataError, match=r"has no caption for 2\.mp4"):
        read_folders(tmp_path / "ours", tmp_path / "base", tmp_path / "captions.csv")


def test_each_evaluator_has_an_order_of_their_own_that_depends_on_the_seed():
    orders = [order(0, evaluator, 40) for evaluator in range(1, 21)]
    assert all(sorted(numbers) == list(range(40)) for numbers in orders)
    assert len(set(orders)) == 20
    assert order(1, 1, 40) != orders[0]


def test_no_pair_has_a_favoured_place():
    firsts = Counter(order(0, evaluator, 4)[0] for evaluator in range(1, 2001))
    assert all(abs(firsts[number] - 500) < 80 for number in range(4))  # four standard deviations


def test_the_plan_is_the_one_that_running_studies_have():
    """A changed plan would show answers of a running study at other places and sides."""
    assert order(0, 1, 6) == (2, 4, 3, 0, 1, 5)
    assert our_sides(0, 1, 6) == ("left", "left", "right", "right", "left", "right")


@pytest.mark.parametrize("count", [1, 7, 40])
def test_sides_are_balanced_within_evaluators_and_over_couples_of_them(count):
    for first in range(1, 40, 2):
        sides, opposite = our_sides(3, first, count), our_sides(3, first + 1, count)
        assert abs(sides.count("left") - sides.count("right")) == count % 2
        assert all({one, other} == {"left", "right"} for one, other in zip(sides, opposite))


def test_sides_cannot_be_guessed_from_the_pair_or_the_place():
    """Over evaluators, our video is on the left half of the time for each pair, and for each place of the order."""
    by_pair, by_place = Counter(), Counter()
    for evaluator in range(1, 1001, 2):
        sides, numbers = our_sides(0, evaluator, 10), order(0, evaluator, 10)
        by_pair.update(number for number in range(10) if sides[number] == "left")
        by_place.update(place for place, number in enumerate(numbers) if sides[number] == "left")
    for counts in (by_pair, by_place):
        assert all(abs(counts[key] - 250) < 45 for key in range(10))  # four standard deviations


def test_several_folders_are_one_study_with_a_name_each(tmp_path):
    for name in ("lvdm", "vc"):
        for side in ("ours", "base"):
            for number in range(3):
                write_sample(tmp_path / name / side / f"{number}.mp4", number)
                (tmp_path / name / side / f"{number}.txt").write_text(f"{name} {number}")

    def served(*options: str) -> list[Pair]:
        args = parse("user-study", ["serve", str(tmp_path / "study"), *options])
        return given_pairs(args)

    folders = {side: [str(tmp_path / name / side) for name in ("lvdm", "vc")] for side in ("ours", "base")}
    sides = ["--ours", *folders["ours"], "--baseline", *folders["base"]]
    pairs = served(*sides, "--group", "lvdm", "vc", "--pairs", "2")
    assert [(pair.group, pair.prompt) for pair in pairs] == [
        ("lvdm", "lvdm 0"), ("lvdm", "lvdm 1"), ("vc", "vc 0"), ("vc", "vc 1"),
    ]  # fmt: skip
    assert {pair.group for pair in served(*sides)} == {""}
    for options, message in (
        ([*sides, "--group", "lvdm"], "as many folders with --baseline, and names with --group"),
        ([*sides[:-1]], "as many folders with --baseline"),
        ([*sides, "--pairs", "0"], "--pairs is 0"),
        ([*sides, "--captions", str(tmp_path / "lvdm" / "ours" / "0.txt")], "--captions belong to one folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            served(*options)
