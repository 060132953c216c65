"""Random numbers that belong to a sample, not to its batch: a seed gives the same video whatever is drawn beside it."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from lvdm.errors import ConfigError


def make_generators(seeds: Sequence[int]) -> list[Generator]:
    """One CPU generator for each sample. CPU, so that a seed means the same on every device.

    Raises ConfigError for a seed that does not fit into 64 bits.
    """
    for seed in seeds:
        if not -(2**63) <= int(seed) < 2**64:
            raise ConfigError(f"seed {seed} does not fit into 64 bits: choose a smaller number")
    return [Generator().manual_seed(int(seed)) for seed in seeds]


def draw_noise(
    shape: Sequence[int],
    generators: Sequence[Generator],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise of `shape` (b, ...) on `device`, row i drawn from generators[i], which it advances.

    Raises ConfigError unless there is one generator for each row.
    """
    if len(generators) != shape[0]:
        raise ConfigError(f"a batch of {shape[0]} needs {shape[0]} seeds, got {len(generators)}")
    rows = [torch.randn(tuple(shape[1:]), generator=generator, dtype=dtype) for generator in generators]
    return torch.stack(rows).to(device)


def noise_like(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise of `shape` (b, ...), float32, each row from its own seed."""
    return draw_noise(shape, make_generators(seeds), device)
