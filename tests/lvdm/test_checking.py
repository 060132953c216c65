"""Finding broken videos: reports, going on after an interruption, the two data scripts."""

import json
import os
from pathlib import Path

import pytest

from aicl.cli import run_verb
from lvdm.data import ClipConfig, ClipDataset, checking, read_report
from lvdm.data.checking import check_records
from lvdm.data.clips import ClipRecord
from lvdm.errors import DiskError, VideoError
from lvdm.video import write_video
from tests.lvdm.disks import full_disk, read_only_disk
from tests.lvdm.training_runs import save_config
from tests.lvdm.videos import pixels, records, truncated


@pytest.fixture
def videos(tmp_path):
    listed = records(tmp_path / "videos", 6)
    truncated(listed[3].path, listed[3].path, 0.4)
    listed[4].path.unlink()
    return listed


def test_the_report(videos, tmp_path):
    seen = []
    report = check_records(videos, tmp_path / "report.json", progress=lambda *state: seen.append(state))
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["checked"] == 6 and list(report["broken"]) == ["3.mp4", "4.mp4"] and not report["quick"]
    assert "not a readable video" in report["broken"]["3.mp4"] and "is not there" in report["broken"]["4.mp4"]
    assert report["frames"] == {"least": 12, "median": 13.5, "most": 17} and report["sizes"] == {"28x20": 4}
    assert seen[0] == (0, 6, 0) and seen[-1] == (6, 6, 2)
    assert read_report(tmp_path / "report.json") == ["3.mp4", "4.mp4"]


def test_videos_of_a_single_frame_are_listed_and_left_out(tmp_path, capsys):
    videos = records(tmp_path / "videos", 2)
    write_video(videos[0].path, pixels(1, 20, 28), fps=10, overwrite=True)
    for clip in videos:
        clip.path.with_suffix(".txt").write_text("kicking")
    source = ["--kind", "folder", "--path", tmp_path / "videos", "--workers", 1]
    status, said, _ = run_script(capsys, *source, "--report", tmp_path / "r.json")
    assert status == 0 and "0.mp4: a single frame shows no motion" in said
    assert "0 broken, 0 damaged, 1 of a single frame" in said
    assert json.loads((tmp_path / "r.json").read_text())["single_frame"] == ["0.mp4"]

    clips = ClipDataset(videos, ClipConfig(4, (8, 8)))
    item = next(item for item in map(clips.__getitem__, range(20)) if item["skipped"])
    assert "0.mp4: a single frame shows no motion" in item["skipped"][0] and item["caption"] == "caption 1"
    assert ClipDataset(videos[:1], ClipConfig(1, (8, 8)))[0]["frames"].shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("clip", "keys", "said"),
    [
        (
            {"num_frames": 6, "fps": 4.2},
            ["0.mp4"],
            "1 of 2 videos are shorter than a clip of 6 frames at 4.2 a second: they are played more slowly",
        ),
        ({"num_frames": 13, "short": "hold"}, ["0.mp4"], "13 frames with a stride of 1: they hold their last frame"),
        ({"num_frames": 3, "stride": 6, "short": "error"}, ["0.mp4"], "3 frames with a stride of 6: they are left out"),
        ({"num_frames": 12}, [], ""),
    ],
)
def test_videos_that_are_shorter_than_a_clip_are_counted(tmp_path, capsys, clip, keys, said):
    for video in records(tmp_path / "videos", 2):  # of 12 and 13 frames, 10 a second
        video.path.with_suffix(".txt").write_text("kicking")
    section = {"kind": "folder", "path": str(tmp_path / "videos"), "clip": {"size": [8, 8]} | clip}
    save_config(tmp_path / "c.yaml", {"data": section})
    status, out, _ = run_script(
        capsys, "--config", tmp_path / "c.yaml", "--report", tmp_path / "r.json", "--workers", 1
    )
    assert status == 0 and said in out and ("shorter than a clip" in out) == bool(keys)
    assert json.loads((tmp_path / "r.json").read_text())["short"] == keys


def test_processes_give_the_same_report(videos, tmp_path):
    expected = check_records(videos, tmp_path / "one.json")
    assert check_records(videos, tmp_path / "two.json", workers=2) == expected


def test_checking_goes_on_and_sees_changes(videos, tmp_path, monkeypatch):
    tried = []
    check = checking.check_record
    monkeypatch.setattr(
        checking, "check_record", lambda record, quick: tried.append(record.key) or check(record, quick)
    )

    def interrupt(done, total, broken):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_records(videos, tmp_path / "report.json", progress=interrupt)
    assert not (tmp_path / "report.json").exists() and len(tried) == 4
    with open(tmp_path / "report.json.jsonl", "a") as journal:
        journal.write('{"key": "half a li')  # killed while writing
    tried.clear()
    report = check_records(videos, tmp_path / "report.json")
    assert tried == ["4.mp4", "5.mp4"] and report["checked"] == 6 and len(report["broken"]) == 2

    tried.clear()
    videos[3].path.write_bytes(videos[0].path.read_bytes())  # fetched again
    assert list(check_records(videos, tmp_path / "report.json")["broken"]) == ["4.mp4"]
    assert tried == ["3.mp4"]


