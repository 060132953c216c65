"""Videos a minute of several GPUs of one machine at once: one process each, as sampling spreads over them."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessException, spawn

from lvdm.acceleration import Mode
from lvdm.benchmarks import Record, machine
from lvdm.errors import ConfigError
from lvdm.models.components import ModelConfig
from lvdm.speed import random_step

WARM_UP = 2  # calls


def devices(
    config: ModelConfig, names: Sequence[str], mode: Mode = "auto", batch: int = 1, calls: int = 10, steps: int = 50
) -> Iterator[Record]:
    """Videos a minute of denoising alone, `steps` guided steps each, on the first 1, 2, 4... of these devices.

    names: such as cuda:0 and cuda:1. batch: videos at once on each. All begin together, and the slowest counts.
    `of_linear`: what each device makes, as a share of what the first makes alone.
    Raises ConfigError for a device that is not there, and where a process ended with an error.
    """
    alone = 0.0
    for count in _counts(len(names)):
        seconds = max(_at_once(config, names[:count], mode, batch, calls, steps))
        rate = count * batch * calls * 60 / (steps * seconds)
        alone = alone or rate
        record: Record = {"devices": count, "videos_each": batch, "compile": mode, "steps": steps}
        record |= {"ms": round(1e3 * seconds / calls, 2), "videos_per_minute": round(rate, 1)}
        yield record | {"of_linear": round(rate / (count * alone), 3)} | machine(names[0])


def _counts(most: int) -> list[int]:
    """1, 2, 4 and so on, and at last all."""
    return sorted({min(2**i, most) for i in range(most.bit_length() + 1)})


def _at_once(config: ModelConfig, names: Sequence[str], *how: Any) -> list[float]:
    """Seconds of the timed calls on each device."""
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(len(names)), context.SimpleQueue()
    try:
        spawn(_work, (config, list(names), barrier, found, *how), nprocs=len(names))
    except ProcessException as error:
        raise ConfigError(f"sampling on {', '.join(names)} failed: {str(error).strip().splitlines()[-1]}") from error
    return [found.get() for _ in names]


def _work(
    place: int,
    config: ModelConfig,
    names: list[str],
    barrier: Any,
    found: Any,
    mode: Mode,
    batch: int,
    calls: int,
    steps: int,
) -> None:
    """In a process of its own: time the calls on one device, from when all are ready."""
    device = torch.device(names[place])
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    network, inputs = random_step(config, names[place], mode, batch, steps)
    with torch.no_grad():
        for _ in range(WARM_UP):
            network(*inputs[:3], fps=inputs[3])
        if cuda:
            torch.cuda.synchronize()
        barrier.wait()
        start = time.perf_counter()
        for _ in range(calls):
            network(*inputs[:3], fps=inputs[3])
        if cuda:
            torch.cuda.synchronize()
    found.put(time.perf_counter() - start)
