"""Settings, random numbers, learning rate and metrics file of the training package."""

import csv
import math
import sys

import pytest
import torch

from lvdm import config as configs
from lvdm.checkpoints import find_model
from lvdm.errors import CheckpointError, ConfigError
from lvdm.training import TrainingSettings, train
from lvdm.training.logs import CSVLog
from lvdm.training.optim import learning_rate
from lvdm.training.randomness import BatchRandomness
from lvdm.training.strategy import build_strategy, deepspeed_config


def settings(**changes) -> TrainingSettings:
    return configs.from_mapping(TrainingSettings, {"steps": 100, "batch_size": 8, **changes}, where="training")


def test_a_samples_noise_does_not_depend_on_its_batch():
    together, alone = BatchRandomness([5, 6, 7], "cpu"), BatchRandomness([6], "cpu")
    for shape in [(4, 2, 3), (5,)]:  # also for the second thing that is drawn
        assert torch.equal(together.normal(shape)[1], alone.normal(shape)[0])
    assert torch.equal(together.uniform(2)[1], alone.uniform(2)[0])


def test_noise_is_standard_normal_and_new_each_time():
    for mode in ("sample", "device"):
        randomness = BatchRandomness(range(100), "cpu", mode)
        first, second = randomness.normal((50,)), randomness.normal((50,))
        assert abs(first.mean()) < 0.05 and abs(first.std() - 1) < 0.05
        assert abs((first * second).mean()) < 0.05
        assert torch.equal(first, BatchRandomness(range(100), "cpu", mode).normal((50,)))


def test_batch_size_is_split_over_devices_and_accumulation():
    assert settings(strategy="ddp", devices=2, gradient_accumulation_steps=2).micro_batch == 2
    with pytest.raises(ConfigError, match=r"batch_size = 8 cannot be split .* multiple of 3"):
        settings(gradient_accumulation_steps=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 2}, "training.strategy is single"),
        ({"strategy": "deepspeed_zero3", "ema": 0.99}, "training.ema does not work"),
        ({"betas": [0.9]}, "betas needs two numbers"),
        ({"betas": [0.9, 1.0]}, "from 0 to below 1"),
        ({"steps": 0}, "training.steps is 0: it must be at least 1"),
        ({"preview_every": 0}, "training.preview_every is 0"),
        ({"lr": -1.0}, "training.lr is -1.0: it must be at least 0"),
        ({"lr": math.inf}, "training.lr is inf"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"stepz": 3}, "unknown key 'stepz' .* did you mean 'steps'"),
        ({"cuda_graphs": True, "gradient_accumulation_steps": 2}, "cuda_graphs to false"),
        ({"timesteps_per_sample": 0}, "training.timesteps_per_sample is 0: it must be at least 1"),
        ({"ema": 1.0}, "training.ema = 1.0 is a decay"),
        ({"caption_dropout": 10.0}, "training.caption_dropout = 10.0 is a share"),
        ({"max_minutes": 0.0}, "training.max_minutes is 0: it must be above 0"),
        ({"cuda_graphs": True, "gradient_checkpointing": True}, "cuda_graphs to false"),
        ({"cuda_graphs": True, "strategy": "deepspeed_zero2"}, "cuda_graphs to false"),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_the_papers_optimiser_is_the_default():
    paper = settings()
    assert (paper.lr, paper.betas, paper.weight_decay) == (1e-4, [0.9, 0.9], 0.03)


def test_the_papers_strategy_recomputes_activations_unless_told_otherwise():
    """Its batch sizes on 24 GB cards need that; so the paper's way is one setting, the strategy."""
    common = {"gradient_checkpointing": configs.load("aicl_common")["training"]["gradient_checkpointing"]}
    assert not settings(strategy="auto", **common).gradient_checkpointing
    assert settings(strategy="deepspeed_zero2_offload", **common).gradient_checkpointing
    assert not settings(strategy="deepspeed_zero2_offload", gradient_checkpointing=False).gradient_checkpointing


