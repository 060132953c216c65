"""Tiny videos for the tests of the user study, with names that must never be served."""

import json
from pathlib import Path

import torch

from lvdm.video import write_video

OURS, BASELINE = "hidden_alpha", "hidden_beta"  # folders, and the beginnings of file names


def write_sample(path: Path, seed: int, frames: int = 4, size: int = 32) -> Path:
    """A video of random blocks, different for each seed."""
    blocks = torch.randint(256, (frames, 4, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    pixels = blocks.repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
    return write_video(path, pixels, fps=8)


def write_pairs(root: Path, count: int, **changes) -> Path:
    """`count` pairs and their manifest; every second one is of group "b". `changes` go into every row."""
    rows = []
    for number in range(count):
        names = [f"{folder}/{folder}_{number}.mp4" for folder in (OURS, BASELINE)]
        for place, name in enumerate(names):
            write_sample(root / name, 2 * number + place)
        group = "ab"[number % 2]
        rows.append({"prompt": f"prompt {number}", "ours": names[0], "baseline": names[1], "group": group} | changes)
    manifest = root / "pairs.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest
