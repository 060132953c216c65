"""The whole path of a table on the CPU, with small random models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import ActionPrism, PrismConfig
from aicl.adapter import save_adapter
from aicl.evaluation import experiments
from aicl.evaluation.experiments import Experiment, Preset, load_preset
from aicl.evaluation.folders import read_generated
from aicl.evaluation.protocol import read_result
from aicl.evaluation.puppet_set import PuppetData, draw_samples
from aicl.integrated_backbone import integrate
from aicl.puppets.actions import ACTIONS, UNSEEN, UNSEEN_INDICES
from aicl.puppets.captions import parse, unseen_words, vocabulary
from aicl.puppets.classifier import ClassifierConfig, PuppetClassifier
from aicl.puppets.clip import CLIPConfig, PuppetCLIP
from aicl.puppets.evaluators import save_evaluator
from lvdm import config as configs
from lvdm.checkpoints import save_pipeline
from lvdm.errors import ConfigError
from lvdm.models.components import ModelConfig, build_components
from lvdm.video import to_pixels
from lvdm.video.reading import read_frames
from tests.aicl.tiny_models import randomise

ROOT = Path(__file__).resolve().parents[2]
FRAMES, SIZE = 4, 64


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """base/, adapter.safetensors and the evaluators, all with random weights that do something."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    mapping = configs.load(ROOT / "configs" / "models" / "tiny_lvdm.yaml")
    mapping["autoencoder"]["ddconfig"] |= {"ch_mult": [1, 1, 1, 1], "resolution": SIZE}  # 8x: latents of 8x8
    mapping["defaults"] |= {"size": [SIZE, SIZE], "num_frames": FRAMES, "num_inference_steps": 2}
    mapping["text"]["context_length"] = 64
    config = configs.from_mapping(ModelConfig, mapping)
    components = build_components(config)
    randomise(components.unet, seed=1)
    save_pipeline(components, config, folder / "base")
    prism = ActionPrism(PrismConfig(context_dim=32, width=16, depth=1, heads=1, head_dim=16, text_width=8))
    integrated = integrate(components.unet, IntegrationConfig(head_dim=16))
    randomise(integrated.blocks, seed=2)
    save_adapter(folder / "adapter.safetensors", prism, integrated)
    classifier = ClassifierConfig(size=SIZE, frames=FRAMES, width=8, features=8, layers=1, heads=1)
    save_evaluator(folder, "classifier", PuppetClassifier(classifier))
    clip = CLIPConfig(size=SIZE, width=32, vision_layers=1, text_layers=1, embed_dim=8)
    save_evaluator(folder, "clip", PuppetCLIP(clip))
    return folder


def preset(models: Path, **changes) -> Preset:
    rows = [
        {"label": "real", "kind": "real"},
        {"label": "codec", "kind": "autoencoder"},
        {"label": "base", "references": 0},
        {"label": "ours", "references": 2, "reference_captions": "own"},
        {"label": "wrong", "references": 1, "wrong": True, "reference_guidance": 2.0},
        {"label": "other", "missing": "nobody trained it"},
    ]
    metrics = ["cc", "fc", "fvd", "acc", "choice", "reference_acc", "looks", "leak", "dynamics", "motion"]
    mapping = {
        "tables": [{"title": "A table", "metrics": metrics, "rows": rows, "baseline": "base"}],
        "model": {"path": str(models / "base"), "adapter": str(models / "adapter.safetensors")},
        "evaluators": {"classifier": str(models), "clip": str(models)},
        "seeds": [0, 1],
        "videos": 5,
        "real": 20,
        "batch_size": 5,
    }
    return configs.from_mapping(Preset, mapping | changes)


@pytest.fixture(scope="module")
def experiment(models, tmp_path_factory) -> Experiment:
    """One that has been run, by two processes that share the work."""
    experiment = Experiment(preset(models), tmp_path_factory.mktemp("out"), "cpu")
    assert experiment.run(rank=0, world_size=2) + experiment.run(rank=1, world_size=2) == 5 * 2 + 1
    return experiment


