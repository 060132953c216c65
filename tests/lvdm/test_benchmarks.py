"""The benchmarks run at tiny size, and their tables grow row by row."""

import sys
from pathlib import Path

import pytest
import torch

from lvdm import benchmarks
from lvdm import config as configs
from lvdm.errors import CheckpointError
from tests.lvdm.published import model_config, tiny_checkpoint

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "convert_checkpoint.py"


def test_generation_is_timed_by_phase():
    record = benchmarks.generate(model_config("tiny_videocrafter_i2v"), device="cpu", dtype=torch.float32)
    assert (record["frames"], record["height"], record["width"], record["steps"]) == (4, 32, 32, 4)
    assert all(record[phase] > 0 for phase in ("build_s", "condition_s", "sample_s", "decode_s"))


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
