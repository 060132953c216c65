"""Noticing NaN and infinity, in what is loaded and in what is computed."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lvdm.errors import SamplingError

_REMEDY = "try a lower guidance scale or another precision (--dtype float32), and verify the weights"


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite. Reads it once, without a copy."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    least, most = torch.aminmax(tensor.detach())  # which pass NaN on
    return bool(torch.isfinite(least) & torch.isfinite(most))


class FiniteWatch:
    """A sampler's callback that stops it where its latents are no longer finite, then calls another one.

    On CUDA nothing waits for the device: each step's verdict is copied to the host on its way, and looked at after
    later steps, as soon as it has come. The message names the step at which it happened, but up to as many further
    steps as the host is ahead of the device have been started by then. `finish` waits for those that are left.
    """

    def __init__(self, callback: Callable[[int, int, int, Tensor], Tensor | None] | None = None):
        self.callback = callback
        self._verdicts: Tensor | None = None  # bool (steps,), on the host
        self._open: deque[tuple[int, int, Any]] = deque()  # (step, total, event) whose verdicts were not looked at

    def __call__(self, step: int, total: int, t: int, x: Tensor) -> Tensor | None:
        """Look at x after `step` (from 1) of `total` steps, which started at timestep t. Raises SamplingError."""
        on_cuda = x.device.type == "cuda"
        if self._verdicts is None:
            self._verdicts = torch.empty(total, dtype=torch.bool, pin_memory=on_cuda)
        self._verdicts[step - 1].copy_(torch.isfinite(x).all(), non_blocking=on_cuda)
        self._open.append((step, total, self._event(x)))
        self._look(wait=False)
        return self.callback(step, total, t, x) if self.callback is not None else None

    def _event(self, x: Tensor) -> Any:
        """What says when the verdict has come: an event of x's stream, or None for one that is there at once."""
        if x.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(x.device))
        return event

    def finish(self) -> None:
        """Look at what is left, waiting for the device. Raises SamplingError."""
        self._look(wait=True)

    def _look(self, wait: bool) -> None:
        while self._open:
            step, total, event = self._open[0]
            if event is not None and wait:
                event.synchronize()
            if event is not None and not event.query():
                return
            self._open.popleft()
            assert self._verdicts is not None
            if not self._verdicts[step - 1]:
                raise SamplingError(f"sampling went wrong at step {step} of {total}: NaN or infinity; {_REMEDY}")


def check_frames(frames: Tensor) -> Tensor:
    """The frames themselves. Raises SamplingError if a decoder gave NaN or infinity."""
    if not is_finite(frames):
        raise SamplingError(f"decoding went wrong: the frames hold NaN or infinity; {_REMEDY}")
    return frames
