"""The benchmarks run at tiny size, and their tables grow row by row."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lvdm import benchmarks, speed, speed_devices
from lvdm import config as configs
from lvdm.errors import CheckpointError, ConfigError
from tests.lvdm.published import model_config, tiny_checkpoint
from tests.lvdm.training_runs import ONE_LEVEL

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "convert_checkpoint.py"


def small_config():
    config = model_config("tiny_videocrafter_i2v")
    return replace(config, unet=config.unet | ONE_LEVEL)


def test_generation_is_timed_by_phase():
    record = benchmarks.generate(small_config(), device="cpu", dtype=torch.float32)
    assert (record["frames"], record["height"], record["width"], record["steps"]) == (4, 32, 32, 4)
    assert all(record[phase] > 0 for phase in ("build_s", "condition_s", "sample_s", "decode_s"))


def test_a_step_is_compared_with_float32_before_it_is_timed(monkeypatch):
    config = small_config()
    record = speed.denoising_step(config, "cpu", calls=1)
    assert record["tflop"] >= 0 and "floor_ms" not in record and record["ms"] > 0 and record["plain_ms"] > 0
    assert float(record["error"]) < 1e-6  # nothing is accelerated on a CPU
    wrong = torch.nn.Module()
    wrong.forward = lambda x, *rest, **others: x
    monkeypatch.setattr(speed.Acceleration, "network", lambda self, unet, steps: wrong)
    with pytest.raises(ConfigError, match="from float32, where 5% are allowed: not timed"):
        speed.denoising_step(config, "cpu", calls=1)


def test_clips_and_batches_are_timed(monkeypatch):
    config = small_config()
    record = speed.clip(config, "cpu", steps=2, clips=2)
    assert all(record[name] > 0 for name in ("load_s", "first_s", "text_s", "sample_s", "decode_s", "write_s", "all_s"))
    distilled = model_config("tiny_videocrafter")
    distilled = replace(distilled, unet=distilled.unet | ONE_LEVEL | {"time_cond_proj_dim": 16})
    rows, sample = [], speed.VideoPipeline.sample_latents
    monkeypatch.setattr(
        speed.VideoPipeline,
        "sample_latents",
        lambda self, branches, *rest, **options: rows.append(len(branches)) or sample(self, branches, *rest, **options),
    )
    record = speed.clip(distilled, "cpu", steps=2, sampler="lcm", clips=2, step_cache=2)
    assert record["all_s"] > 0 and record["step_cache"] == 2 and rows == [1, 1]  # guidance is told, not computed
    assert speed.offloaded(config, "cpu", steps=2)["next_s"] > 0
    assert [record["videos"] for record in speed.batches(config, "cpu", sizes=(1, 2))] == [1, 2]


UPSTREAM_UNET = """
import torch
class UNetModel(torch.nn.Module):
    def __init__(self, **params):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(params["in_channels"], 1, 1, 1))
    def forward(self, x, timesteps, context=None, fps=16):
        assert x.shape[0] == context.shape[0] == len(timesteps)
        return x * self.weight
"""


def test_upstream_is_timed_in_its_own_checkout(tmp_path):
    package = tmp_path / "lvdm" / "modules" / "networks"
    package.mkdir(parents=True)
    unet = package / "openaimodel3d.py"
    unet.write_text(UPSTREAM_UNET)
    config = small_config()
    assert speed.time_upstream(tmp_path, config, batch=2, calls=1, device="cpu")["ms"] > 0
    unet.write_text("import a_package_that_is_not_there\n")
    with pytest.raises(ConfigError, match="needs the package a_package_that_is_not_there, which is not installed"):
        speed.time_upstream(tmp_path, config, batch=2, device="cpu")
    unet.rename(package / "other.py")
    with pytest.raises(ConfigError, match="give a checkout of LVDM or VideoCrafter"):
        speed.time_upstream(tmp_path, config, batch=2, device="cpu")
    with pytest.raises(ConfigError, match="is no folder"):
        speed.time_upstream(tmp_path / "nowhere", config, batch=2, device="cpu")


def test_devices_are_compared_with_one(monkeypatch):
    [alone] = speed_devices.devices(small_config(), ["cpu"], calls=1, steps=2)
    assert alone["videos_per_minute"] > 0 and alone["of_linear"] == 1
    monkeypatch.setattr(speed_devices, "_at_once", lambda config, names, *how: [1.0, 1.25][: len(names)])
    records = list(speed_devices.devices(small_config(), ["cpu", "cpu"], batch=2, calls=5, steps=10))
    assert [(each["devices"], each["videos_per_minute"], each["of_linear"]) for each in records] == [
        (1, 60.0, 1.0),  # 2 videos of 10 steps, of which 5 take a second
        (2, 96.0, 0.8),
    ]


def test_conversion_is_measured_and_compared(tmp_path):
    state, config = tiny_checkpoint("videocrafter2_t2v_512")
    layout = {name: list(tensor.shape) for name, tensor in state.items()}
    configs.save(tmp_path / "config.yaml", configs.to_mapping(config))
    command = [sys.executable, str(SCRIPT), "--config", str(tmp_path / "config.yaml")]
    record = benchmarks.convert(layout, config, tmp_path / "work", command)
    assert record["tensors_compared"] == 6
    assert record["peak_rss_gb"] >= record["peak_anonymous_gb"] > 0
    with pytest.raises(CheckpointError, match="the conversion failed: no space"):
        benchmarks.convert(
            {"a": [1]}, config, tmp_path / "other", [sys.executable, "-c", "raise SystemExit('no space')"]
        )


def test_rows_join_the_table_of_their_heading_and_fields(tmp_path):
    path = tmp_path / "docs" / "benchmarks.md"
    for title, record in [("A", {"x": 1}), ("B", {"y": 2}), ("A", {"x": 3, "z": 5}), ("A", {"x": 4}), ("B", {"y": 6})]:
        benchmarks.append_row(path, title, record)
    assert path.read_text().splitlines() == [
        *["# Benchmarks", ""],
        *["## A", "", "| x |", "| --- |", "| 1 |", "| 4 |", "", "| x | z |", "| --- | --- |", "| 3 | 5 |", ""],
        *["## B", "", "| y |", "| --- |", "| 2 |", "| 6 |"],
    ]
