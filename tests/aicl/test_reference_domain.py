"""References unlike the training's: measured beside the adapter, said with a number, and never refused."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aicl import AICLPipeline
from aicl.calibration import calibrate
from aicl.cli import run_verb
from aicl.reference_domain import ReferenceCheck, ReferenceDomain, described, domain_file
from lvdm.data.clips import ClipRecord
from lvdm.errors import CheckpointError, ConfigError, DataError
from lvdm.video import write_video
from tests.aicl.test_action_library import moving
from tests.aicl.test_pipeline import PROMPT, generate, pixels, tiny_pipeline

CLIPS = 64


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of captioned clips, all of one kind."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(CLIPS):
        write_video(folder / f"{number:02d}.mp4", moving(number), fps=4)
        (folder / f"{number:02d}.txt").write_text(PROMPT)
    return folder


@pytest.fixture(scope="module")
def records(clips):
    return [ClipRecord(path, PROMPT) for path in sorted(clips.glob("*.mp4"))]


@pytest.fixture(scope="module")
def domain(records):
    return calibrate(tiny_pipeline(), records, share=0.1)


@pytest.fixture
def pipe(domain):
    pipe = tiny_pipeline()
    pipe.domain = domain
    return pipe


def test_noise_is_far_and_clips_like_the_calibration_s_are_not(pipe, domain):
    assert (domain.clips, domain.held_out) == (CLIPS, CLIPS // 4) and domain.false_alarms <= 0.5
    usual = [moving(seed) for seed in range(100, 110)]
    checks = []
    for reference in usual:
        generate(pipe, references=[reference], num_inference_steps=1)
        checks += [check for row in pipe.reference_checks for check in row]
    before = sorted(check.ratio for check in checks)[len(checks) // 2]
    plain = generate(tiny_pipeline(), references=[pixels(0)])
    assert torch.equal(generate(pipe, references=[pixels(0)]), plain)  # measured, and the video is what it was
    [[noise]] = pipe.reference_checks
    assert before < 1 < noise.ratio and noise.far and noise.ratio > 2 * before
    said = domain.sentence(noise)
    assert "unlike the clips that this model was trained on" in said and f"of {CLIPS // 4} clips like those" in said
    generate(pipe, num_inference_steps=1)
    assert pipe.reference_checks == []


def test_motion_features_are_judged_by_their_motion_alone(pipe):
    features = pipe.encode_references([pixels(0), moving(3)], PROMPT)
    generate(pipe, references=[features, moving(4)], num_inference_steps=1)
    [checks] = pipe.reference_checks
    assert [check.latents is None for check in checks] == [True, True, False]
    assert checks[0].features > checks[1].features
    assert [check.reference for check in checks] == ["pixels (its motion features)"] * 2 + ["of type Tensor"]


def test_references_of_several_prompts_are_called_by_their_own_names(pipe, clips):
    names = [str(clips / f"{number:02d}.mp4") for number in range(2)]
    generate(pipe, [PROMPT] * 2, references=[[name] for name in names], num_inference_steps=1)
    assert [[check.reference for check in row] for row in pipe.reference_checks] == [[name] for name in names]


def test_what_is_no_number_is_far_and_a_single_row_has_no_change_in_place():
    assert ReferenceCheck("a", float("nan"), 0.5).far and ReferenceCheck("a", 0.5, float("nan")).far
    assert not ReferenceCheck("a", None, 0.5).far and ReferenceCheck("a", 1.5, 0.5).far
    assert described(torch.randn(2, 4, 3, 1, 5)).isfinite().all()  # R of answers, which have no height


def test_it_travels_with_the_adapter_and_belongs_to_it_alone(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    loaded = AICLPipeline.from_pretrained(tmp_path / "model")
    assert loaded.domain == pipe.domain
    file = domain_file(tmp_path / "model" / "adapter.safetensors")
    other = tiny_pipeline()
    with torch.no_grad():
        next(other.prism.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    domain_file(tmp_path / "other" / "adapter.safetensors").write_bytes(file.read_bytes())
    with pytest.warns(UserWarning, match="belongs to another adapter: make it anew with aicl calibrate"):
        assert AICLPipeline.from_pretrained(tmp_path / "other").domain is None
    loaded.remove_adapter()
    assert loaded.domain is None
    for change in ({"format": 9}, {"clips": "x"}, {"latents": {**json.loads(file.read_text())["latents"], "mean": []}}):
        bad = tmp_path / "bad.domain.json"
        bad.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(CheckpointError, match="make it anew with aicl calibrate"):
            ReferenceDomain.load(bad)


def test_the_command_measures_an_adapter_and_sampling_warns(clips, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    weights = (tmp_path / "model/adapter.safetensors").read_bytes()
    write_video(tmp_path / "noise.mp4", pixels(0, 6), fps=4)
    model = ("--model", "model", "--device", "cpu")
    with pytest.raises(SystemExit) as stop:
        run_verb("calibrate", [str(clips), *model, "--clips", "48"])
    assert stop.value.code == 0 and "of 12 kept apart" in capsys.readouterr().out
    assert (tmp_path / "model/adapter.safetensors").read_bytes() == weights
    with pytest.raises(SystemExit) as stop:
        run_verb("calibrate", [str(clips), *model])
    assert stop.value.code == 2 and "exists already: add --overwrite" in capsys.readouterr().err
    with (
        pytest.warns(UserWarning, match=r"reference noise\.mp4 is unlike the clips"),
        pytest.raises(SystemExit) as stop,
    ):
        run_verb("sample", ["--prompt", PROMPT, *model, "--steps", "1", "--refs", "noise.mp4", "--out", "out.mp4"])
    assert stop.value.code == 0
    found = json.loads((tmp_path / "out.json").read_text())["reference_checks"]
    assert found["unlike_training"][0]["far"] and found["held_out_clips"] == 12


def test_an_export_in_half_precision_is_measured_in_single(clips, domain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("model")
    parts = ["--base", "model/base", "--adapter", "model/adapter.safetensors", "--out", "half", "--dtype", "float16"]
    with pytest.raises(SystemExit) as stop:
        run_verb("export", [*parts, "--calibrate", str(clips)])
    assert stop.value.code == 0
    found = ReferenceDomain.load(domain_file(Path("half/adapter.safetensors")))
    assert found.latents.mean == domain.latents.mean  # float16 rounds to other numbers
    for file in ("half/adapter.safetensors", "half/base/unet.safetensors", "half/base/autoencoder.safetensors"):
        assert {weight.dtype for weight in load_file(file).values()} == {torch.float16}, file
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a statistic that belongs to another adapter
        assert AICLPipeline.from_pretrained("half").domain is not None


def test_what_cannot_be_calibrated_is_one_sentence(records):
    pipe = tiny_pipeline()
    with pytest.raises(DataError, match="3 clips are too few to say what is usual: give 40"):
        calibrate(pipe, records[:3])
    with pytest.raises(ConfigError, match=r"choose one between 0 and 0\.5"):
        calibrate(pipe, records, share=0.7)
    pipe.remove_adapter()
    with pytest.raises(ConfigError, match="no adapter to calibrate"):
        calibrate(pipe, records)