def test_a_video_that_might_not_be_read_is_tried_again_once_it_may(tmp_path, monkeypatch):
    (video,) = records(tmp_path / "videos", 1)

    def refused(path):
        raise VideoError(f"{path}: may not be read (permission denied)")

    with monkeypatch.context() as denied:  # whoever runs tests as root may read everything
        denied.setattr(checking, "check_video", refused)
        denied.setattr(os, "access", lambda path, mode: False)
        assert list(check_records([video], tmp_path / "report.json")["broken"]) == ["0.mp4"]
    assert not check_records([video], tmp_path / "report.json")["broken"]


def test_a_quick_check_does_not_count_as_a_thorough_one(videos, tmp_path, monkeypatch):
    quick = check_records(videos, tmp_path / "report.json", quick=True)
    assert quick["quick"] and len(quick["broken"]) == 2
    monkeypatch.setattr(checking, "probe", None)  # a thorough result serves a quick check
    assert not check_records(videos, tmp_path / "report.json")["quick"]
    assert len(check_records(videos, tmp_path / "report.json", quick=True)["broken"]) == 2


def run_script(capsys, *arguments):
    """(exit status, stdout, stderr) of `aicl check-data`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_verb("check-data", [*map(str, arguments)])
    return (stop.value.code, *capsys.readouterr())


def test_the_command(videos, tmp_path, capsys):
    lines = [json.dumps({"file": record.key, "caption": record.caption}) for record in videos if record.path.exists()]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    source = ["--kind", "folder", "--path", tmp_path / "videos", "--captions", tmp_path / "captions.jsonl"]
    status, out, err = run_script(capsys, *source, "--report", tmp_path / "report.json", "--workers", 1)
    assert status == 1 and "5 videos checked, 1 broken" in out and "3.mp4: " in out
    assert "Traceback" not in err and "5/5" in err
    film = tmp_path / "videos" / "0.mp4"
    before = film.read_bytes()
    status, _, err = run_script(capsys, *source, "--report", film)
    assert status == 2 and "exists already and is no report of aicl check-data" in err and film.read_bytes() == before
    renewed = run_script(capsys, *source, "--report", tmp_path / "report.json", "--workers", 1)
    assert renewed[0] == 1
    alone = ["--kind", "folder", "--path", tmp_path / "videos", "--report", tmp_path / "alone.json"]
    assert "data.default_caption=x changes a config" in run_script(capsys, *alone, "data.default_caption=x")[2]
    config = run_script(capsys, "--config", "configs/aicl_lvdm_self_pairs.yaml", "--default-caption", "x")
    assert config[0] == 2 and "give data.default_caption=x with --config" in config[2]
    assert "--default-caption" in run_script(capsys, *alone)[2]
    assert "5 videos checked" in run_script(capsys, *alone, "--default-caption", "x", "--workers", 1)[1]
    status, _, err = run_script(capsys, "--kind", "folder", "--path", tmp_path / "nowhere")
    assert status == 2
    hint = "give the folder of the videos, and the file of their captions if there is one"
    assert err == f"error: {tmp_path / 'nowhere'} does not exist: {hint}\n"


def test_a_full_disk_is_one_sentence_and_the_check_goes_on_once_there_is_room(videos, tmp_path, monkeypatch):
    expected = check_records(videos, tmp_path / "other.json")
    tried, check = [], checking.check_record
    monkeypatch.setattr(
        checking, "check_record", lambda record, quick: tried.append(record.key) or check(record, quick)
    )
    with full_disk(400), pytest.raises(DiskError, match=r"report.json.jsonl: cannot be written \(.*\); make room"):
        check_records(videos, tmp_path / "report.json")
    assert not (tmp_path / "report.json").exists() and 2 <= len(tried) < 6
    with read_only_disk(), pytest.raises(DiskError, match="Read-only"):
        check_records(videos, tmp_path / "report.json")
    before = len(tried)
    assert check_records(videos, tmp_path / "report.json") == expected
    assert len(tried) < before + 6  # what was written before is not done again


@pytest.mark.parametrize(
    "line",
    [b"\0" * 50, b"[]", b"1", b'"a"', b"null", b"[" * 100_000, b"{}", b'{"key": "0.mp4"}', b'{"key": ["0.mp4"]}',
     b'{"key": "0.mp4", "stamp": [1, 2], "quick": true}', b'{"key": "0.mp4", "stamp": 5, "quick": false, "error": "x"}',
     b'{"key": "0.mp4", "stamp": [], "quick": false, "error": null, "frames": "many", "fps": 1, "width": 1}',
     b"\xff\xfe"],
)  # fmt: skip
def test_damaged_lines_of_the_journal_are_checked_again(videos, tmp_path, line):
    expected = check_records(videos, tmp_path / "report.json")
    journal = tmp_path / "report.json.jsonl"
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([*lines[1:3], line, *lines[3:]]) + b"\n")
    assert check_records(videos, tmp_path / "report.json") == expected


def test_names_that_are_no_utf8_are_reported(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")
    report = check_records([ClipRecord(Path(path), "", "", "\udcff.mp4")], tmp_path / "report.json")
    assert list(report["broken"]) == ["\udcff.mp4"] == read_report(tmp_path / "report.json")
