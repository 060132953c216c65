"""What happens after each step of sampling: a bar on the screen, and a user's `callback_on_step_end`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from lvdm.arguments import described
from lvdm.diffusion.samplers import Callback
from lvdm.errors import ConfigError

# called as (pipeline, step from 0, timestep, {"latents": x}); latents in what it returns replace x (b, c, t, h, w)
StepCallback = Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None]


def check_step_callback(callback: StepCallback | None) -> None:
    """Raise ConfigError for a callback that cannot be called."""
    if callback is not None and not callable(callback):
        raise ConfigError(f"callback_on_step_end must be a function, got {described(callback)}")


def step_callbacks(pipeline: Any, on_step_end: StepCallback | None, *others: Callback | None) -> Callback:
    """One callback for samplers from a `callback_on_step_end`, which gets `pipeline`, and others of their own kind."""

    def update(step: int, total: int, t: int, x: Tensor) -> Tensor | None:
        for callback in others:
            if callback is not None:
                callback(step, total, t, x)
        changed = on_step_end(pipeline, step - 1, t, {"latents": x}) if on_step_end is not None else None
        return changed.get("latents") if changed else None

    return update


def progress_bar(what: str = "sampling") -> Callback:
    """A callback for samplers that shows `what` it is, steps, speed and remaining time on stderr."""
    bar = None

    def update(step: int, total: int, t: int, x: Tensor) -> None:
        nonlocal bar
        if bar is None:  # not before: an error about the arguments would follow on the bar's line
            bar = tqdm(desc=what, unit="step", total=total, leave=False)
        bar.update(step - bar.n)
        if step == total:
            bar.close()

    return update
