"""The random numbers of a training step, so that a sample's loss does not depend on who else is in its batch.

`noise: sample` draws each sample from a CPU generator of its own, seeded by the sample's `noise_seed`: the loss of a
sample is then a pure function of its number and the weights, for any batch size, worker count and device. That costs
CPU time for each sample, which small models on a fast device notice; `noise: device` draws a whole batch on the
device from one generator seeded by the batch's first `noise_seed`. It is as repeatable as long as the batches are
composed alike, so a run resumes exactly on the same number of devices.
"""

import random
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


class BatchRandomness:
    """Random numbers for the samples of one batch; `normal` gives other ones each time it is asked."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str, mode: Literal["sample", "device"] = "sample"):
        self.seeds, self.device, self.mode = [int(seed) for seed in seeds], torch.device(device), mode
        where, used = ("cpu", self.seeds) if mode == "sample" else (self.device, self.seeds[:1])
        self._generators = [torch.Generator(where).manual_seed(seed) for seed in used]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers (b, *shape), float32, on the device."""
        if self.mode == "device":
            return torch.randn(len(self.seeds), *shape, generator=self._generators[0], device=self.device)
        return self._moved(torch.stack([torch.randn(*shape, generator=generator) for generator in self._generators]))

    def uniform(self, count: int = 1) -> Tensor:
        """`count` numbers in [0, 1) for each sample, (b, count), float32, on the device; the same ones each time, in
        both modes."""
        return self._moved(torch.tensor(self.host_uniform(count)))

    def host_uniform(self, count: int = 1) -> list[list[float]]:
        """The numbers of `uniform` for use on the host."""
        sources = (random.Random(seed) for seed in self.seeds)
        return [[source.random() for _ in range(count)] for source in sources]

    def _moved(self, values: Tensor) -> Tensor:
        if self.device.type == "cuda":  # pinned, so that the copy does not make the host wait
            return values.pin_memory().to(self.device, non_blocking=True)
        return values
