"""The commands that train the puppet models, at a size for a CPU: losses fall, and what they write can be loaded."""

import csv

import pytest
import torch

import aicl.tasks  # noqa: F401 (makes the tasks known)
from aicl.pipeline import AICLPipeline
from aicl.puppets.data import PuppetConfig, PuppetDataModule
from aicl.puppets.evaluators import load_evaluator
from aicl.puppets.renderer import render
from lvdm.checkpoints import load_pipeline
from lvdm.config import from_mapping, load
from lvdm.errors import ConfigError
from lvdm.models.codec_families import AutoencoderConfig
from lvdm.training import train
from tests.lvdm.training_runs import MODEL

DATA = {"kind": "puppets", "size": 32, "programs": 32, "workers": 0}
ALONE = {"name": "wrong", "task": "autoencoder"}
TRAINING = {"betas": [0.9, 0.99], "precision": "float32", "warmup_steps": 5}


def run(folder, task, steps, batch_size, lr, data, **sections):
    config = {
        "run": {"name": task, "task": task, "out": str(folder)},
        "data": DATA | data,
        "training": TRAINING | {"steps": steps, "batch_size": batch_size, "lr": lr, "checkpoint_every": steps},
        "logging": {"every": 5, "tensorboard": False},
    }
    assert train(config | sections) == 0
    with (folder / task / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return losses, folder / task / "checkpoints" / f"step_{steps:08d}"


@pytest.mark.slow
def test_autoencoder_base_and_aicl_train_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load(MODEL, ["text.context_length=48"])
    losses, checkpoint = run(tmp_path, "autoencoder", 30, 6, 3e-3, {"frames": 1}, model={"config": model})
    assert losses[-1] < 0.85 * losses[0]
    described = load(checkpoint / "autoencoder.yaml")
    assert len(described["latents"]["scale"]) == 4

    sections = {"model": {"config": model, "autoencoder": str(tmp_path / "autoencoder"), "train_text": True}}
    losses, checkpoint = run(tmp_path, "base", 15, 4, 1e-3, {"frames": 4}, **sections)
    assert losses[-1] < losses[0]
    pipeline = load_pipeline(checkpoint / "pipeline")
    assert pipeline.config.latents.scale == pytest.approx(described["latents"]["scale"])

    prism = {"width": 32, "depth": 1, "heads": 2, "head_dim": 16, "text_width": 32}
    losses, checkpoint = run(
        tmp_path,
        "aicl",
        5,
        2,
        1e-3,
        {"frames": 4, "references": 2, "paired": 0.5},
        base={"path": str(tmp_path / "base")},
        prism=prism,
        integration={"head_dim": 16},
    )
    assert len(losses) == 1 and torch.isfinite(torch.tensor(losses)).all()
    assert (checkpoint / "adapter.safetensors").is_file()


def test_evaluators_train_and_load(tmp_path):
    clip_model = {"size": 32, "width": 32, "vision_layers": 1, "text_layers": 1, "embed_dim": 16}
    losses, checkpoint = run(
        tmp_path,
        "puppet_clip",
        30,
        16,
        3e-3,
        {"frames": 2, "actions": "all", "program_share": 0.0},
        clip_model=clip_model,
    )
    assert losses[-1] < losses[0]
    assert load_evaluator(checkpoint, "clip").config.width == 32

    classifier = {"size": 64, "frames": 2, "width": 8, "features": 32, "layers": 1}
    _, checkpoint = run(
        tmp_path,
        "puppet_classifier",
        5,
        4,
        1e-3,
        {"frames": 2, "size": 64, "program_share": 0.5},
        classifier=classifier,
    )
    assert load_evaluator(checkpoint, "classifier").config.frames == 2


def test_an_autoencoder_that_is_causal_in_time_and_what_is_trained_on_it(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    small = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "ffn_dim": 32, "text_dim": 32}
    model = load(MODEL, ["text.context_length=48"]) | {"family": "WanTransformer3DModel"}
    model["unet"] = {"in_channels": 4, "out_channels": 4, **small}
    model["diffusion"] = {"schedule": "flow", "prediction": "flow", "shift": 3.0, "spacing": "trailing"}
    params = {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
    }
    model["autoencoder"] = {"family": "AutoencoderKLWan", "params": params}
    model["defaults"] = model["defaults"] | {"num_frames": 9, "size": [16, 16]}
    data = {"frames": 9, "seconds": 1.125, "size": 16, "program_share": 0.0}
    _, checkpoint = run(tmp_path, "autoencoder", 6, 2, 3e-3, data, model={"config": model})
    latents = load(checkpoint / "autoencoder.yaml")["latents"]
    assert len(latents["scale"]) == 4 and latents["scale"] != [1.0] * 4

    sections = {"model": {"config": model, "autoencoder": str(tmp_path / "autoencoder"), "train_text": True}}
    _, checkpoint = run(tmp_path, "base", 5, 2, 1e-3, data, **sections)
    parts = load_pipeline(checkpoint / "pipeline").components
    assert parts.unet.compression == parts.codec.compression and parts.codec.compression.time == 4
    assert list(parts.codec.scale) == pytest.approx(latents["scale"])
    frames = torch.rand(1, 3, 8, 16, 16) * 2 - 1
    again = parts.codec.reconstruct(frames)  # 8 frames, of which 9 are made
    assert again.shape == frames.shape and parts.codec.posterior(frames[:, :, :5]).mean.shape == (1, 4, 2, 4, 4)
    torch.testing.assert_close(again[:, :, :5], parts.codec.reconstruct(frames[:, :, :5]), rtol=1e-3, atol=1e-4)

    prism = {"width": 16, "depth": 1, "heads": 2, "head_dim": 8, "text_width": 16, "out_channels": 16}
    sections = {"base": {"path": str(tmp_path / "base")}, "prism": prism, "references": {"kind": "self"}}
    integration = {"head_dim": 8, "inner_width": 16, "feature_channels": 16}
    run(tmp_path, "aicl", 5, 2, 1e-3, data, **sections, integration=integration)
    pipe = AICLPipeline.from_pretrained(tmp_path / "base", adapter=tmp_path / "aicl")
    reference = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    options = {"references": [reference], "num_inference_steps": 2, "progress": False, "output_type": "pixels"}
    assert pipe("a person does jumping jacks", **options).shape == (1, 9, 16, 16, 3)
    with pytest.raises(ConfigError, match="16 frames do not fit: this model takes 1 more than a multiple of 4"):
        pipe("a person does jumping jacks", num_frames=16, **options)
    with pytest.raises(ConfigError, match="12 frames do not fit: this model takes 1 more than a multiple of 4"):
        run(
            tmp_path,
            "wrong",
            5,
            2,
            1e-3,
            data | {"frames": 12},
            model={"config": model},
            run=ALONE | {"out": str(tmp_path)},
        )


def test_what_describes_no_autoencoder_says_so():
    with pytest.raises(ConfigError, match=r"described by autoencoder\.ddconfig, not by params"):
        AutoencoderConfig(params={"z_dim": 4})
    with pytest.raises(ConfigError, match="'AutoencoderKLWan' has no ddconfig: set it to null"):
        AutoencoderConfig(ddconfig={}, family="AutoencoderKLWan")


def test_clips_of_another_length_have_the_same_pace():
    options = {"size": 16, "program_share": 0.0, "workers": 0}
    longer, usual = (
        PuppetDataModule(from_mapping(PuppetConfig, options | length), 2, seed=3)
        for length in ({"frames": 9, "seconds": 2.25}, {"frames": 8})
    )
    long, short = (each.prepare(each.dataset.__getitems__([0, 1])) for each in (longer, usual))
    torch.testing.assert_close(long["frames"][:, :, :8], short["frames"], rtol=0, atol=1e-4)
    assert torch.equal(long["fps"], short["fps"]) and long["fps"][0] == 4
    assert torch.equal(render(short["scene_parameters"], usual.bank(torch.device("cpu")), 16, 8), short["frames"])
    with pytest.raises(ConfigError, match=r"data\.hard_scenes are drawn in clips of 2 seconds"):
        from_mapping(PuppetConfig, {"seconds": 2.5, "hard_scenes": {"occlusion": 0.5}})
