"""What a scheduler of diffusers says about training: noise levels, how they are told, and what is predicted."""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvdm.diffusion.schedule import FlowSchedule, NoiseSchedule, Prediction
from lvdm.errors import ConfigError

# Log of the noise level of Stable Video Diffusion in training: mean and standard deviation of a normal distribution.
EDM_MEAN, EDM_STD, EDM_LEVELS = 0.7, 1.6, 1000
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "flow"}


def prediction_of(scheduler: Any) -> Prediction:
    """What the network behind a scheduler predicts. Raises ConfigError for one that predicts x0."""
    if _is_flow(scheduler):
        return "flow"
    kind = scheduler.config.prediction_type
    if kind not in _PREDICTIONS:
        raise ConfigError(f"a network that predicts '{kind}' is not supported: eps, v or flow matching are")
    return _PREDICTIONS[kind]


def schedule_of(scheduler: Any, tokens: int) -> NoiseSchedule:
    """The noise levels that a base model is trained on, as the distribution of a uniform timestep.

    tokens: of the latents, on which the shift of some flow models depends.
    Raises ConfigError for a scheduler that says nothing of the kind.
    """
    config = scheduler.config
    if _is_flow(scheduler):
        return FlowSchedule(_shift(config, tokens), config.num_train_timesteps)
    if getattr(config, "timestep_type", None) == "continuous":
        place = (torch.arange(EDM_LEVELS, dtype=torch.float64) + 0.5) / EDM_LEVELS
        log_sigma = EDM_MEAN + EDM_STD * torch.special.ndtri(place)
        return NoiseSchedule.from_alphas_cumprod(1 / (1 + (2 * log_sigma).exp()), 0.25 * log_sigma)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ConfigError(f"a {type(scheduler).__name__} does not say how its model was trained")
    return NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod.cpu())


def equal_steps(steps: int) -> Any:
    """Noise levels from 1 down in equal steps."""
    return np.linspace(1.0, 1 / steps, steps)


def mochi_steps(steps: int) -> Any:
    """Noise levels of Mochi's pipeline: small equal steps at first, then growing ones."""
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    levels: Any = linear_quadratic_schedule
    return np.array(levels(steps, 0.025))


def ready(
    scheduler: Any, steps: int, tokens: int, device: torch.device, sigmas: Callable[[int], Any] | None = None
) -> Any:
    """A copy of a scheduler, set to so many steps. sigmas: noise levels for a number of steps, before the shift, where
    the pipeline gives them. Raises ConfigError for a number of steps that the scheduler cannot make."""
    scheduler = copy.deepcopy(scheduler)
    takes = inspect.signature(scheduler.set_timesteps).parameters
    options: dict[str, Any] = {"device": device}
    if sigmas is not None:
        options["sigmas"] = sigmas(steps)
    else:
        options["num_inference_steps"] = steps
    if getattr(scheduler.config, "use_dynamic_shifting", False) and "mu" in takes:
        options["mu"] = _mu(scheduler.config, tokens)
    try:
        scheduler.set_timesteps(**options)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"num_inference_steps {steps}: {error}") from error
    return scheduler


class Steps:
    """One sampling with a scheduler of diffusers: what the network is given, and what becomes of its output.

    A scheduler of inverted noise levels (Mochi's) counts from noise to data; what goes in and out here does not.
    Raises ConfigError for an eta that the scheduler has not.
    """

    def __init__(self, scheduler: Any, generators: Any, eta: float | None) -> None:
        self.scheduler = scheduler
        self._inverted = bool(getattr(scheduler.config, "invert_sigmas", False))
        self._before: Tensor | None = None  # what CogVideoX's solver keeps of the step before, and its timestep
        self._previous: Tensor | None = None
        takes = inspect.signature(scheduler.step).parameters
        self._options: dict[str, Any] = {"return_dict": False}
        if "generator" in takes and generators is not None:
            self._options["generator"] = list(generators)
        if eta is not None and "eta" not in takes:
            name = type(scheduler).__name__
            raise ConfigError(f"eta is no setting of this model's scheduler, {name}: leave it out")
        if eta is not None:
            self._options["eta"] = eta

    def __len__(self) -> int:
        return len(self.scheduler.timesteps)

    def input(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's input at a noise level."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return x if scale is None else scale(x, t)

    def told(self, t: Tensor) -> Tensor:
        """What a backbone is told at the scheduler's timestep t."""
        return self.scheduler.config.num_train_timesteps - t if self._inverted else t

    def step(self, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """Latents x (b, c, t, h, w) one step cleaner, by the backbone's output."""
        output = -output if self._inverted else output
        if type(self.scheduler).__name__ != "CogVideoXDPMScheduler":
            cleaner: Tensor = self.scheduler.step(output, t, x, **self._options)[0]
            return cleaner
        x, self._before = self.scheduler.step(output, self._before, t, self._previous, x, **self._options)
        self._previous = t
        return x


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or getattr(config, "prediction_type", None) == "flow_prediction"
        or bool(getattr(config, "use_flow_sigmas", False))
    )


def _shift(config: Any, tokens: int) -> float:
    """The shift of a flow model: a number, or a function of the latents' tokens."""
    if getattr(config, "use_dynamic_shifting", False):
        return math.exp(_mu(config, tokens))
    found = getattr(config, "flow_shift", None)
    return float(config.shift if found is None else found)


def _mu(config: Any, tokens: int) -> float:
    """The logarithm of a shift that grows with the number of tokens: a line through two points."""
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(base + (tokens - least) * (top - base) / (most - least))
