"""UCF-101, WebVid and plain folders -> records."""

import json
import logging
from pathlib import Path

import pytest

from lvdm.config import from_mapping, load
from lvdm.data import (
    DataConfig,
    Manifest,
    read_folder,
    read_records,
    read_report,
    read_split,
    read_ucf101,
    read_webvid,
)
from lvdm.data.ucf101 import ACTIONS, SUBJECTS, caption
from lvdm.errors import ConfigError, DataError

SPLIT = Path(__file__).parents[2] / "configs" / "data" / "ucf101_split.yaml"


@pytest.fixture
def ucf(tmp_path):
    for label in ACTIONS:
        (tmp_path / label).mkdir()
        for group in (2, 1):
            (tmp_path / label / f"v_{label}_g0{group}_c01.avi").touch()
    (tmp_path / "Archery" / ".DS_Store").touch()
    return tmp_path


def test_all_classes_have_a_caption():
    assert len(ACTIONS) == 101 and len(set(ACTIONS.values())) == 101
    assert caption("PlayingGuitar") == "A person is playing guitar"
    assert caption("MilitaryParade") == "A troop is marching in a parade"
    assert SUBJECTS.keys() <= ACTIONS.keys()
    for label, action in ACTIONS.items():
        assert action.split()[0].split("-")[-1].endswith("ing"), label
        assert action == action.strip().lower() and label[0].isupper()
    with pytest.raises(DataError, match="'playing' is not one of the 101"):
        caption("playing")


def test_ucf101(ucf):
    records = read_ucf101(ucf)
    assert len(records) == 202 and records == sorted(records, key=lambda record: list(ACTIONS).index(record.label))
    first = records[list(ACTIONS).index("Archery") * 2]
    assert (first.label, first.key) == ("Archery", "Archery/v_Archery_g01_c01.avi") and first.path == ucf / first.key
    assert first.caption == "A person is shooting an arrow with a bow"


def test_the_split_is_91_to_10(ucf):
    unseen = read_split(SPLIT)
    assert len(unseen) == 10
    parts = [
        {r.label for r in read_records(Manifest(kind="ucf101", path=str(ucf), split=str(SPLIT), part=part))}
        for part in ("seen", "unseen")
    ]
    assert [len(part) for part in parts] == [91, 10] and parts[1] == set(unseen) and not parts[0] & parts[1]
    (ucf / "split.yaml").write_text("unseen: [Archery, Flying]")
    with pytest.raises(ConfigError, match="Flying is unknown"):
        read_split(ucf / "split.yaml")
    (ucf / "split.yaml").write_text("unsen: [Archery]")
    with pytest.raises(ConfigError, match="unseen"):
        read_split(ucf / "split.yaml")


def test_an_incomplete_ucf101(ucf):
    for file in (ucf / "YoYo").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="YoYo: holds no videos"):
        read_ucf101(ucf)
    (ucf / "YoYo").rmdir()
    with pytest.raises(DataError, match="class folder 'YoYo' is missing"):
        read_ucf101(ucf)
    assert len(read_ucf101(ucf, "seen", ["YoYo"])) == 200
    (ucf / "Yo-Yo").mkdir()
    with pytest.raises(DataError, match="'Yo-Yo' is not a class"):
        read_ucf101(ucf)
    with pytest.raises(DataError, match="is not a folder"):
        read_ucf101(ucf / "nowhere")


def test_webvid(tmp_path, caplog):
    rows = [
        ("7", "a_b", 'Man skiing, "fast"'),
        ("8", "a_b", "not downloaded"),
        ("9", "c_d", "folder not downloaded"),
        ("10", "e_f", ""),
        ("11", "e_f", " Woman runs\xe9 "),
    ]
    lines = ["videoid,contentUrl,duration,page_dir,name"]
    lines += [
        f'{video},https://x/{video}.mp4,PT00H00M10S,{page},"{name.replace(chr(34), chr(34) * 2)}"'
        for video, page, name in rows
    ]
    (tmp_path / "results.csv").write_text("\n".join(lines), encoding="utf-8")
    for key in ("a_b/7.mp4", "e_f/10.mp4", "e_f/11.mp4"):
        (tmp_path / "videos" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / key).touch()
    with caplog.at_level(logging.WARNING):
        records = read_webvid(tmp_path / "results.csv", tmp_path / "videos")
    assert [(record.key, record.caption) for record in records] == [
        ("a_b/7.mp4", 'Man skiing, "fast"'),
        ("e_f/11.mp4", "Woman runs\xe9"),
    ]
    assert records[0].path == tmp_path / "videos" / "a_b" / "7.mp4"
    assert "2 videos found" in caplog.text and "2 rows without a file, 1 without a caption" in caplog.text
    with pytest.raises(DataError, match="holds no captioned video"):
        read_webvid(tmp_path / "results.csv", tmp_path)
    (tmp_path / "other.csv").write_text("videoid,name\n7,x\n")
    with pytest.raises(DataError, match="no column 'page_dir'"):
        read_webvid(tmp_path / "other.csv", tmp_path)
    with pytest.raises(DataError, match=r"missing.csv cannot be read"):
        read_webvid(tmp_path / "missing.csv", tmp_path)


