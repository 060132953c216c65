"""The whole path of a table on the CPU, with small random models of the puppet world."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aicl.evaluation.engine import Experiment
from aicl.evaluation.generate import _batches
from aicl.evaluation.generated import read_generated
from aicl.evaluation.lossless import read_lossless, write_lossless
from aicl.evaluation.observe import ObservationStore
from aicl.evaluation.presets import Preset
from aicl.evaluation.results import read_result
from aicl.evaluation.row import Row
from lvdm import config as configs
from lvdm.errors import ConfigError, DataError, VideoError
from lvdm.models import quantization
from lvdm.video.reading import read_frames
from tests.aicl.evaluation_models import FRAMES, save_tiny_evaluators, save_tiny_model

ROWS = [
    {"label": "real", "kind": "real"},
    {"label": "codec", "kind": "autoencoder", "model": "tiny"},
    {"label": "base", "model": "tiny"},
    {"label": "ours", "model": "tiny", "adapter": "tiny", "references": 2, "reference_captions": "own"},
    {"label": "wrong", "model": "tiny", "adapter": "tiny", "references": 1, "wrong": True,
     "reference_guidance_scale": 2.0},
    {"label": "other", "model": "nowhere"},
]  # fmt: skip
METRICS = ["cc", "fc", "fd_puppets", "acc", "ten_way_acc", "reference_acc", "attribute_acc", "appearance_leakage"]
METRICS += ["dynamic_degree", "motion_similarity"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return save_tiny_evaluators(save_tiny_model(tmp_path_factory.mktemp("models")))


def preset(models: Path, **changes) -> Preset:
    mapping = {
        "title": "A table",
        "benchmark": {"kind": "puppets", "frames": FRAMES},
        "rows": ROWS,
        "baseline": "base",
        "metrics": METRICS,
        "model": {"tiny": str(models / "base")},
        "adapter": {"tiny": str(models / "adapter.safetensors")},
        "evaluators": {
            "classifier": {"kind": "puppets_classifier", "path": str(models)},
            "clip": {"kind": "puppets_clip", "path": str(models)},
        },
        "seeds": [0, 1],
        "videos": 5,
        "real": 20,
        "batch_size": 5,
    }
    return configs.from_mapping(Preset, mapping | changes)


@pytest.fixture(scope="module")
def experiment(models, tmp_path_factory) -> Experiment:
    """One that has been run, by two processes (here one after the other) that share the work through its folder."""
    out = tmp_path_factory.mktemp("out")
    first, second = (Experiment(preset(models), out, "cpu") for _ in range(2))
    generated: list[int] = []

    def wait() -> None:
        if not generated:  # the second process generates its share before the first goes on
            made = second.tables[0].all_made()
            generated.append(second.videos.fill(made, second.device, batch_size=5, rank=1, world_size=2))

    done = [first.run(0, 2, wait), second.run(1, 2)]
    assert generated == [20] and [count for count, _ in done] == [20, 0]
    assert sum(looked for _, looked in done) == 40 + 10 + 20 + 10 + 10  # videos, real rows, real set, references, wrong
    return first


def test_a_table_from_nothing_and_again_from_what_is_stored(models, experiment):
    assert experiment.run() == (0, 0)
    out = experiment.out
    (out / "results").mkdir()
    for stale in ("table-0-5", "table-0-9", "table-1-0", "table-old-0-9"):
        (out / "results" / f"{stale}.json").write_text("of a row that was run once")
    text = experiment.write("table")
    left = sorted(path.stem for path in (out / "results").iterdir())  # all of a name are taken into a page
    assert left == [*(f"table-0-{number}" for number in range(5)), "table-old-0-9"]
    assert text == (out / "table.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["other"].count("not run") == len(METRICS)
    assert all("not run" not in rows[label] for label in ("real", "codec", "base", "ours", "wrong"))
    assert "other: not run, no model 'nowhere' is given: model.nowhere=FOLDER" in text
    assert (out / "table.tex").read_text(encoding="utf-8").count(r"\\") == 7

    result = read_result(out / "results" / "table-0-3.json")
    assert result.row == "ours" and result.protocol.generated == 10 and result.protocol.real == 20
    assert list(result.metrics) == METRICS and not result.missing
    assert result.metrics["acc"].value == pytest.approx(sum(result.by_seed["acc"]) / 2)
    labels = [sample.label for seed in (0, 1) for sample in experiment.tables[0].samples(seed)]
    assert result.metrics["acc"].value == pytest.approx(sum(result.by_label["acc"][label] for label in labels) / 10)
    assert set(result.model["sha256"]) == {"base", "adapter"}
    assert result.lines["FC of a static video"] == 100.0 and "CC of real videos" in result.lines
    assert result.lines["FD (puppet classifier) of 10 real videos against other real ones"] > 0
    assert result.rates == {"generated": [2.0], "real": [2.0], "compared": [2.0]}
    assert set(result.protocol.networks) == {"classifier", "clip", "flow"} and result.protocol.libraries["torch"]


def test_only_what_is_lost_is_made_again(models, experiment, tmp_path):
    text = experiment.write("again")
    run = experiment.tables[0]
    gone = run.made(run.rows[2])[3].path
    before = gone.read_bytes()
    gone.unlink()
    seen = sorted((experiment.out / "observations").glob("clip-*/*.safetensors"))
    damaged = next(path for path in seen if "prompt" not in path.parent.name and path.stat().st_size > 2000)
    damaged.write_bytes(damaged.read_bytes()[:100])
    generated, looked = Experiment(preset(models), experiment.out, "cpu").run()
    assert generated == 1 and looked > 0
    assert torch.equal(read_lossless(gone)[0], pixels_of(before, tmp_path))  # in the batch that it was made in
    experiment.tables[0]._observed.clear()
    experiment.tables[0].observations.refresh()
    assert experiment.write("again") == text
    gone.unlink()  # and comes back while others wait for their turn: another program works in the folder, too
    back = {"say": lambda _: gone.write_bytes(before)}
    assert run.videos.fill(run.made(run.rows[2]), run.device, batch_size=5, **back) == 0


def pixels_of(content: bytes, folder: Path) -> torch.Tensor:
    (folder / "video.mkv").write_bytes(content)
    return read_lossless(folder / "video.mkv")[0]


def test_a_changed_metric_or_network_costs_no_video(models, experiment, tmp_path):
    other = save_tiny_evaluators(tmp_path)  # the same weights elsewhere
    evaluators = {"classifier": {"kind": "puppets_classifier", "path": str(other)}}
    again = Experiment(preset(models, evaluators=evaluators, metrics=["acc", "n_way_acc"]), experiment.out, "cpu")
    assert again.run() == (0, 0)
    assert set(again.result(again.tables[0], again.preset.rows[2]).metrics) == {"acc", "n_way_acc"}
    torch.manual_seed(5)
    weights = load_file(other / "classifier.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, other / "classifier.safetensors")
    changed = Experiment(preset(models, evaluators=evaluators, metrics=["acc"]), experiment.out, "cpu")
    assert changed.run() == (0, 70)  # all but the references and wrong ones, at which no classifier looks


def test_rows_are_compared_with_their_baseline_sample_by_sample(models, experiment):
    run = experiment.tables[0]
    base, ours, wrong = (run.result(row) for row in run.rows[2:5])
    assert ours.baseline == "base" and wrong.differences
    assert set(ours.differences) == set(METRICS) - {"fd_puppets", "appearance_leakage"}
    for name, difference in ours.differences.items():
        expected = ours.metrics[name].value - base.metrics[name].value
        assert difference.value == pytest.approx(expected, abs=1e-6) and difference.count == 10
    for row in run.rows[:3]:  # real clips, the codec's, and the baseline itself
        assert run.result(row).baseline is None and not run.result(row).differences
    text = experiment.write("table")
    second = text[text.index("| minus base |") :]
    assert second.count("| ours | ") == 1 and "| real |" not in second and "FD (puppet" not in second.split("\n\n")[0]
    assert f"{ours.differences['dynamic_degree'].value:+.2f} [" in second


def test_references_change_what_is_generated_and_only_then(experiment):
    run = experiment.tables[0]
    observed = {row.label: run.observed(row)[0] for row in run.rows[:5]}
    features = {label: part.videos["classifier.features"] for label, part in observed.items()}
    for label in ("ours", "wrong", "codec", "real"):
        assert not torch.allclose(features[label], features["base"], atol=1e-4), label
    assert all(part.labels == observed["base"].labels for part in observed.values())
    assert observed["ours"].shown_labels == observed["ours"].labels
    assert all(a != b for a, b in zip(observed["wrong"].shown_labels, observed["wrong"].labels))
    shown = observed["ours"].facts["shown_looks"]  # the third reference was not shown
    assert (shown[:, 2] == -1).all() and (shown[:, :2] >= 0).all()


def test_rows_that_say_the_same_share_videos(models, experiment):
    run = experiment.tables[0]
    own = run.source(run.rows[2])
    spelt = [Row("x", model="tiny", num_inference_steps=2), Row("y", model="tiny", group=(0, 2), baseline="base")]
    assert {run.videos.place(run.source(row)) for row in spelt} == {run.videos.place(own)}
    other = [Row("x", model="tiny", num_inference_steps=3), Row("x", model="tiny", guidance_scale=1.5)]
    assert len({run.videos.place(run.source(row)) for row in other} | {run.videos.place(own)}) == 3
    # an adapter's folder may say how strongly references guide, and the base model's rows stay as they were
    shown, plain = (run.source(run.rows[i]) for i in (3, 2))
    for source, guidance in ((shown, 3.0), (plain, plain.config.defaults.guidance_scale)):
        told = replace(source, files=replace(source.files, guidance_scale=3.0))
        assert told.settings()["guidance_scale"] == guidance and source.files.guidance_scale is None
        assert (run.videos.place(told) == run.videos.place(source)) == (source is plain)
    # with one reference, or read all alike, the first is not read apart
    shown = {"model": "tiny", "adapter": "tiny"}
    places = [
        run.videos.place(run.source(Row("z", references=k, first_reference_until=until, **shown)))
        for k, until in ((1, None), (1, 0.5), (2, None), (2, 0.0), (2, 0.5))
    ]
    assert places[0] == places[1] and places[2] == places[3] and len(set(places)) == 3


def test_rows_that_differ_only_in_their_references_each_show_their_own(models, tmp_path):
    row = {"model": "tiny", "adapter": "tiny", "references": 1}
    both = [row | {"label": "right"}, row | {"label": "wrong", "wrong": True}]
    made = {}
    for name, rows in {"together": both, "turned": both[::-1], "alone": both[1:]}.items():
        changes = {"rows": rows, "baseline": None, "metrics": ["acc"], "seeds": [0], "batch_size": 3}
        (table,) = (run := Experiment(preset(models, **changes), tmp_path / name, "cpu")).tables
        run.videos.fill(videos := table.all_made(), run.device, batch_size=3)
        for each in videos:
            made.setdefault((each.source.row.label, each.sample.number), []).append(read_lossless(each.path)[0])
    for (label, sample), videos in made.items():
        assert all(torch.equal(videos[0], other) for other in videos[1:]), f"{label} of {sample}"
    samples = {sample for _, sample in made}
    assert all(not torch.equal(made["right", each][0], made["wrong", each][0]) for each in samples)


def test_saved_videos_are_what_other_programs_read(models, experiment):
    experiment.run(save_videos="table")
    folders = sorted((experiment.out / "exported" / "table").iterdir())
    assert [folder.name for folder in folders] == ["base", "codec", "ours", "wrong"]
    videos = read_generated(folders[2])
    samples = experiment.tables[0].samples(0) + experiment.tables[0].samples(1)
    assert [video.seed for video in videos] == [sample.seed for sample in samples]
    assert [video.label for video in videos] == [sample.label for sample in samples]
    shown, _ = experiment.tables[0].benchmark.load([sample.references[0] for sample in samples])
    for video, reference in zip(videos, shown):
        difference = read_frames(video.reference, range(FRAMES)).float() - reference.float()
        assert difference.abs().mean() < 6  # the mp4's own loss

    written = {video.path: video.path.stat().st_mtime_ns for video in videos}
    manifest = folders[2] / "manifest.jsonl"  # as if the first were of another model
    manifest.write_text(manifest.read_text().replace('"video": "', '"video": "another/', 1))
    experiment.run(save_videos="table")
    assert [path.name for path, time in written.items() if path.stat().st_mtime_ns != time] == ["00000.mp4"]


def test_speed_groups_divide_the_samples(models, experiment):
    rows = [{"label": f"group {i}", "kind": "real", "group": [i, 2]} for i in range(2)]
    grouped = Experiment(preset(models, rows=rows, baseline=None, metrics=["dynamic_degree"]), experiment.out, "cpu")
    grouped.run()
    results = [grouped.result(grouped.tables[0], row) for row in grouped.preset.rows]
    assert [result.metrics["dynamic_degree"].count for result in results] == [6, 4]
    run = grouped.tables[0]
    slow, fast = (torch.cat([p.reference["flow.fastest"].mean(1) for p in run.observed(row)]) for row in run.rows)
    assert slow[:3].max() <= fast[:2].min() and slow[3:].max() <= fast[2:].min()  # within each seed


def test_groups_by_other_references_are_not_compared_sample_by_sample(models, experiment):
    rows = [row | {"group": [0, 2]} for row in (ROWS[2], ROWS[4])]
    run = Experiment(preset(models, rows=rows, metrics=["dynamic_degree"]), experiment.out, "cpu")
    assert run.run()[0] == 0
    result = run.result(run.tables[0], run.preset.rows[1])
    assert result.metrics["dynamic_degree"].count == 6 and not result.differences and result.baseline is None


def test_an_evaluator_that_sees_no_numbers_is_an_error(tmp_path):
    seen = {"logits": torch.tensor([[0.0, 1.0], [float("nan"), 2.0]])}  # argmax would name a class all the same
    evaluator = SimpleNamespace(role="classifier", name="a classifier", hash="", version=1)
    store = ObservationStore(tmp_path, "all frames")
    with pytest.raises(DataError, match="a classifier sees logits that are not finite"):
        store.add(evaluator, ["a", "b"], seen)
    assert store.missing(evaluator, ["a", "b"]) == {"a", "b"}


def test_too_few_videos_are_refused_before_the_work(models, tmp_path):
    for change, message in (({"seeds": [0]}, "9 videos or more a row.* got 5 and 20"), ({"real": 8}, "got 10 and 8")):
        with pytest.raises(ConfigError, match=message):
            Experiment(preset(models, **change), tmp_path, "cpu").run()
    with pytest.raises(ConfigError, match=r"3 videos or more a row.* got 2 and 20"):
        Experiment(preset(models, seeds=[0], videos=2, allow_few=True), tmp_path, "cpu").run()
    with pytest.raises(ConfigError, match="group 0': 3 groups need 6 videos or more, got 5"):
        preset(models, rows=[{"label": "group 0", "kind": "real", "group": [0, 3]}], baseline=None)
    assert not list(tmp_path.iterdir())
    assert Experiment(preset(models, seeds=[0], rows=ROWS[-1:], baseline=None), tmp_path, "cpu").run() == (0, 0)


def test_a_model_whose_videos_do_not_last_long_enough_is_not_run(models, tmp_path):
    shorter = Experiment(preset(models, benchmark={"kind": "puppets", "frames": FRAMES + 4}), tmp_path, "cpu")
    run = shorter.tables[0]
    why = run.obstacle(run.rows[2])
    assert "videos of 4 frames at 2 a second cannot be compared at 8 frames and 4 a second" in why


def test_the_length_of_a_rows_videos_is_told_by_its_adapters_rate(models, tmp_path):
    """The base model's four frames at 2 a second are long enough; at the 4 a second of this adapter they are not."""
    path, known = tmp_path / "adapter.safetensors", models / "adapter.safetensors"
    with safe_open(known, "pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(state, path, metadata | {"aicl": json.dumps(json.loads(metadata["aicl"]) | {"fps": 4.0})})
    rows = [{"label": "base", "model": "tiny"}]
    rows += [{"label": name, "model": "tiny", "adapter": name, "references": 1} for name in ("tiny", "faster")]
    changed = preset(models, rows=rows, baseline=None, adapter={"tiny": str(known), "faster": str(path)})
    run = Experiment(changed, tmp_path, "cpu").tables[0]
    base, ours, faster = run.rows
    assert run.obstacle(base) is None and run.obstacle(ours) is None
    assert run.source(faster).defaults.save_fps == 4
    assert f"cannot be compared at {FRAMES} frames" in run.obstacle(faster)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["fvdd"]}, "unknown key 'fvdd' in .*metrics: did you mean 'fvd'"),
        ({"baseline": "bass"}, "the baseline of 'A table' is 'bass'"),
        ({"rows": [*ROWS, ROWS[0]]}, "two rows 'real'"),
        ({"benchmark": {"kind": "puppet"}}, "unknown key 'puppet' in benchmark.kind: did you mean 'puppets'"),
        ({"benchmark": {"kind": "puppets", "action": "seen"}}, "key 'action' in benchmark: did you mean 'actions'"),
        ({"benchmark": {"kind": "puppets", "actions": "sen"}}, "benchmark.actions is 'sen': choose seen or unseen"),
        ({"evaluators": {"clip": {"kind": "clipp", "path": "x"}}}, "unknown key 'clipp' in evaluators"),
        ({"rows": [{"label": "x", "model": "tiny", "lead": 0.5}]}, "'lead' .*first_reference_until"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"sets": []}, "'A table' has no sets"),
    ],
)  # fmt: skip
def test_what_does_not_fit_ends_in_a_sentence(models, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        Experiment(preset(models, **change), tmp_path, "cpu")


def test_a_study_fills_the_columns_of_what_people_say(models, experiment, tmp_path):
    entry = {"group": "tiny", "preference": {"value": 0.75, "low": 0.6, "high": 0.9, "count": 40, "method": "Wilson"}}
    report = tmp_path / "study.json"
    report.write_text(
        json.dumps({"results": [{"question": "uscc", **entry}, {**entry, "question": "usfc", "group": "x"}]})
    )
    shown = preset(models, metrics=["fc", "us_cc", "us_fc"], user_study=str(report))
    asked = Experiment(shown, experiment.out, "cpu")
    base, ours, wrong = (asked.result(asked.tables[0], row) for row in asked.preset.rows[2:5])
    assert ours.metrics["us_cc"].value == 0.75 and base.metrics["us_cc"].value == 0.25
    assert (base.metrics["us_cc"].low, base.metrics["us_cc"].high) == (pytest.approx(0.1), 0.4)
    assert "us_fc" not in ours.metrics and "us_cc" not in wrong.metrics
    assert "75.0 [60.0, 90.0]" in asked.write("studied")
    # which of two rows with references people saw, nobody knows
    rows = [*ROWS[2:4], ROWS[3] | {"label": "as ours", "scale": 1.0}]
    two = Experiment(replace(shown, rows=[configs.from_mapping(Row, row) for row in rows]), experiment.out, "cpu")
    base, *ours = (two.result(two.tables[0], row) for row in two.preset.rows)
    assert "us_cc" in base.metrics and not any("us_cc" in each.metrics for each in ours)
    assert "us_cc is left out: of several rows of tiny, the study does not say" in two.write("two")
    report.write_text(json.dumps({"results": [{"question": "uscc", **entry, "group": "LVDM"}]}))
    with pytest.raises(DataError, match="has the groups LVDM, and the rows' models are tiny, nowhere: serve the study"):
        Experiment(shown, experiment.out, "cpu")
    report.write_text("{}")
    with pytest.raises(DataError, match="no report of aicl user-study"):
        asked.result(asked.tables[0], asked.preset.rows[2])


def test_lossless_means_every_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for shape, fps in (((4, 64, 48, 3), 8.0), ((3, 34, 50, 3), 7.5), ((2, 16, 16, 3), 10)):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        write_lossless(tmp_path / "a.mkv", pixels, fps)
        write_lossless(tmp_path / "b.mkv", pixels, fps)
        assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
        again, rate = read_lossless(tmp_path / "a.mkv")
        assert torch.equal(again, pixels) and rate == fps
    content = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) // 3])
    with pytest.raises(VideoError, match=r"a\.mkv"):
        read_lossless(tmp_path / "a.mkv")


