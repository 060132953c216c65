"""Samplers: from pure noise to clean latents, one short function each.

All of them share one interface. `eps(x, t)` predicts the noise in x (b, ...) at timesteps t (b,) int64; a `Guided`
denoiser also gives x0, which is how v-prediction with zero terminal SNR starts from a timestep without any signal.
`x_T` is standard normal; the result has its shape, in float32 (float64 for a float64 x_T). `generators`, one for each
sample, supply the noise of the stochastic samplers (None: torch's global generator). `callback(step, total, t, x)`
runs after each step, which was number `step` of `total`, from 1, and went from timestep t to x; a tensor that it
returns replaces x. `spacing` is explained at `NoiseSchedule.sampling_timesteps`; its last step goes to timestep 0 when
"published", which leaves a trace of noise, and to the clean latent when "trailing". A single step is always trailing:
the published rule would start it at timestep 1 and return noise.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, inf, log, sqrt

import torch
from torch import Generator, Tensor

from lvdm.diffusion.denoiser import Guided, NoiseModel
from lvdm.diffusion.noise import draw_noise
from lvdm.diffusion.schedule import NoiseSchedule, Spacing
from lvdm.errors import ConfigError
from lvdm.registry import Registry

LCM_LEVELS = 50  # noise levels that consistency models were distilled on, and their boundary condition's constants
LCM_SIGMA_DATA, LCM_TIMESTEP_SCALE = 0.5, 10.0

Callback = Callable[[int, int, int, Tensor], Tensor | None]

SAMPLERS: Registry[Callable[..., Tensor]] = Registry("sampler", modules="lvdm.diffusion.sampler")
"""By name. A further one is a file `lvdm/diffusion/sampler_NAME.py`, and its name in `lvdm.options.GenerationOptions`.
One with an `eta` has that option; one whose `spacing` is "published" by default takes the model's own."""


@SAMPLERS.register("ddim")
@torch.no_grad()
def sample_ddim(
    eps: NoiseModel,
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    eta: float = 0.0,
    *,
    generators: Sequence[Generator] | None = None,
    callback: Callback | None = None,
    spacing: Spacing = "published",
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16), from eta 0, deterministic, to eta 1, as stochastic as DDPM.

    On a rescaled schedule the noise added for eta > 0 is that of the unscaled one, as in VideoCrafter 2.
    Raises ConfigError for eta outside 0..1 or an impossible number of steps.
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta must be in 0..1, got {eta}")
    x, levels = _at_least_float32(x_T), _levels(schedule, steps, spacing)
    for step, (now, to) in enumerate(pairwise(levels), start=1):
        x0, noise = _predict(eps, x, now)
        variance = eta**2 * (1 - to.alpha_bar) / (1 - now.alpha_bar) * (1 - now.alpha_bar / to.alpha_bar)
        x = to.alpha * x0 + sqrt(max(to.sigma**2 - variance, 0.0)) * noise
        x = _add_noise(x, variance, generators)
        x = _reported(callback, step, len(levels) - 1, now, x)
    return x


@SAMPLERS.register("ddpm")
@torch.no_grad()
def sample_ddpm(
    eps: NoiseModel,
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    generators: Sequence[Generator] | None = None,
    callback: Callback | None = None,
    spacing: Spacing = "trailing",
) -> Tensor:
    """DDPM ancestral sampling (Ho et al. 2020, eq. 6 and 7) with the posterior variance.

    `steps=None` walks the whole chain T-1..0; fewer steps walk the chain of the timesteps in between left out.
    Raises ConfigError for an impossible number of steps.
    """
    x, levels = _at_least_float32(x_T), _levels(schedule, len(schedule) if steps is None else steps, spacing)
    for step, (now, to) in enumerate(pairwise(levels), start=1):
        x0, _ = _predict(eps, x, now)
        ratio = now.alpha / to.alpha  # q(x_now | x_to) has mean ratio * x_to
        kept = ratio * (to.sigma / now.sigma) ** 2
        x = kept * x + (to.alpha - kept * now.alpha) * x0  # mean of q(x_to | x_now, x0)
        x = _add_noise(x, to.sigma**2 * (1 - ratio * kept), generators)
        x = _reported(callback, step, len(levels) - 1, now, x)
    return x


