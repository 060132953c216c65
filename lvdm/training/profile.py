"""Where the time of a training step goes: by phase, and by kernel."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.profiler import ProfilerActivity, profile

from lvdm.training.module import training_module
from lvdm.training.run import build_run, build_trainer, settle
from lvdm.training.settings import Settings

WARM_UP, MEASURED, TRACED = 3, 5, 2  # steps; measured twice: undisturbed, and waiting for the device between phases
TOP = 15
OUTSIDE = "data and hooks"  # what is in no other phase
PHASES = {
    "training_step": "forward",
    "prepare": "prepare",  # clips that are made on the device are made here
    "optimizer_step": "optimizer",  # with the clipping of gradients and the averaging of weights
}


@dataclass
class Kernel:
    """A kernel (on the CPU an operator): its milliseconds and calls in one step."""

    name: str
    ms: float
    calls: float


@dataclass
class Profile:
    """Milliseconds of one step: undisturbed, and of each phase alone. `kernels`, the slowest first."""

    step_ms: float
    phases: dict[str, float]
    kernels: list[Kernel]

    def lines(self) -> list[str]:
        """The profile to read, line by line."""
        total, busy = sum(self.phases.values()), sum(kernel.ms for kernel in self.kernels)
        calls = sum(kernel.calls for kernel in self.kernels)
        found = [f"{self.step_ms:9.2f} ms a step", f"{total:9.2f} ms with a pause after each phase, of which"]
        found += [f"{ms:9.2f} ms {ms / total:6.1%} {name}" for name, ms in self.phases.items()]
        found += [f"{busy:9.2f} ms in {calls:.0f} kernels, of which"]
        return found + [f"{each.ms:9.2f} ms in {each.calls:6.0f} {each.name[:100]}" for each in self.kernels[:TOP]]


def profile_training(config: dict[str, Any]) -> Profile:
    """Train some steps as `train(config)` would, on one device and without writing anything, and time them."""
    sections = Settings.read(config)
    run, settings = sections.run, sections.training
    settings = replace(settings, steps=WARM_UP + 2 * MEASURED + TRACED)
    settings = settle(config, run, settings)
    options, module, data = build_run(config, run, settings)
    stopwatch = Stopwatch()
    trainer = build_trainer(settings, options, logger=False, callbacks=[stopwatch])
    trainer.fit(module, datamodule=data)
    return stopwatch.result()


class Stopwatch(Callback):
    """Undisturbed steps are timed as a whole; then each phase alone, less the phases inside it; then kernels."""

    def __init__(self) -> None:
        self._step = 0.0
        self._phases: dict[str, float] = defaultdict(float)
        self._running = [OUTSIDE]  # the phases that have begun, the innermost last
        self._then, self._borders = 0.0, False
        self._profiler: profile | None = None
        self._cuda = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = training_module(pl_module)
        self._cuda = module.device.type == "cuda"
        timed: list[tuple[object, str, str]] = [(trainer.strategy, "backward", "backward")]
        timed += [(module, name, phase) for name, phase in (PHASES | module.phases).items()]
        for owner, name, phase in timed:
            setattr(owner, name, self._timed(getattr(owner, name), phase))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        if step == WARM_UP:
            self._lap()
        elif step == WARM_UP + MEASURED:
            self._step, self._borders = self._lap(), True
        elif step == WARM_UP + 2 * MEASURED:
            self._phases[OUTSIDE] += self._lap()
            self._borders = False
            self._profiler = profile(activities=[ProfilerActivity.CUDA if self._cuda else ProfilerActivity.CPU])
            self._profiler.start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lap()
        self._trace().stop()

    def result(self) -> Profile:
        """What was timed, once training has ended."""
        kernels = []
        for event in self._trace().key_averages():
            microseconds = event.self_device_time_total if self._cuda else event.self_cpu_time_total
            if microseconds:
                kernels.append(Kernel(event.key, microseconds / 1e3 / TRACED, event.count / TRACED))
        phases = {name: 1e3 * seconds / MEASURED for name, seconds in self._phases.items()}
        return Profile(1e3 * self._step / MEASURED, phases, sorted(kernels, key=lambda kernel: -kernel.ms))

    def _trace(self) -> profile:
        if self._profiler is None:
            raise RuntimeError("the training ended before the steps that are traced")
        return self._profiler

    def _lap(self) -> float:
        """Seconds since the last call, all work of the device included."""
        if self._cuda:
            torch.cuda.synchronize()
        then, self._then = self._then, time.perf_counter()
        return self._then - then

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._borders:
                return function(*args, **kwargs)
            self._phases[self._running[-1]] += self._lap()
            self._running.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._phases[self._running.pop()] += self._lap()

        return timed