def test_a_folder_with_texts(tmp_path):
    for name in ("b.mp4", "deep/a.AVI", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("a dog runs\n")
    with pytest.raises(DataError, match=r"a.AVI: has no caption.*; write it to a.txt"):
        read_folder(tmp_path)
    (tmp_path / "deep" / "a.txt").write_text("a cat jumps")
    assert [(r.key, r.caption, r.label) for r in read_folder(tmp_path)] == [
        ("b.mp4", "a dog runs", None),
        ("deep/a.AVI", "a cat jumps", None),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="lists no videos"):
        read_folder(tmp_path / "empty")


ROWS = [{"file": "b.mp4", "caption": "a dog, running"}, {"file": "deep/a.avi", "caption": "a cat", "label": "jump"}]


def write_manifest(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(f'"{row.get(name, "")}"' for name in ("file", "caption", "label")) for row in rows]
        path.write_text("\n".join(["file,caption,label", *lines]) + "\n")
    return path


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl"])
def test_a_folder_with_a_manifest(tmp_path, name):
    (tmp_path / "deep").mkdir()
    for row in ROWS:
        (tmp_path / row["file"]).touch()
    manifest = write_manifest(tmp_path / name, ROWS)
    records = read_folder(tmp_path, manifest)
    assert [(r.key, r.caption, r.label) for r in records] == [
        ("b.mp4", "a dog, running", None),
        ("deep/a.avi", "a cat", "jump"),
    ]
    if name.endswith("csv"):  # found without being named
        assert read_folder(tmp_path) == records
    for bad, reason in (
        (
            [*ROWS, {"file": "c.mp4", "caption": "x"}],
            "line 4 names c.mp4" if name.endswith("csv") else "line 3 names c.mp4",
        ),
        ([{"file": "b.mp4"}], "has no 'caption'"),
        ([{"caption": "x"}], "has no 'file'"),
        ([], "lists no videos"),
    ):
        with pytest.raises(DataError, match=reason):
            read_folder(tmp_path, write_manifest(tmp_path / name, bad))


def test_bad_manifests(tmp_path):
    (tmp_path / "a.jsonl").write_text('["b.mp4"]\n')
    (tmp_path / "b.jsonl").write_text("{oops\n")
    (tmp_path / "c.xlsx").touch()
    for name, reason in (
        ("a.jsonl", "line 1: must be an object"),
        ("b.jsonl", "line 1: is no valid JSON"),
        ("c.xlsx", "neither .csv"),
        ("d.csv", "cannot be read"),
    ):
        with pytest.raises(DataError, match=reason):
            read_folder(tmp_path, tmp_path / name)


def test_the_data_section(tmp_path):
    section = {"kind": "folder", "path": str(tmp_path), "clip": {"num_frames": 16, "size": [256, 256], "fps": 8}}
    config = from_mapping(DataConfig, section, "data")
    assert config.clip.size == (256, 256) and config.clip.augmentation.cached_crops is None
    with pytest.raises(ConfigError, match="did you mean 'stride'"):
        from_mapping(DataConfig, section | {"clip": section["clip"] | {"strid": 2}}, "data")
    with pytest.raises(ConfigError, match="WebVid needs its CSV"):
        from_mapping(DataConfig, section | {"kind": "webvid"}, "data")
    with pytest.raises(ConfigError, match=r"needs a data\.split file"):
        from_mapping(DataConfig, section | {"kind": "ucf101", "part": "seen"}, "data")


def test_classes_of_ucf101_say_nothing_about_a_folder(tmp_path, caplog):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_text("a man runs")
    manifest = Manifest(kind="folder", path=str(tmp_path), split=str(SPLIT), part="seen")
    assert len(read_records(manifest)) == 1 and "all videos are taken" in caplog.text


def test_the_papers_trainings_take_ucf101_and_the_recommended_ones_a_folder():
    for path in sorted((SPLIT.parents[1]).glob("aicl_*.yaml")):
        data = load(path)["data"]
        if path.stem.endswith(("_small_set", "_self_pairs")):
            assert (data["kind"], data["part"], data["split"]) == ("folder", "all", None), path
        else:
            assert (data["kind"], data["part"], len(read_split(data["split"]))) == ("ucf101", "seen", 10), path


def test_a_report_of_something_else(tmp_path):
    (tmp_path / "report.json").write_text('{"broken": {"a.mp4": "because"}}')
    assert read_report(tmp_path / "report.json") == ["a.mp4"]
    for text in ("[]", "{}", "nothing"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(DataError, match="make a report with aicl check-data"):
            read_report(tmp_path / "other.json")


def test_videos_without_a_caption_are_left_out_where_that_is_asked_for(tmp_path, caplog):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(b"")
    (tmp_path / "b.TXT").write_text("a dog runs")
    with caplog.at_level("WARNING"):
        assert [r.key for r in read_folder(tmp_path, on_missing_caption="skip")] == ["b.mp4"]
    assert "2 of 3 videos have no caption and are left out" in caplog.text
    (tmp_path / "rows.csv").write_text("file,caption\na.mp4,a cat sits\nb.mp4,\n")
    manifest = Manifest(
        kind="folder", path=str(tmp_path), captions=str(tmp_path / "rows.csv"), on_missing_caption="skip"
    )
    assert [r.key for r in read_records(manifest)] == ["a.mp4"]
    (tmp_path / "b.TXT").unlink()
    with pytest.raises(DataError, match="none of its 3 videos has a caption"):
        read_folder(tmp_path, on_missing_caption="skip")
    with pytest.raises(ConfigError, match=r"data\.on_missing_caption is for data.kind = folder"):
        Manifest(kind="ucf101", path="x", on_missing_caption="skip")