@pytest.mark.parametrize("strategy", ["deepspeed_zero2_offload", "deepspeed_zero2", "deepspeed_zero3"])
def test_deepspeed_on_a_cpu_says_which_line_to_change(strategy):
    with pytest.raises(ConfigError, match=rf"training.strategy = {strategy} needs DeepSpeed.*set training.strategy to"):
        build_strategy(settings(strategy=strategy, accelerator="cpu"))


def test_cuda_graphs_on_a_cpu_say_which_line_to_change():
    with pytest.raises(ConfigError, match=r"training.cuda_graphs needs a GPU"):
        build_strategy(settings(cuda_graphs=True, accelerator="cpu"))


@pytest.mark.parametrize(
    ("there", "said"),
    [(0, "accelerator is gpu but this machine has no CUDA"), (2, "devices = 3 but this machine has 2")],
)
def test_more_gpus_than_there_are_says_which_line_to_change(monkeypatch, there, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ConfigError, match=said):
        build_strategy(settings(strategy="ddp", accelerator="gpu", devices=there + 1, batch_size=there + 1))


def test_only_the_papers_strategy_offloads_the_optimiser():
    offload = {
        strategy: deepspeed_config(settings(strategy=strategy))["zero_optimization"]
        for strategy in ("deepspeed_zero2_offload", "deepspeed_zero2", "deepspeed_zero3")
    }
    assert [zero["stage"] for zero in offload.values()] == [2, 2, 3]
    assert ["offload_optimizer" in zero for zero in offload.values()] == [True, False, False]


def test_learning_rate_warms_up_then_follows_the_cosine_of_progress():
    cosine = settings(schedule="cosine", warmup_steps=9, min_lr_ratio=0.1, lr=1.0)
    assert learning_rate(cosine, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(cosine, 9, 0.0) == pytest.approx(1.0)
    assert learning_rate(cosine, 50, 0.5) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate(cosine, 99, 1.0) == pytest.approx(0.1)
    assert learning_rate(cosine, 99, 7.0) == pytest.approx(0.1)  # time may run past the limit by a step
    assert learning_rate(settings(lr=0.3), 70, 0.7) == 0.3
    assert math.isclose(learning_rate(settings(lr=0.3, warmup_steps=1), 0, 0.0), 0.15)


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_file_keeps_what_a_resumed_run_had_saved_and_drops_the_rest(tmp_path):
    first = CSVLog(tmp_path / "metrics.csv")
    for step in (1, 2, 3):
        first.log_metrics({"loss": step / 2}, step)
    second = CSVLog(tmp_path / "metrics.csv", resumed_at=2)
    second.log_metrics({"loss": 9.0, "speed": 1.0}, 3)
    rows = read(tmp_path / "metrics.csv")
    assert [(row["step"], row["loss"], row["speed"]) for row in rows] == [
        ("1", "0.5", ""),
        ("2", "1.0", ""),
        ("3", "9.0", "1.0"),
    ]


def test_a_run_that_asks_for_a_missing_attention_backend_says_so_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    settings = {"steps": 1, "batch_size": 1, "accelerator": "cpu", "attention": "xformers"}
    with pytest.raises(ConfigError, match=r"xformers.*use attention backend 'sdpa'"):
        train({"run": {"name": "a", "task": "base", "out": str(tmp_path)}, "training": settings})
    assert not list(tmp_path.iterdir())


def test_a_base_model_is_found_in_its_folder_its_checkpoint_or_its_run(tmp_path):
    run = tmp_path / "run"
    exported = run / "checkpoints/step_00000010/pipeline"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").touch()
    with pytest.raises(CheckpointError, match=r"run holds no pipeline/config\.yaml"):
        find_model(str(run))
    exported.mkdir(parents=True)
    for file in (exported / "config.yaml", exported.parent / "progress.json"):
        file.write_text("{}")
    assert {find_model(str(path)) for path in (run, exported.parent, exported)} == {exported}
    assert find_model(str(tmp_path / "none")) == tmp_path / "none"  # what is missing there, its loader says
