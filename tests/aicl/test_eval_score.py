"""Scoring folders of files, through the command."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from aicl.cli import evaluate, parse
from aicl.evaluation.benchmark import build_benchmark
from aicl.evaluation.generated import read_generated
from aicl.evaluation.metric import build_evaluators, get_metrics
from aicl.evaluation.results import Result, check_comparable
from aicl.evaluation.score import ClipReading, _other, choose_reading, score
from lvdm.errors import ConfigError, DataError, UserError, VideoError
from lvdm.video import write_video
from tests.aicl.evaluation_models import save_tiny_evaluators

FRAMES, COUNT = 4, 12


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """generated/ with a manifest, references/, real/, networks/ of random weights and networks.yaml that names them."""
    folder = tmp_path_factory.mktemp("world")
    networks = save_tiny_evaluators(folder / "networks")
    specs = {kind: {"kind": f"puppets_{kind}", "path": str(networks)} for kind in ("classifier", "clip")}
    (folder / "networks.yaml").write_text(json.dumps({"evaluators": specs}))
    benchmark = build_benchmark({"kind": "puppets", "frames": FRAMES}, "cpu")
    samples = benchmark.samples(0, 0, COUNT)
    sets = {"generated": [sample.target for sample in samples], "real": benchmark.real(2 * COUNT)}
    sets["references"] = [sample.references[0] for sample in samples]
    for name, clips in sets.items():
        for number, pixels in enumerate(benchmark.load(clips)[0]):
            write_video(folder / name / f"{number:02d}.mp4", pixels, fps=4)
    entries = [
        {"file": f"{i:02d}.mp4", "caption": s.prompt, "label": s.label, "reference": f"../references/{i:02d}.mp4"}
        for i, s in enumerate(samples)
    ]
    (folder / "generated" / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return folder


def run(*arguments) -> None:
    evaluate.main(parse("evaluate", [str(argument) for argument in arguments]))


def scored(world, out, row, *more) -> None:
    arguments = ["--benchmark", world / "networks.yaml", "--real", world / "real", "--row", row, "--device", "cpu"]
    run("score", world / "generated", *arguments, "--cache", out / "cache", "--result", out / f"{row}.json", *more)


def measure(videos, reading, out, real=()) -> Result:
    """By what optical flow sees."""
    metrics = get_metrics(["dynamic_degree", "motion_similarity", "motion_similarity_other"], "a test")
    return score(
        "row", videos, list(real), reading, build_evaluators({"flow": {}}, "cpu"), metrics, cache=out / "cache"
    )


def test_a_folder_is_scored_and_set_in_a_table(world, tmp_path, capsys):
    scored(world, tmp_path, "ours")
    text = capsys.readouterr().out
    for name in ("CC ↑", "FC ↑", "FD (puppet classifier) ↓", "ACC % ↑", "10-way accuracy %", "attribute accuracy %",
                 "Dynamic Degree", "motion similarity", "motion fidelity", "CLIP-I"):  # fmt: skip
        assert f" {name}" in text, name
    assert (
        f"FD (puppet classifier) of {COUNT} real videos against other" in text and "FC of a static video: 100" in text
    )
    assert "own frame rates of generated videos: 4 a second" in text and "1 apart" in text
    scored(world, tmp_path, "again")
    content = [json.loads((tmp_path / f"{row}.json").read_text()) for row in ("ours", "again")]
    assert content[0]["metrics"] == content[1]["metrics"]
    assert content[0]["protocol"]["generated"] == COUNT and content[0]["protocol"]["real"] == 2 * COUNT
    capsys.readouterr()
    run("table", tmp_path / "ours.json", tmp_path / "again.json")
    assert "| ours |" in (table := capsys.readouterr().out) and "| again |" in table
    scored(world, tmp_path, "other stride", "--frames", 4, "--stride", 0.5)
    with pytest.raises(DataError, match="measured differently"):
        run("table", tmp_path / "ours.json", tmp_path / "other stride.json")
    with pytest.raises(ConfigError, match="exists already"):
        scored(world, tmp_path, "ours")


def test_short_videos_are_errors_unless_allowed(world, tmp_path):
    videos = read_generated(world / "generated", world / "generated" / "manifest.jsonl")
    with pytest.raises(VideoError, match=r"00\.mp4: .*lower the stride"):
        measure(videos, choose_reading(videos, [], frames=FRAMES, stride=2.0), tmp_path)
    allowed = choose_reading(videos, [], frames=FRAMES, stride=2.0, allow_short=True)
    result = measure(videos[:2], allowed, tmp_path)
    assert set(result.metrics) == {"dynamic_degree", "motion_similarity", "motion_similarity_other"}


def test_rates_that_differ_are_refused_until_one_is_given(world, tmp_path):
    """The same clips at twice the rate, each frame twice: at a common rate they are the same."""
    videos = read_generated(world / "generated")
    doubled = tmp_path / "real"
    for video in videos:
        pixels = ClipReading(FRAMES, (64, 64), stride=1.0).read(video.path)
        frames = ((pixels.permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8)
        write_video(doubled / video.path.name, frames.repeat_interleave(2, dim=0), fps=8)
    real = sorted(doubled.iterdir())
    for changes in ({}, {"stride": 1.0}, {"frames": 3}):
        with pytest.raises(ConfigError, match=r"00\.mp4 has 4 frames a second and .* 8: say with --fps"):
            choose_reading(videos, real, **changes)
    reading = choose_reading(videos, real, fps=4)
    assert (reading.frames, reading.fps, reading.stride) == (FRAMES, 4, None)
    result = measure(videos, reading, tmp_path, real)
    assert result.rates == {"generated": [4.0], "real": [8.0], "compared": [4.0]}
    same = result.lines["Dynamic Degree of real videos"]
    assert result.metrics["dynamic_degree"].value == pytest.approx(same, rel=0.1)
    with pytest.raises(DataError, match=r"fps: .* against"):  # at which rate belongs to the protocol
        check_comparable([result, measure(videos, choose_reading(videos, [], fps=2, frames=2), tmp_path)])


def test_other_motion_is_that_of_another_reference_and_class(world, tmp_path):
    videos = read_generated(world / "generated", world / "generated" / "manifest.jsonl")
    # 10 classes in turn: the first is compared with the second, and, of two of one class, nothing is left to compare
    assert [_other(videos, index) for index in (0, 11)] == [1, 0]
    result = measure([videos[0], videos[10]], choose_reading(videos, []), tmp_path)
    assert set(result.metrics) == {"dynamic_degree", "motion_similarity"}
    assert set(result.missing) == {"motion_similarity_other"}


def test_what_sampling_wrote_is_understood(world, tmp_path):
    source = (world / "real" / "00.mp4").read_bytes()

    def record(seed: int, **job) -> None:
        content = {"prompt": f"walks {seed}", "seed": seed, "label": "walk"}
        content |= {} if "refs" in job else {"references": []}
        (tmp_path / f"a-{seed}.json").write_text(json.dumps({"job": content | job}))

    for seed in (1, 0):
        (tmp_path / f"a-{seed}.mp4").write_bytes(source)
        record(seed)
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "list.json").write_text("[]")
    videos = read_generated(tmp_path)
    assert [(video.prompt, video.label) for video in videos] == [("walks 0", "walk"), ("walks 1", "walk")]
    assert videos[0].path.name == "a-0.mp4" and videos[0].reference is None
    result = measure(videos, choose_reading(videos, []), tmp_path)
    assert result.protocol.seeds == [0, 1] and result.protocol.stride == 1.0

    shown = world / "references" / "00.mp4"
    record(0, references=[{"video": str(shown), "caption": None, "weight": 1.0}])
    assert [video.reference for video in read_generated(tmp_path)] == [shown, None]
    record(0, refs=[str(shown)])  # as older versions wrote it
    record(1, references=["gone.mp4"])
    videos = read_generated(tmp_path)
    with pytest.warns(UserWarning, match=r"gone\.mp4 is not there: nothing is compared"):
        result = measure(videos, choose_reading(videos, []), tmp_path)
    assert set(result.metrics) == {"dynamic_degree"}


def test_one_more_video_is_one_more_look(world, tmp_path):
    videos = read_generated(world / "generated")
    reading = choose_reading(videos, [])
    measure(videos[:6], reading, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    measure(videos[:7], reading, tmp_path)
    new = [path for path in (tmp_path / "cache").rglob("*.safetensors") if path not in written]
    assert len(new) == 1 and all(path.stat().st_mtime_ns == time for path, time in written.items())
    copied = tmp_path / "renamed.mp4"  # a name is nothing
    shutil.copyfile(videos[0].path, copied)
    moved = [type(videos[0])(copied, videos[0].prompt, reference=videos[0].reference), *videos[1:7]]
    measure(moved, reading, tmp_path)
    assert {*written, *new} == set((tmp_path / "cache").rglob("*.safetensors"))


def test_lengths_that_differ_ask_for_a_choice(tmp_path):
    for number, frames in enumerate((FRAMES, FRAMES + 2)):
        write_video(tmp_path / f"{number}.mp4", torch.zeros(frames, 64, 64, 3, dtype=torch.uint8), fps=4)
        (tmp_path / f"{number}.txt").write_text("a person waves")
    videos = read_generated(tmp_path)
    with pytest.raises(VideoError, match=r"0\.mp4 has 4 frames and .*1\.mp4 6: say with --frames"):
        choose_reading(videos, [])
    assert choose_reading(videos, [], frames=FRAMES).frames == FRAMES
    with pytest.raises(VideoError, match=r"0\.mp4: a clip spans 6 .*take fewer frames .* or allow short"):
        measure(videos, choose_reading(videos, [], frames=6), tmp_path)
    with pytest.raises(VideoError, match=r"0\.mp4: is shorter than 6 frames at 4 a second"):
        measure(videos, choose_reading(videos, [], frames=6, fps=4), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "0x64"], "size is 0x64: both sides must be positive"),
        (["--size", "32x32"], "takes clips .*4, 64, 64"),
        (["--frames", "0"], "frames is 0: it must be positive"),
        (["--fps", "-1"], "fps is -1: it must be positive"),
        (["--batch-size", "0"], "batch size is 0"),
        (["--real", "nowhere"], "nowhere does not exist"),
        (["--metrics", "fcc"], "unknown key 'fcc' in --metrics: did you mean 'fc'"),
        (["--result", f"{__file__}/result.json"], "result.json: cannot be written .*choose another place"),
        (["--cache", __file__], "cannot be written .*choose another place"),
    ],
)
def test_options_that_cannot_work_end_in_a_sentence(world, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        scored(world, tmp_path, "ours", *options)
    assert not list(tmp_path.glob("*.json"))


def test_a_single_video_is_too_few(world, tmp_path):
    videos = read_generated(world / "generated")[:1]
    with pytest.raises(DataError, match="has a single video, which gives no estimate: two are the least"):
        measure(videos, choose_reading(videos, []), tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "00.mp4"}', "line 1 is no"),
        ("[]", "line 1: must be an object"),
        ('{"file": "missing.mp4", "caption": "x"}', "which is not there"),
        ('{"file": "00.mp4", "caption": "x", "seed": "one"}', "has the seed 'one'"),
        ('{"file": "00.mp4", "caption": "x", "reference": "y.mp4"}', "y.mp4, which is not there"),
    ],
)
def test_manifests_say_what_is_wrong(world, tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read_generated(world / "real", tmp_path / "m.jsonl")
