"""Rebuilds the weights and inputs behind the compatibility figures: both are drawn from names, so none are stored.

Each figure is NAME.json (constructor parameters, input shapes, state-dict layout) with NAME.npz (the outputs).
`unet_options.json.gz` and `unet_options.npz` hold small UNets with other options, one output for each.
Full-size layouts of published checkpoints are in `full_layouts.json.gz`: {model: {entry name: shape}}.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent


def draw(key: str, shape: Iterable[int]) -> np.ndarray:
    """Standard normal values (float64) that depend on the key and the shape alone."""
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))


def weight(key: str, shape: Iterable[int]) -> Tensor:
    """One float32 entry of a checkpoint: fan-in scaled if it has 2 or more dimensions, near 1 or near 0 otherwise."""
    shape = tuple(shape)
    value = draw(key, shape)
    if len(shape) >= 2:
        value = value / np.sqrt(prod(shape[1:]))
    elif key.endswith("weight"):
        value = 1 + 0.1 * value
    else:
        value = 0.1 * value
    return torch.from_numpy(value).float()


def weights_for(layout: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
    """The state dict of an ancestor, from its layout {entry name: shape}."""
    return {key: weight(key, shape) for key, shape in layout.items()}


def inputs(name: str, shape: Iterable[int]) -> Tensor:
    """The input called x, context, frames, tokens or x_T (float32); frames are clamped to [-1, 1]."""
    value = torch.from_numpy(draw(f"input:{name}", shape)).float()
    return value.clamp(-1, 1) if name == "frames" else value


@cache
def figure(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(parameters and layout, expected outputs) of the figure called NAME."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return json.loads((FOLDER / f"{name}.json").read_text()), dict(arrays)


@cache
def full_layouts() -> dict[str, dict[str, list[int]]]:
    """Layouts of the four full-size published checkpoints, all their models together."""
    with gzip.open(FOLDER / "full_layouts.json.gz", "rt") as file:
        return json.load(file)


@cache
def option_figures() -> dict[str, tuple[dict, np.ndarray]]:
    """{name: (family, parameters, inputs and layout; expected output)} of UNets with less common options."""
    with gzip.open(FOLDER / "unet_options.json.gz", "rt") as file, np.load(FOLDER / "unet_options.npz") as outputs:
        return {name: (figure, outputs[name]) for name, figure in json.load(file).items()}
