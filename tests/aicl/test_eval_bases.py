"""Tables with base models that are folders of diffusers, tiny and with random weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aicl.action_prism import build_prism
from aicl.adapter import save_adapter
from aicl.base_defaults import read_integration_config, read_prism_config
from aicl.cli import parse, reproduce
from aicl.evaluation.engine import Experiment
from aicl.evaluation.generate import make
from aicl.evaluation.results import Result, read_result
from aicl.integrated_backbone import integrate
from lvdm.bases.loading import wrap
from lvdm.video import resize_crop, to_frames
from tests.aicl.evaluation_models import FRAMES, save_tiny_evaluators
from tests.aicl.test_bases import BLOCKS, SMALL
from tests.aicl.test_eval_engine import preset
from tests.lvdm.tiny_bases import network, pipeline

LENGTH = 17  # frames, at 8 a second, where FRAMES of two seconds are compared
STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A text-to-video and an image-to-video model as diffusers saves them, an untrained adapter of each; evaluators."""
    root = save_tiny_evaluators(tmp_path_factory.mktemp("models"))
    for name, own in (("text", {}), ("image", {"in_channels": 8, "use_rotary_positional_embeddings": True})):
        whole = pipeline("CogVideoXPipeline" if name == "text" else "CogVideoXImageToVideoPipeline")
        changed = network("CogVideoXTransformer3DModel", sample_frames=LENGTH, **own)
        pipe = type(whole)(**{**whole.components, "transformer": changed})
        pipe.save_pretrained(root / name)
        base = wrap(pipe)
        prism = build_prism(read_prism_config({**SMALL, "out_channels": 6}, base))
        blocks = integrate(base.components.unet, read_integration_config({**BLOCKS, "feature_channels": 6}, base))
        save_adapter(root / f"{name}.safetensors", prism, blocks, {"fps": 8})
        blocks.unpatch()
    return root


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


def table(models: Path, out: Path, number: str, name: str, model: str, *changes: str) -> dict[str, Result]:
    """The results of one of the paper's tables on the puppets, by row; `name` is the table's, `model` a row's."""
    given = [f"model.{model}={models / name}", f"adapter.{model}={models / name}.safetensors", "videos=2", "real=4"]
    given += [f"evaluators.{role}.path={models}" for role in ("classifier", "clip")]
    given += [
        f"benchmark.frames={FRAMES}",
        "seeds=[0]",
        "sets=[{}]",
        "batch_size=2",
        "metrics=[cc,fc,acc]",
        "allow_few=true",
    ]
    given += [f"model.{other}=null" for other in ("lvdm", "vc", "vc2", "vc_i2v") if other != model]
    arguments = ["--table", number, "--out", str(out), "--device", "cpu"]
    reproduce.main(parse("reproduce", [*arguments, *given, *changes]))
    results = [read_result(path) for path in sorted((out / "results").glob("*.json"))]
    return {result.row: result for result in results}


def made(said: str) -> str:
    """How many videos were missing, of how many."""
    return said[said.index("generating: ") :].split(" videos")[0].removeprefix("generating: ")


def test_table_1_with_a_folder_of_diffusers_and_again_with_other_weights(models, out, capsys):
    found = table(models, out, "I", "text", "lvdm")
    assert made(capsys.readouterr().out) == "6 of 6"
    assert list(found) == ["real clips", "real clips through the autoencoder", "LVDM", "LVDM + AICL"]
    base, ours = found["LVDM"], found["LVDM + AICL"]
    assert base.metrics.keys() == {"cc", "fc", "acc"} and not base.missing
    assert base.rates["generated"] == ours.rates["generated"] == [8.0] and ours.rates["compared"] == [2.0]
    assert ours.metrics["cc"].value == base.metrics["cc"].value  # the adapter is untrained
    assert base.model["settings"]["num_inference_steps"] == 50 and set(ours.model["sha256"]) == {"base", "adapter"}
    assert found["real clips through the autoencoder"].metrics["cc"].value != found["real clips"].metrics["cc"].value
    text = (out / "table_1_puppets.md").read_text(encoding="utf-8")
    assert "VideoCrafter: not run, no model 'vc' is given: model.vc=FOLDER" in text
    table(models, out, "I", "text", "lvdm")
    (models / "text/README.md").write_text("no part of the pipeline")
    table(models, out, "I", "text", "lvdm")
    assert capsys.readouterr().out.count("generating: 0 of 6 videos are missing") == 2
    [weights] = (models / "text/vae").glob("*.safetensors")
    state = load_file(weights)
    save_file({key: value + 0.01 for key, value in state.items()}, weights, metadata={"format": "pt"})
    table(models, out, "I", "text", "lvdm")
    assert made(capsys.readouterr().out) == "6 of 6"
    save_file(state, weights, metadata={"format": "pt"})


def test_table_4_shows_the_first_frame_of_each_samples_clip(models, tmp_path):
    found = table(models, tmp_path, "IV", "image", "vc_i2v")
    assert list(found) == ["VideoCrafter", "VideoCrafter + AICL"] and not found["VideoCrafter"].missing
    rows = [{"label": "base", "model": "tiny", **STEPS}, {"label": "codec", "kind": "autoencoder", "model": "tiny"}]
    given = {"model": {"tiny": str(models / "image")}, "adapter": {}, "baseline": None, "videos": 2, "compile": "none"}
    run = Experiment(preset(models, rows=rows, **given), tmp_path, "cpu").tables[0]
    source, samples = run.source(run.rows[0]), run.samples(0)
    assert source.takes_target() and source.defaults.num_frames == 49  # of its call
    pipe = source.load(torch.device("cpu"))
    assert pipe.base.config.defaults == source.config.defaults  # of the weights, and of the config files alone
    seen, encode = [], pipe.base.image_condition

    def watched(pipe, codec, frames, count):
        seen.append(frames)
        return encode(pipe, codec, frames, count)

    pipe.base.image_condition = watched
    videos = make(pipe, source, run.benchmark, samples)
    assert videos.shape == (2, 49, 32, 32, 3)
    shown = run.benchmark.shown([sample.target for sample in samples])
    frames = [to_frames(resize_crop(torch.as_tensor(video)[[0, -1]], (32, 32))) for video in shown]  # (3, 2, h, w)
    first, last = torch.stack(frames).unbind(2)
    assert (seen[0] - first).abs().max() < 1e-3 and not torch.allclose(seen[0], last, atol=0.1)


def test_what_such_a_model_cannot_is_said_in_its_row(models, tmp_path):
    rows = [
        {"label": "plain", "model": "tiny", **STEPS},
        {"label": "cached steps", "model": "tiny", "step_cache": 2},
        {"label": "8 bits", "model": "tiny", "quantization": "fp8"},
        {"label": "lora", "model": "tiny", "references": 1, "method": {"kind": "lora"}},
        {"label": "codec", "kind": "autoencoder", "model": "tiny"},
        {"label": "no vae", "model": "damaged"},
    ]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/model_index.json").write_bytes((models / "text/model_index.json").read_bytes())
    given = {"model": {"tiny": str(models / "text"), "damaged": str(tmp_path / "damaged")}, "adapter": {}}
    given |= {"rows": rows, "baseline": None, "videos": 2, "seeds": [0], "real": 4, "metrics": ["acc"]}

    def obstacles(**changes) -> list[str | None]:
        run = Experiment(preset(models, **{**given, **changes}), tmp_path / "out", "cpu").tables[0]
        return [run.obstacle(row) for row in run.rows]

    plain, cached, narrow, lora, codec, damaged = obstacles(compile="none")
    assert plain is None and codec is None
    assert "step_cache is for this library's own networks" in cached
    assert "quantization is for this library's own networks" in narrow
    assert "baselines are for this library's own models" in lora
    assert "without its scheduler and text_encoder" in damaged
    plain, *_, codec, _ = obstacles(compile="graphs", benchmark={"kind": "puppets", "frames": FRAMES, "size": 60})
    assert plain.startswith("compile=graphs is for") and plain.endswith("set compile=none, or full")
    assert codec == "clips of 60x60 pixels do not fit this autoencoder: set benchmark.size to multiples of 8"
