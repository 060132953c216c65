"""Clips and configs of trainings that take a second: shared by the tests of both packages."""

import csv
from pathlib import Path
from typing import Any

import torch

from lvdm import config as configs
from lvdm.video import write_video

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "tests/data/one_level.yaml")
ONE_LEVEL = {"channel_mult": [1], "attention_resolutions": [1]}  # of a tiny UNet: half the time of its two levels


def make_clips(folder: Path, count: int = 8) -> Path:
    """Squares that move at different speeds, with captions of two verbs and two colours."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = torch.full((8, 16, 16, 3), 200, dtype=torch.uint8)
        for t in range(8):
            left = t * (1 + i % 4) % 12
            pixels[t, 4:8, left : left + 4] = torch.tensor([250, 10, 10] if i % 4 < 2 else [10, 10, 250])
        write_video(folder / f"{i}.mp4", pixels.to(torch.uint8), fps=8)
        text = f"a {'red' if i % 4 < 2 else 'blue'} person {'walks' if i % 2 else 'jumps'}"
        (folder / f"{i}.txt").write_text(text)
    return folder


def tiny_config(tmp_path: Path, task: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A config for the CPU; `sections` are merged into its sections, or are sections of their own."""
    config = {
        "run": {"name": task, "task": task, "out": str(tmp_path / "runs")},
        "data": {
            "kind": "folder",
            "path": str(tmp_path / "clips"),
            "clip": {"num_frames": 2, "size": [16, 16], "fps": 8, "augmentation": {"random_crop": True}},
            "workers": 0,
        },
        "training": {
            "steps": 4,
            "batch_size": 2,
            "lr": 1e-3,
            "precision": "float32",
            "accelerator": "cpu",
            "checkpoint_every": 2,
        },
        "logging": {"every": 1, "tensorboard": False},
    }
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section if isinstance(section, dict) else section
    return config


def losses(run: Path) -> dict[int, str]:
    """step -> loss as metrics.csv has it, digit for digit."""
    path = run / "metrics.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {int(row["step"]): row["loss"] for row in csv.DictReader(file)}


def save_config(path: Path, config: dict[str, Any]) -> Path:
    configs.save(path, config)
    return path
