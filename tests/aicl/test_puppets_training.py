"""The commands that train the puppet models, at a size for a CPU: losses fall, and what they write can be loaded."""

import csv

import pytest
import torch

import aicl.tasks  # noqa: F401 (makes the tasks known)
from aicl.puppets.evaluators import load_evaluator
from lvdm.checkpoints import load_pipeline
from lvdm.config import load
from lvdm.training import train
from tests.lvdm.training_runs import MODEL

DATA = {"kind": "puppets", "size": 32, "programs": 32, "workers": 0}
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