def test_prompts_that_two_tables_share_do_not_cut_batches(models, tmp_path):
    """Plain and free captions are the same for a few samples, whose videos are shared."""
    sets = [{"benchmark": {"captions": captions}} for captions in ("plain", "free")]
    both = Experiment(preset(models, sets=sets, rows=ROWS[2:4], videos=40, seeds=[0]), tmp_path, "cpu")
    videos = [video for run in both.tables for video in run.all_made()]
    unique = {video.path: video for video in videos}
    assert 120 < len(unique) < 160  # some are shared
    batches = list(_batches(list(unique.values()), 20))
    assert sum(map(len, batches)) == len(unique) and len(batches) == 8
    for batch in batches:
        assert len({(made.path.parent, id(made.benchmark)) for made in batch}) == 1


def test_a_row_in_8_bits_has_a_model_and_videos_of_its_own(models, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "WIDTH", 32)
    rows = [{"label": "8 bits", "model": "tiny", "quantization": "fp8"}, {"label": "plain", "model": "tiny"}]

    def videos(name: str, rows: list) -> dict[str, torch.Tensor]:
        changes = {"rows": rows, "baseline": None, "seeds": [0], "videos": 2, "batch_size": 2}
        run = Experiment(preset(models, **changes), tmp_path / name, "cpu")
        made = run.tables[0].all_made()
        run.videos.fill(made, run.device, batch_size=2)
        return {each.source.row.label: read_lossless(each.path)[0] for each in made[::2]}

    both, alone = videos("both", rows), videos("alone", rows[1:])
    assert torch.equal(both["plain"], alone["plain"])
    assert not torch.equal(both["plain"], both["8 bits"])
    method = {"kind": "lora"}
    with pytest.raises(ConfigError, match="quantization is a setting of AICL, not of a method"):
        Row("learned", model="tiny", adapter="tiny", references=1, method=method, quantization="fp8")