def test_a_table_from_nothing_and_again_from_what_is_stored(models, experiment):
    assert experiment.run() == 0
    out = experiment.out
    (out / "results").mkdir()
    (out / "results" / "table-0-5.json").write_text("of a row that was run once")
    text = experiment.write("table")
    assert not (out / "results" / "table-0-5.json").exists()
    assert text == (out / "table.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["other"].count("not run") == 10
    assert all("not run" not in rows[label] for label in ("real", "codec", "base", "ours", "wrong"))
    assert "other: not run, nobody trained it" in text
    assert (out / "table.tex").read_text(encoding="utf-8").count(r"\\") == 7

    result = read_result(out / "results" / "table-0-3.json")
    assert result.row == "ours" and result.protocol.generated == 10 and result.protocol.real == 20
    assert set(result.metrics) == set(preset(models).tables[0].metrics)
    assert len(result.by_seed["acc"]) == 2
    assert result.metrics["acc"].value == pytest.approx(sum(result.by_seed["acc"]) / 2)
    assert {"base", "adapter"} <= result.model.keys()
    assert result.lines["fc_static"] == 100.0 and result.lines["fvd_floor"] > 0
    assert result.protocol.libraries["torch"] and set(result.protocol.networks) == {"classifier", "clip"}

    spec = experiment.preset.tables[0]
    # one damaged chunk, and one that is gone: only these are measured again, with the same numbers
    damaged, gone = (experiment.store.path(experiment.chunks(spec, row)[0]) for row in (spec.rows[2], spec.rows[3]))
    damaged.write_bytes(damaged.read_bytes()[:100])
    gone.unlink()
    assert experiment.run() == 2
    assert experiment.write("table") == text


def test_rows_are_compared_with_the_baseline_sample_by_sample(models, experiment):
    spec = experiment.preset.tables[0]
    base, ours, wrong = (experiment.result(spec, row) for row in spec.rows[2:5])
    assert ours.baseline == "base" and wrong.differences
    assert set(ours.differences) == set(spec.metrics) - {"fvd", "leak"}  # copies that could leak differ in number
    for name, difference in ours.differences.items():
        expected = ours.metrics[name].value - base.metrics[name].value
        assert difference.value == pytest.approx(expected, abs=1e-6) and difference.count == 10
    for row in spec.rows[:3]:  # real clips, the codec's, and the baseline itself
        assert experiment.result(spec, row).baseline is None and not experiment.result(spec, row).differences
    text = experiment.write("table")
    second = text[text.index("| minus base |") :]
    assert second.count("| ours | ") == 1 and "| real |" not in second and "FVD |" not in second
    assert f"{ours.differences['dynamics'].value:+.2f} [" in second


def test_references_change_what_is_generated_and_only_then(experiment):
    spec = experiment.preset.tables[0]
    measured = {row.label: experiment.store.read(experiment.chunks(spec, row)[0]) for row in spec.rows[:5]}
    features = {label: part["features"] for label, part in measured.items()}
    for label in ("ours", "wrong", "codec", "real"):
        assert not torch.allclose(features[label], features["base"], atol=1e-4), label
    assert all(torch.equal(part["actions"], measured["base"]["actions"]) for part in measured.values())
    assert torch.equal(measured["ours"]["shown_actions"], measured["ours"]["actions"])
    assert (measured["wrong"]["shown_actions"] != measured["wrong"]["actions"]).all()
    # the third reference was not shown
    assert (measured["ours"]["shown_looks"][:, 2] == -1).all() and (measured["ours"]["shown_looks"][:, :2] >= 0).all()


@pytest.fixture
def one_thread():
    """Several share out a batch by its size, and a pixel that rounds otherwise can turn a flow around."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_batches_do_not_matter(models, tmp_path, one_thread):
    measured = []
    for size in (2, 3):
        experiment = Experiment(preset(models, seeds=[0], batch_size=size), tmp_path / str(size), "cpu")
        spec = experiment.preset.tables[0]
        chunk = experiment.chunks(spec, spec.rows[3])[0]
        experiment.store.fill([chunk], batch_size=size)
        measured.append(experiment.store.read(chunk))
    for name, value in measured[0].items():
        torch.testing.assert_close(value, measured[1][name], rtol=1e-2, atol=2e-2, msg=name)


def test_a_compiled_model_measures_the_same_apart_from_rounding(models, tmp_path):
    torch._dynamo.reset()
    measured, graphs = [], []
    with torch.compiler.set_stance(force_backend="aot_eager"):  # graphs as in earnest, but no C++ is built
        for compiled in (False, True):
            experiment = Experiment(preset(models, seeds=[0], compile=compiled), tmp_path, "cpu")
            spec = experiment.preset.tables[0]
            chunk = experiment.chunks(spec, spec.rows[3])[0]
            assert experiment.store.fill([chunk], batch_size=5) == 1  # one is not taken for the other
            measured.append(experiment.store.read(chunk))
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] < graphs[1]
    for name, value in measured[0].items():
        torch.testing.assert_close(value, measured[1][name], rtol=1e-2, atol=2e-2, msg=name)


def test_without_adapter_or_clip_the_rest_is_run(models, tmp_path):
    plain = preset(
        models, model={"path": str(models / "base")}, evaluators={"classifier": str(models)}, seeds=[0], real=4
    )
    plain.tables[0].metrics = ["cc", "fc", "acc"]
    experiment = Experiment(plain, tmp_path, "cpu")
    assert experiment.run() == 4 and experiment.run(save_videos=True) == 2
    text = experiment.write("table")
    assert "ours: not run, there is no adapter" in text and " CC" not in text
    (base,) = (tmp_path / "videos").glob("base-*")
    manifest = [json.loads(line) for line in (base / "manifest.jsonl").read_text().splitlines()]
    assert [(base / entry["file"]).is_file() for entry in manifest] == [True] * 5
    (base / "manifest.jsonl").write_text(json.dumps(manifest[0]) + "\n")  # as if interrupted after one video
    assert experiment.run(save_videos=True) == 1 and experiment.run(save_videos=True) == 0
    assert len((base / "manifest.jsonl").read_text().splitlines()) == 5
    assert manifest[0]["label"] == UNSEEN[0] and manifest[0]["caption"].startswith("a ")
    samples = draw_samples(PuppetData(), 0, 0, 5)
    assert [entry["seed"] for entry in manifest] == list(samples.noise_seeds)
    saved = read_generated(base)  # with its references, as evaluate.py reads it
    shown = to_pixels(experiment.evaluators.render(samples.references[:, 0]))
    for video, reference in zip(saved, shown):
        difference = read_frames(video.reference, range(FRAMES)).float() - reference.float()
        assert difference.abs().mean() < 6  # the mp4's own loss


def test_pictures_show_every_sample_with_its_reference(models, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "SHEET_BATCH", 2)
    kinds = [{"kind": kind, "samples": 3, "references": 2} for kind in ("samples", "features", "attention")]
    experiment = Experiment(preset(models, tables=[], pictures=kinds), tmp_path, "cpu")
    written = [path.name for path in experiment.draw("figure")]
    numbered = [f"figure-{kind}-{i}.png" for kind in ("features", "attention") for i in range(3)]
    assert written == ["figure-samples.png", "figure-samples.gif", *numbered]
    sheet = Image.open(tmp_path / "figure-samples.png")
    assert sheet.width > 3 * FRAMES * SIZE and sheet.height == 3 * (SIZE + 14 + 18)  # a label and a title each
    reference = experiment.evaluators.render(draw_samples(PuppetData(), 0, 0, 3).references[2, :1])
    shown = np.asarray(sheet)[-SIZE:, :SIZE]
    assert (shown == to_pixels(reference)[0, 0].numpy()).all()
    animation = Image.open(tmp_path / "figure-samples.gif")
    assert animation.n_frames == FRAMES and animation.width > 6 * 2 * SIZE and animation.height > 2 * 2 * SIZE


def test_a_leading_reference_makes_other_videos_of_several_references_only(models, tmp_path):
    """With the folder's own lead or the row's: one reference, or a lead of 0, is what it was before."""
    folder = tmp_path / "model"
    folder.mkdir()
    where = f"base: {models / 'base'}\nadapter: {models / 'adapter.safetensors'}\n"
    settings = [{}, {"lead": 0.0}, {"lead": 0.5}]
    rows = [{"label": f"{k} {i}", "references": k, **row} for k in (1, 2) for i, row in enumerate(settings)]
    tables = [{"title": "A table", "metrics": ["acc"], "rows": rows}]

    def paths(lead: str) -> list[Path]:
        (folder / "aicl.yaml").write_text(where + lead)
        some = preset(models, tables=tables, model={"path": str(folder)}, seeds=[0])
        experiment = Experiment(some, tmp_path / "out", "cpu")
        chunks = [experiment.chunks(some.tables[0], row)[0] for row in some.tables[0].rows]
        assert chunks[3].load(torch.device("cpu")).first_reference_until == (0.5 if lead else 0.0)
        return [experiment.store.path(chunk) for chunk in chunks]

    plain, leading = paths(""), paths("lead: 0.5\n")
    assert len(set(plain[:3])) == 1 and plain[:3] == leading[:3]
    assert plain[3] == plain[4] == leading[4]
    assert plain[5] == leading[3] == leading[5] != plain[3]


def test_speed_groups_divide_the_samples(models, tmp_path):
    grouped = preset(models, seeds=[0], real=4, videos=6)
    grouped.tables[0].metrics = ["dynamics", "acc"]
    rows = [{"label": f"group {i}", "kind": "real", "group": [i, 3]} for i in range(3)]
    grouped.tables[0].rows = [configs.from_mapping(type(grouped.tables[0].rows[0]), row) for row in rows]
    experiment = Experiment(grouped, tmp_path, "cpu")
    assert experiment.run() == 2  # the groups are of one chunk
    results = [experiment.result(grouped.tables[0], row) for row in grouped.tables[0].rows]
    assert [result.metrics["acc"].count for result in results] == [2, 2, 2]


def test_too_few_videos_for_a_frechet_distance_are_refused_before_the_work(models, tmp_path):
    for change, message in (({"seeds": [0]}, "more than 8 videos a row.* got 5 and 20"), ({"real": 8}, "got 10 and 8")):
        with pytest.raises(ConfigError, match=message):
            Experiment(preset(models, **change), tmp_path, "cpu").run()
    with pytest.raises(ConfigError, match=r"more than 2 videos a row.* got 2 and 20"):
        Experiment(preset(models, seeds=[0], videos=2, allow_few=True), tmp_path, "cpu").run()
    assert not list(tmp_path.iterdir())
    nothing_to_run = preset(models, seeds=[0])
    nothing_to_run.tables[0].rows = nothing_to_run.tables[0].rows[-1:]
    assert Experiment(nothing_to_run, tmp_path, "cpu").run() == 0


def test_samples_are_what_they_say():
    data = PuppetData()
    samples = draw_samples(data, 3, 0, 30)
    part = draw_samples(data, 3, 10, 20)
    assert samples.prompts[10:20] == part.prompts and samples.noise_seeds[10:20] == part.noise_seeds
    assert torch.equal(samples.targets[10:20], part.targets) and torch.equal(samples.wrong[10:20], part.wrong)
    assert sorted(samples.actions.tolist()) == sorted(list(UNSEEN_INDICES) * 3)
    assert (samples.wrong_actions != samples.actions).all()
    assert set(samples.wrong_actions.tolist()) <= set(UNSEEN_INDICES)
    for prompt, action in zip(samples.prompts, samples.actions):
        assert parse(prompt).phrase == ACTIONS[action].phrase
    assert not torch.equal(samples.targets, draw_samples(data, 4, 0, 30).targets)


def test_made_up_names_mean_nothing():
    samples = draw_samples(PuppetData(names="made_up"), 0, 0, 40)
    known = (unseen_words() | set(vocabulary())) - {"the"}
    assert not any(known & set(phrase.split()) for phrase in samples.phrases)
    captions = samples.reference_captions(samples.references[:, :2], "own")
    assert len(captions[0]) == 2 and "shirt" in captions[0][0]
    assert "shirt" not in samples.reference_captions(samples.references[:, :1], "bare")[0][0]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "tables").glob("[et]*_*.yaml")), ids=lambda p: p.stem)
def test_presets_are_well_formed(path):
    loaded = load_preset(path)
    labels = [[row.label for row in table.rows] for table in loaded.tables]
    assert all(len(set(names)) == len(names) for names in labels)
    assert loaded.videos * len(loaded.seeds) >= 640 and len(loaded.seeds) >= 3


def test_presets_reject_what_does_not_fit(models):
    for change, message in (
        ({"seeds": [1, 1]}, "different numbers"),
        ({"videos": 1}, "2 or more"),
        ({"vidoes": 9}, "did you mean 'videos'"),
        (
            {"tables": [{"title": "t", "metrics": ["acc"], "rows": [{"label": "x"}], "baseline": "y"}]},
            r"baseline of 't' is 'y': name one of its rows, \['x'\]",
        ),
        (
            {"tables": [{"title": "t", "metrics": ["acc"], "rows": [{"label": "x", "group": [0, 3]}]}]},
            "3 groups need 6",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            preset(models, **change)
    with pytest.raises(ConfigError, match="a wrong reference needs references"):
        configs.from_mapping(Preset, {"tables": [{"title": "", "metrics": [], "rows": [{"label": "x", "wrong": True}]}],
                                      "model": {"path": ""}, "evaluators": {"classifier": ""}})  # fmt: skip