@SAMPLERS.register("dpmpp_2m")
@torch.no_grad()
def sample_dpmpp_2m(
    eps: NoiseModel,
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    generators: Sequence[Generator] | None = None,
    callback: Callback | None = None,
    spacing: Spacing = "published",
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second-order multistep, deterministic, 20 to 25 steps do.

    The first step, and a last one onto the clean latent, are of first order. `generators` is accepted for the common
    interface and not used. Raises ConfigError for an impossible number of steps.
    """
    x, levels = _at_least_float32(x_T), _levels(schedule, steps, spacing)
    h_before, x0_before = inf, x  # of the step before, from the second on
    for step, (now, to) in enumerate(pairwise(levels), start=1):
        x0, _ = _predict(eps, x, now)
        h = to.log_snr - now.log_snr
        extrapolate = step > 1 and to.sigma > 0
        estimate = x0 + h / (2 * h_before) * (x0 - x0_before) if extrapolate else x0
        x = (to.sigma / now.sigma) * x - to.alpha * expm1(-h) * estimate
        h_before, x0_before = h, x0
        x = _reported(callback, step, len(levels) - 1, now, x)
    return x


@SAMPLERS.register("lcm")
@torch.no_grad()
def sample_lcm(
    eps: NoiseModel,
    x_T: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    generators: Sequence[Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3) for models distilled to it, 4 to 16 steps.

    Each step jumps to a clean latent, which gets fresh noise for the next level; the last one is the result. The levels
    are every (LCM_LEVELS // steps)-th of the distillation's, from the noisiest on, as T2V-Turbo takes them, so of a
    number of steps that does not divide LCM_LEVELS the last ones are left out: 30 steps end at timestep 419. Raises
    ConfigError for more steps than LCM_LEVELS.
    """
    if not 1 <= steps <= LCM_LEVELS:
        raise ConfigError(f"the sampler 'lcm' takes 1 to {LCM_LEVELS} steps, got {steps}")
    trained = [(i + 1) * len(schedule) // LCM_LEVELS - 1 for i in range(LCM_LEVELS)]
    tables = list(zip(schedule.alphas_cumprod.tolist(), schedule.alphas.tolist(), schedule.sigmas.tolist()))
    levels = [_Level(t, *tables[t]) for t in trained[:: -(LCM_LEVELS // steps)][:steps]]
    x = _at_least_float32(x_T)
    for step, (now, to) in enumerate(pairwise([*levels, _Level(-1, 1.0, 1.0, 0.0)]), start=1):
        x0, _ = _predict(eps, x, now)
        scaled = LCM_TIMESTEP_SCALE * now.t
        kept = LCM_SIGMA_DATA**2 / (scaled**2 + LCM_SIGMA_DATA**2)  # almost nothing but at the cleanest levels
        clean = kept * x + scaled / sqrt(scaled**2 + LCM_SIGMA_DATA**2) * x0
        x = _add_noise(to.alpha * clean, to.sigma**2, generators)
        x = _reported(callback, step, len(levels), now, x)
    return x


def takes_spacing(sampler: str) -> bool:
    """Whether a sampler takes the model's own spacing of timesteps. Raises ConfigError for an unknown one."""
    spacing = inspect.signature(SAMPLERS[sampler]).parameters.get("spacing")
    return spacing is not None and spacing.default == "published"


def steps_taken(sampler: str, schedule: NoiseSchedule, steps: int, spacing: Spacing) -> int:
    """How many steps a sampler takes on a model of this schedule and spacing where so many are asked for: the published
    spacing has more for counts that do not divide the noise levels, see `NoiseSchedule.sampling_timesteps`.

    Raises ConfigError for an unknown sampler, and for more steps than there are noise levels to space.
    """
    return len(_levels(schedule, steps, spacing)) - 1 if takes_spacing(sampler) else steps


@dataclass(frozen=True)
class _Level:
    """A noise level as plain numbers, so that sampling never waits for the device. t is -1 for the clean latent."""

    t: int
    alpha_bar: float
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), lambda in the DPM-Solver papers; infinite at either end."""
        if self.alpha == 0:
            return -inf
        return inf if self.sigma == 0 else log(self.alpha / self.sigma)


def _levels(schedule: NoiseSchedule, steps: int, spacing: Spacing) -> list[_Level]:
    """The noise levels that a sampler passes through, from noise to its last: one more than its steps."""
    spacing = "trailing" if steps == 1 else spacing
    tables = zip(schedule.alphas_cumprod.tolist(), schedule.alphas.tolist(), schedule.sigmas.tolist())
    levels = [_Level(t, *values) for t, values in enumerate(tables)]
    last = levels[0] if spacing == "published" else _Level(-1, 1.0, 1.0, 0.0)
    return [*(levels[t] for t in schedule.sampling_timesteps(steps, spacing)), last]


def _predict(eps: NoiseModel, x: Tensor, level: _Level) -> tuple[Tensor, Tensor]:
    """(x0, noise) at a level. Raises ConfigError where a plain noise model meets a level without signal."""
    t = torch.full((len(x),), level.t, dtype=torch.int64, device=x.device)
    if isinstance(eps, Guided):
        return eps.predict(x, t)
    if level.alpha == 0:
        raise ConfigError("noise prediction cannot start from zero terminal SNR: use a v-prediction denoiser")
    noise = eps(x, t).to(x.dtype)
    return (x - level.sigma * noise) / level.alpha, noise


def _reported(callback: Callback | None, step: int, total: int, level: _Level, x: Tensor) -> Tensor:
    """x, or what the callback puts in its place."""
    changed = callback(step, total, level.t, x) if callback else None
    return x if changed is None else changed


def _add_noise(x: Tensor, variance: float, generators: Sequence[Generator] | None) -> Tensor:
    """x plus noise of that variance; nothing is drawn for none."""
    if variance <= 0:
        return x
    noise = torch.randn_like(x) if generators is None else draw_noise(x.shape, generators, x.device, x.dtype)
    return x + sqrt(variance) * noise


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
