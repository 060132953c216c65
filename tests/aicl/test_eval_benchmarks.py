"""What each benchmark asks for, shows and compares with."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from aicl.evaluation.benchmark import build_benchmark
from aicl.evaluation.benchmarks.webvid import choose, trained_verbs
from aicl.evaluation.sample import MAX_REFERENCES
from aicl.verbs import verbs
from lvdm.errors import ConfigError, DataError
from lvdm.video import write_video
from tests.aicl.real_data import CAPTIONS, GROUPS, SPLIT, UNSEEN, make_ucf101, make_webvid, moving_square

READING = {"frames": 4, "fps": 8, "size": (16, 16)}


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory) -> dict:
    root = make_ucf101(tmp_path_factory.mktemp("ucf101"))
    return {"kind": "ucf101", "path": str(root), "split": str(SPLIT), **READING}


@pytest.fixture(scope="module")
def webvid(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("webvid")
    table, videos = make_webvid(root)
    places = {"path": str(videos), "captions": str(table), "selection": str(root / "selection.jsonl")}
    return {"kind": "webvid", "split": str(SPLIT), **places, **READING}


def group(clip) -> int:
    return int(re.search(r"_g(\d+)_", clip.path.name)[1])


def test_no_reference_of_ucf101_shares_a_scene_with_a_real_video(ucf101):
    benchmark = build_benchmark(ucf101, "cpu")
    real = benchmark.real(None)
    assert Counter(clip.label for clip in real) == dict.fromkeys(UNSEEN, GROUPS[8] + GROUPS[9])
    scenes = {(clip.label, group(clip)) for clip in real}
    for sample in benchmark.samples(0, 0, 40):
        shown = (*sample.references, *sample.wrong)
        assert not scenes & {(clip.label, group(clip)) for clip in shown}
        assert (sample.target.label, group(sample.target)) in scenes and sample.target.label == sample.label
        assert len({group(clip) for clip in sample.references}) == MAX_REFERENCES  # of as many scenes as there are
        assert {clip.label for clip in sample.references} == {sample.label}
        (other,) = {clip.label for clip in sample.wrong}
        assert other != sample.label and sample.prompt == sample.references[0].caption
    assert benchmark.paper == "ucf101" and benchmark.pool == tuple(sorted(UNSEEN))


def test_samples_of_ucf101_are_a_function_of_seed_and_number(ucf101):
    benchmark = build_benchmark(ucf101, "cpu")
    samples = benchmark.samples(3, 0, 30)
    assert benchmark.samples(3, 10, 20) == samples[10:20]
    assert Counter(sample.label for sample in samples) == dict.fromkeys(UNSEEN, 3)
    assert len({sample.seed for sample in samples} | {s.seed for s in benchmark.samples(4, 0, 30)}) == 60
    assert [s.references for s in benchmark.samples(4, 0, 30)] != [s.references for s in samples]
    balanced = Counter(clip.label for clip in benchmark.real(20))
    assert balanced == dict.fromkeys(UNSEEN, 2) and benchmark.real(20) == benchmark.real(20)


def test_pseudo_words_leave_no_word_of_the_action(ucf101):
    benchmark, plain = (build_benchmark(ucf101 | {"names": names}, "cpu") for names in ("made_up", "real"))
    for made_up, real in zip(benchmark.samples(0, 0, 20), plain.samples(0, 0, 20)):
        assert made_up.references == real.references and made_up.seed == real.seed
        words = set(made_up.prompt.split()) - {"A", "person", "is", "the"}
        assert words and not words & set(real.prompt.split()) and made_up.prompt.endswith(made_up.words)
    assert str(benchmark) != str(plain)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reference_groups": (1, 1)}, DataError, r"Archery has 2 clips in groups 1 to 1, .* and 5 in others"),
        ({"reference_groups": (1, 25)}, DataError, "and 0 in others"),
        ({"reference_groups": (5, 2)}, ConfigError, r"reference_groups is \[5, 2\]"),
        ({"names": "pseudo"}, ConfigError, "names is 'pseudo'"),
        ({"frames": 1}, ConfigError, "1 frames at 8 a second .* cannot be compared"),
        ({"path": "nowhere"}, DataError, "nowhere: is not a folder"),
        ({"path": None}, ConfigError, r"needs benchmark\.path"),
    ],
)  # fmt: skip
def test_what_ucf101_cannot_be_is_said(ucf101, change, error, message):
    with pytest.raises(error, match=message):
        build_benchmark(ucf101 | change, "cpu")
    if "path" not in change and "frames" not in change:
        with pytest.raises(DataError, match="has 30 real videos, 31 are wanted"):
            build_benchmark(ucf101, "cpu").real(31)


def test_a_file_that_is_not_named_like_ucf101_is_refused(tmp_path):
    for label in UNSEEN:
        (tmp_path / label).mkdir()
        (tmp_path / label / "clip.avi").write_bytes(b"")
    with pytest.raises(DataError, match=r"clip\.avi: is not named like UCF-101's v_Archery_g07_c03\.avi"):
        build_benchmark({"kind": "ucf101", "path": str(tmp_path), "split": str(SPLIT), **READING}, "cpu")


def test_webvid_asks_for_actions_that_ucf101_does_not_train(webvid):
    trained = trained_verbs(str(SPLIT))
    assert {"ride", "play", "swim"} <= trained and "laugh" not in trained
    benchmark = build_benchmark(webvid | {"prompts": 5}, "cpu")
    samples, real = benchmark.samples(0, 0, 5), benchmark.real(None)
    assert [sample.prompt for sample in samples] == [clip.caption for clip in real]
    asked = {sample.prompt for sample in samples}
    for sample in samples:
        own = set(verbs(sample.prompt))
        assert own and not own & trained and sample.label is None and sample.target.caption == sample.prompt
        assert len(set(sample.references)) == MAX_REFERENCES
        for clip in sample.references:  # eq. 8
            assert own & set(verbs(clip.caption)) and clip.caption not in asked
        for clip in sample.wrong:
            assert not own & set(verbs(clip.caption)) and clip.caption not in asked
    with pytest.raises(DataError, match="sample 5 is asked for, set videos=5 or fewer"):
        benchmark.samples(0, 0, 6)

    listed = [json.loads(line) for line in Path(webvid["selection"]).read_text(encoding="utf-8").splitlines()]
    assert [entry["caption"] for entry in listed] == [sample.prompt for sample in samples]
    again = build_benchmark(webvid | {"prompts": 2}, "cpu")  # the list decides, not the number
    assert again.samples(0, 0, 5) == samples and again.count == 5


def test_a_video_of_several_captions_is_one_reference(webvid, tmp_path):
    table = tmp_path / "results.csv"
    header, *rows = Path(webvid["captions"]).read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([header, *rows, *(f"{row} slowly" for row in rows)]) + "\n", encoding="utf-8")
    options = webvid | {"captions": str(table), "selection": str(tmp_path / "selection.jsonl"), "prompts": 5}
    for sample in build_benchmark(options, "cpu").samples(0, 0, 5):
        assert len({clip.key for clip in sample.references}) == MAX_REFERENCES


def test_a_single_class_of_ucf101_has_no_wrong_references(ucf101, tmp_path):
    (tmp_path / "split.yaml").write_text(f"unseen: [{UNSEEN[0]}]\n", encoding="utf-8")
    [sample] = build_benchmark(ucf101 | {"split": str(tmp_path / "split.yaml")}, "cpu").samples(0, 0, 1)
    assert sample.label == UNSEEN[0] and len(sample.references) == MAX_REFERENCES and sample.wrong == ()


def test_a_list_of_other_videos_is_refused(webvid, tmp_path):
    other = tmp_path / "selection.jsonl"
    other.write_text('{"key": "000000_000001/77.mp4"}\n')
    with pytest.raises(DataError, match=r"1 of the 1 videos of .* are not there, such as 000000_000001/77\.mp4"):
        build_benchmark(webvid | {"selection": str(other)}, "cpu")
    other.write_text("no list")
    with pytest.raises(DataError, match="no list of WebVid captions"):
        build_benchmark(webvid | {"selection": str(other)}, "cpu")


def test_every_chosen_caption_keeps_its_references():
    found = [tuple(verbs(caption)) for caption in CAPTIONS]
    trained = trained_verbs(str(SPLIT))
    chosen = choose(found, trained, 6, "a list")
    left = Counter(verb for i, own in enumerate(found) if i not in chosen for verb in own)
    assert len(chosen) == 6 and all(any(left[verb] >= MAX_REFERENCES for verb in found[i]) for i in chosen)
    with pytest.raises(DataError, match=r"a list has \d captions whose verbs .* 12 are wanted"):
        choose(found, trained, 12, "a list")


def test_a_folder_of_ones_own(tmp_path):
    rows = ["file,caption,label"]
    for number in range(16):
        label = ("run", "jump")[number % 2]
        write_video(tmp_path / f"{number:02d}.mp4", moving_square(number, frames=6), fps=8)
        rows.append(f"{number:02d}.mp4,a person is {label}ing,{label}")
    rows.append("00.mp4,somebody runs,run")  # a second caption of a video
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    options = {"kind": "folder", "path": str(tmp_path), **READING}
    benchmark = build_benchmark(options, "cpu")
    real = {clip.path for clip in benchmark.real(None)}
    assert benchmark.pool == ("jump", "run") and len(real) == 8
    for sample in benchmark.samples(0, 0, 20):
        assert sample.target.path in real and not real & {clip.path for clip in (*sample.references, *sample.wrong)}
        assert {clip.label for clip in sample.references} == {sample.label} != {clip.label for clip in sample.wrong}
    apart = build_benchmark(options | {"references": str(tmp_path)}, "cpu")  # the same folder: never itself
    assert all(sample.target.path not in {c.path for c in sample.references} for sample in apart.samples(0, 0, 17))
    assert str(apart) == f"{tmp_path.name}, 17 prompts, 2 labels, shown videos of {tmp_path.name}"
    rows += [row.replace("a person is", "now they are") for row in rows[1:9]]
    table = tmp_path / "several.csv"
    for lines in (rows, [row.rpartition(",")[0] for row in rows]):  # by labels, and by eq. 8
        table.write_text("\n".join(lines))
        several = build_benchmark(options | {"references": str(tmp_path), "reference_captions": str(table)}, "cpu")
        for sample in several.samples(0, 0, 8):  # whatever it is called, a clip is shown once
            for clips in (sample.references, sample.wrong):
                assert len({clip.path for clip in clips}) == MAX_REFERENCES
    with pytest.raises(DataError, match="has 8 real videos, 9 are wanted"):
        benchmark.real(9)
    pixels, rates = benchmark.load(benchmark.real(2))
    assert pixels.shape == (2, 4, 16, 16, 3) and rates == [8.0, 8.0]


def test_partial_references_of_puppets_show_halves_in_turn():
    whole, partial = (
        build_benchmark({"kind": "puppets", "frames": 4, "partial_references": each}, "cpu") for each in (False, True)
    )
    assert str(whole) != str(partial)
    clips, halves = whole.samples(0, 0, 1)[0].references, partial.samples(0, 0, 1)[0].references
    assert all(whole.content(a) != partial.content(b) for a, b in zip(clips, halves, strict=True))
    same = (whole.load(clips)[0] == partial.load(halves)[0]).flatten(2).all(2)
    assert same.tolist() == [[True, True, False, False], [False, False, True, True], [True, True, False, False]]
    assert (partial.load(halves)[0][0, 2] == partial.load(halves)[0][0, 3, :1, :1]).all()  # blank
    assert (partial.load(partial.real(1))[0] == whole.load(whole.real(1))[0]).all()


def test_puppets_are_drawn_the_same_wherever_they_are_asked_for():
    benchmark = build_benchmark({"kind": "puppets", "frames": 4}, "cpu")
    samples = benchmark.samples(0, 0, 12)
    assert benchmark.samples(0, 4, 8) == samples[4:8]
    clips = [samples[5].references[0], samples[2].target]
    together, alone = benchmark.load(clips)[0], benchmark.load(clips[1:])[0]
    assert (together[1] == alone[0]).all() and benchmark.content(clips[0]) != benchmark.content(clips[1])
    facts = benchmark.facts(samples, [sample.references[:2] for sample in samples])
    assert facts["looks"].shape == (12, 3) and (facts["shown_looks"][:, 2] == -1).all()
