"""A study from its videos to its answers: blind copies, resuming, and what it refuses."""

import json
import os

import av
import pytest
import torch

from aicl.apps.user_study import QUESTIONS, open_study, prepare, read_manifest, summarise
from aicl.apps.user_study.pairs import our_sides
from lvdm.errors import DataError, VideoError
from lvdm.video import probe, read_frames, write_video
from tests.aicl.study_samples import OURS, write_pairs, write_sample


@pytest.fixture
def manifest(tmp_path):
    return write_pairs(tmp_path / "input", 3)


@pytest.fixture
def study(manifest, tmp_path):
    return prepare(tmp_path / "study", read_manifest(manifest))[0]


def test_the_copies_show_the_videos_and_nothing_else(manifest, tmp_path):
    source = manifest.parent / OURS / f"{OURS}_0.mp4"
    tagged = tmp_path / "tagged.mp4"
    with av.open(str(source)) as given, av.open(str(tagged), "w") as container:
        container.metadata["title"] = "made by our model"
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    os.replace(tagged, source)
    assert b"made by our model" in source.read_bytes()
    study, unlike = prepare(tmp_path / "study", read_manifest(manifest))
    copies = sorted((tmp_path / "study" / "videos").iterdir())
    assert unlike == 0
    assert len(copies) == 6
    for copy in copies:
        assert b"made by our model" not in copy.read_bytes()
        assert "hidden" not in copy.name
        assert copy.stat().st_mtime == 0
    code = study.join().code
    shown = [study.video(code, place, side) for place in range(3) for side in ("left", "right")]
    assert sorted(shown) == copies
    originals = [path for pair in read_manifest(manifest) for path in (pair.ours, pair.baseline)]
    frames = {tuple(read_frames(path, [1]).float().mean((0, 1, 2)).round().tolist()) for path in originals}
    for copy in copies:
        mean = read_frames(copy, [1]).float().mean((0, 1, 2))
        assert any((mean - torch.tensor(original)).abs().max() < 3 for original in frames)
        assert (probe(copy).num_frames, round(probe(copy).fps)) == (4, 8)


def test_videos_that_differ_in_form_are_counted_and_other_formats_become_mp4(tmp_path):
    write_sample(tmp_path / "a.mp4", 0)
    write_sample(tmp_path / "b.mp4", 1, frames=3)
    write_sample(tmp_path / "c.gif", 2)
    rows = [{"prompt": "p", "ours": "a.mp4", "baseline": name} for name in ("b.mp4", "c.gif")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    study, unlike = prepare(tmp_path / "study", read_manifest(tmp_path / "pairs.jsonl"))
    assert unlike == 1
    assert {path.suffix for path in (study.folder / "videos").iterdir()} == {".mp4"}


def test_whoever_always_takes_our_side_prefers_ours(study):
    """The side that is counted as ours is the side on which our video was served."""
    ours = {pair.ours_sha256[:32] for pair in study.store.pairs}
    for _ in range(4):
        view = study.join()
        for place in range(view.total):
            side = "left" if study.video(view.code, place, "left").stem in ours else "right"
            other = "right" if side == "left" else "left"
            assert study.video(view.code, place, other).stem not in ours
            study.answer(view.code, place, "uscc", side)
            study.answer(view.code, place, "usfc", other)
    shares = {row["question"]: row["preference"]["value"] for row in summarise(study.store)["results"]}
    assert shares == {"uscc": 1.0, "usfc": 0.0}


def test_evaluators_go_on_where_they_stopped_after_a_restart(study):
    first, second = study.join(), study.join()
    assert (first.position, first.answered, first.answers) == (0, 0, {})
    for question in QUESTIONS:
        study.answer(first.code, 0, question, "left")
    study.answer(first.code, 1, "uscc", "right")
    again = open_study(study.folder)
    view = again.view(first.code)
    assert (view.position, view.answered, view.answers, view.complete) == (1, 1, {"uscc": "right"}, False)
    assert view.prompt == study.view(first.code, 1).prompt
    assert again.view(second.code).position == 0
    for place in (1, 2):
        assert not again.view(first.code).finished
        for question in QUESTIONS:
            again.answer(first.code, place, question, "left")
    view = again.view(first.code)
    assert (view.position, view.answered, view.complete, view.finished) == (2, 3, True, True)
    assert not again.view(second.code).finished
    assert {study.view(first.code, place).prompt for place in range(3)} == {"prompt 0", "prompt 1", "prompt 2"}


def test_unknown_codes_and_places_are_refused(study):
    code = study.join().code
    for call in (study.view, lambda code: study.video(code, 0, "left"), lambda c: study.answer(c, 0, "uscc", "left")):
        with pytest.raises(DataError, match="nobody has the code 'x'"):
            call("x")
    for place in (-1, 3):
        with pytest.raises(DataError, match="no pair at position"):
            study.video(code, place, "left")


def test_a_study_goes_on_with_its_own_pairs_wherever_they_lie_now(study, manifest, tmp_path):
    code = study.join().code
    study.answer(code, 0, "uscc", "left")
    moved = manifest.parent.rename(tmp_path / "moved") / manifest.name
    next((study.folder / "videos").iterdir()).unlink()
    with pytest.raises(DataError, match="lacks 1 videos"):
        open_study(study.folder)
    again, _ = prepare(study.folder, read_manifest(moved))
    assert again.view(code).answers == {"uscc": "left"}
    assert len(list((study.folder / "videos").iterdir())) == 6


def test_seed_and_ties_belong_to_the_study(manifest, tmp_path):
    pairs = read_manifest(manifest)
    study, _ = prepare(tmp_path / "study", pairs, seed=4, ties=True)
    assert (study.store.settings.seed, study.store.settings.ties) == (4, True)
    prepare(tmp_path / "study", pairs, seed=4, ties=True)
    with pytest.raises(DataError, match="began with seed 4, not 5"):
        prepare(tmp_path / "study", pairs, seed=5)
    with pytest.raises(DataError, match="began with ties True, not False"):
        prepare(tmp_path / "study", pairs, ties=False)
    code = study.join().code
    study.answer(code, 0, "uscc", "tie")
    number = read_manifest(manifest).index(next(pair for pair in pairs if pair.prompt == study.view(code, 0).prompt))
    assert study.store.answers()[0].ours == our_sides(4, 1, 3)[number]


@pytest.mark.parametrize("change", ["prompt", "video", "count"])
def test_the_study_of_other_pairs_is_refused(study, manifest, change):
    if change == "prompt":
        manifest.write_text(manifest.read_text().replace("prompt 0", "another"))
    elif change == "video":
        write_video(manifest.parent / OURS / f"{OURS}_0.mp4", torch.zeros(4, 32, 32, 3).byte(), 8, overwrite=True)
    else:
        manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match="another number of pairs" if change == "count" else "another pair 1"):
        prepare(study.folder, read_manifest(manifest))
    assert len(list((study.folder / "videos").iterdir())) == 6


def test_bad_videos_are_named_and_no_study_starts(manifest, tmp_path):
    lines = manifest.read_text().splitlines()
    row = json.loads(lines[1])
    (manifest.parent / row["baseline"]).write_bytes(b"no video")
    with pytest.raises(VideoError, match="hidden_beta_1"):
        prepare(tmp_path / "study", read_manifest(manifest))
    manifest.write_text(json.dumps(row | {"baseline": row["ours"]}))
    with pytest.raises(DataError, match="are the same video"):
        prepare(tmp_path / "study", read_manifest(manifest))
    assert not (tmp_path / "study" / "study.sqlite").exists()
