"""How long the phases of a call take."""

import time

import torch
from torch import Tensor

from lvdm.diffusion.samplers import Callback


class Clock:
    """Seconds of consecutive phases; waits for the device at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, float] = {}
        self.last = self._now()

    def lap(self, name: str) -> None:
        """The phase since the last lap is called `name`."""
        now = self._now()
        self.laps[name], self.last = now - self.last, now

    def steps(self, callback: Callback | None) -> Callback:
        """A sampler's callback that ends the phase "first_step" and calls `callback`."""

        def update(step: int, total: int, t: int, x: Tensor) -> Tensor | None:
            if step == 1:
                self.lap("first_step")
            return callback(step, total, t, x) if callback is not None else None

        return update

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
