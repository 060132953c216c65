"""The forward process: how much signal and how much noise a latent holds at each timestep.

Everywhere in this package, x_t = alpha_t * x0 + sigma_t * noise. With alpha-bar the cumulative product of 1 - beta,
alpha_t = sqrt(alpha-bar_t) * scale_arr_t and sigma_t = sqrt(1 - alpha-bar_t). `scale_arr` is one everywhere except on
VideoCrafter 2's rescaled schedule, which shrinks the clean latent as well. Stating every sampler by alpha and sigma is
what makes all of them right on all schedules.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lvdm.errors import ConfigError
from lvdm.sizes import check_sizes

Prediction = Literal["eps", "v", "flow"]
"""What a network's output means: the noise, the velocity of v-prediction, or noise - x0, the velocity of a straight
path from data to noise (flow matching)."""
Spacing = Literal["published", "trailing"]


@dataclass(frozen=True)
class DiffusionConfig:
    """What a checkpoint was trained with. The defaults are those of LVDM's text-to-video model and VideoCrafter 1.

    `schedule` names how betas run from `beta_start` to `beta_end`: "scaled_linear" is linear in the square root (the
    published configs call it "linear"), "linear" is linear in beta itself, and "flow" is a straight path from data to
    noise without betas, whose noise levels `shift` moves upwards (see FlowSchedule). `rescale_to` is VideoCrafter 2's
    `scale_b`, reached after `rescale_steps` timesteps. `spacing` is the choice of timesteps when sampling.
    """

    schedule: Literal["scaled_linear", "linear", "flow"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_timesteps: int = 1000
    rescale_to: float | None = None
    rescale_steps: int = 400
    zero_terminal_snr: bool = False
    prediction: Prediction = "eps"
    spacing: Spacing = "published"
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_sizes(self, "diffusion", free=("rescale_steps",))
        if (self.schedule == "flow") != (self.prediction == "flow"):
            raise ConfigError(
                f"diffusion.schedule {self.schedule} and diffusion.prediction {self.prediction} do not go together: "
                "flow matching needs both to be 'flow'"
            )
        if self.shift != 1 and self.schedule != "flow":
            raise ConfigError(f"diffusion.shift is {self.shift}: only the schedule 'flow' has a shift")
        if self.schedule == "flow" and (self.zero_terminal_snr or self.rescale_to is not None):
            raise ConfigError(
                "diffusion.zero_terminal_snr and diffusion.rescale_to are for schedules of betas, and 'flow' has none: "
                "leave them out"
            )

    def build_schedule(self) -> "NoiseSchedule":
        """The schedule that these settings describe."""
        if self.schedule == "flow":
            return FlowSchedule(self.shift, self.num_timesteps)
        build = NoiseSchedule.scaled_linear if self.schedule == "scaled_linear" else NoiseSchedule.linear
        return build(
            self.beta_start,
            self.beta_end,
            self.num_timesteps,
            rescale_to=self.rescale_to,
            rescale_steps=self.rescale_steps,
            zero_terminal_snr=self.zero_terminal_snr,
        )


class NoiseSchedule:
    """A discrete noise schedule of T timesteps, 0 (almost clean) to T-1 (almost or entirely noise).

    Tables, all float64 of shape (T,): `betas`, `alphas_cumprod` (alpha-bar), `scale_arr`, `alphas`, `sigmas`.
    `times`, float32 (T,), is what the network is told at each timestep; None: the timestep itself.
    Per-sample coefficients come out in float32 (float64 for float64 latents), never in half precision.
    """

    times: Tensor | None = None

    def __init__(self, betas: Tensor, *, rescale_to: float | None = None, rescale_steps: int = 400) -> None:
        """`rescale_to`: the factor on the clean latent, falling linearly from 1 over the first `rescale_steps`
        timesteps and constant after them; None leaves it at 1 throughout. Raises ConfigError for impossible values.
        """
        self.betas = betas.to(torch.float64)
        if self.betas.ndim != 1 or not bool(((self.betas > 0) & (self.betas <= 1)).all()):
            raise ConfigError("betas must be a list of numbers above 0 and at most 1")
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        self.scale_arr = torch.ones_like(self.betas)
        if rescale_to is not None:
            if not rescale_to > 0 or not 1 <= rescale_steps <= len(betas):
                wanted = f"rescale_to must be above 0 and rescale_steps in 1..{len(betas)}"
                raise ConfigError(f"{wanted}, got {rescale_to} and {rescale_steps}")
            self.scale_arr[:rescale_steps] = torch.linspace(1, rescale_to, rescale_steps, dtype=torch.float64)
            self.scale_arr[rescale_steps:] = rescale_to
        self.alphas = self.alphas_cumprod.sqrt() * self.scale_arr
        self.sigmas = (1 - self.alphas_cumprod).sqrt()
        self._on_device: dict[torch.device, NoiseSchedule] = {}

    @classmethod
    def scaled_linear(
        cls,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        num_timesteps: int = 1000,
        *,
        rescale_to: float | None = None,
        rescale_steps: int = 400,
        zero_terminal_snr: bool = False,
    ) -> "NoiseSchedule":
        """Betas linear in their square root: what the published configs of LVDM and VideoCrafter call "linear"."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
        betas = with_zero_terminal_snr(betas) if zero_terminal_snr else betas
        return cls(betas, rescale_to=rescale_to, rescale_steps=rescale_steps)

    @classmethod
    def linear(
        cls,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_timesteps: int = 1000,
        *,
        rescale_to: float | None = None,
        rescale_steps: int = 400,
        zero_terminal_snr: bool = False,
    ) -> "NoiseSchedule":
        """Betas linear in themselves (Ho et al. 2020)."""
        betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
        betas = with_zero_terminal_snr(betas) if zero_terminal_snr else betas
        return cls(betas, rescale_to=rescale_to, rescale_steps=rescale_steps)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor, times: Tensor | None = None) -> "NoiseSchedule":
        """From alpha-bar (T,), falling, which may end at 0; `times`: see the class. Raises ConfigError for others."""
        bar = alphas_cumprod.to(torch.float64)
        before = torch.cat([torch.ones_like(bar[:1]), bar[:-1]])
        schedule = cls(1 - bar / before)
        schedule.alphas_cumprod = bar  # not as a product of its own quotients, which would round otherwise
        schedule.alphas, schedule.sigmas = bar.sqrt(), (1 - bar).sqrt()
        schedule.times = None if times is None else times.to(torch.float32)
        return schedule

    def __len__(self) -> int:
        """The number of timesteps T."""
        return len(self.betas)

    def told(self, t: Tensor) -> Tensor:
        """What the network is told at timesteps t (b,): int64 where that is t, else float32."""
        times = self.to(t.device).times
        return t if times is None else times[t]

    def told_at(self, share: float) -> float:
        """What the network is told where this share (0 to 1) of the noise levels, from the noisiest on, is over."""
        t = round((1 - share) * len(self))
        if self.times is None:
            return float(t)
        if t in (0, len(self)):  # a sampler's own levels may lie beyond those of training
            return math.inf if t else -math.inf
        return float(self.times[t])

    def told_between(self, start: float, end: float) -> tuple[float, float]:
        """The lowest and the highest that the network is told between two shares (0 to 1) of the noise levels, from
        the noisiest on: the second of two spans that touch has the level where they do."""
        return self.told_at(end), math.nextafter(self.told_at(start), -math.inf)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep holds no signal at all, so that noise prediction cannot recover x0 from it."""
        return bool(self.alphas_cumprod[-1] == 0)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """This schedule with its tables on `device`; copied there once, then remembered."""
        device = torch.empty(0, device=device).device  # "cuda" -> "cuda:0", as tensors report it
        if device == self.betas.device:
            return self
        if device not in self._on_device:
            copy = object.__new__(type(self))
            tables = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in vars(self).items()}
            vars(copy).update(tables | {"_on_device": {}})
            self._on_device[device] = copy
        return self._on_device[device]

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) for timesteps t (b,), shaped (b, 1, ...) to multiply `like` (b, ...), on t's device."""
        here = self.to(t.device)
        return _gather(here.alphas, t, like), _gather(here.sigmas, t, like)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Sample q(x_t | x0): clean latents and standard normal noise (b, ...), timesteps (b,) -> x_t."""
        alpha, sigma = self.coefficients(t, latents)
        return alpha * latents + sigma * noise

    def velocity(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The target of v-prediction (Salimans & Ho 2022), v = sqrt(alpha-bar_t) * noise - sigma_t * scale_arr_t * x0.

        The scaled latent takes x0's place on a rescaled schedule, which keeps (x_t, v) a rotation of (x0, noise).
        """
        here = self.to(t.device)
        root, scale = _gather(here.alphas_cumprod.sqrt(), t, latents), _gather(here.scale_arr, t, latents)
        return root * noise - _gather(here.sigmas, t, latents) * scale * latents

    def target(self, latents: Tensor, noise: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """What a network learns to put out: the noise, or the velocity. All (b, ...) but t (b,)."""
        return noise if prediction == "eps" else self.velocity(latents, noise, t)

    def solve(self, x: Tensor, output: Tensor, t: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """(x0, noise) from noisy latents x (b, ...), a network's output of the same shape, and timesteps (b,).

        For "v" this inverts the rotation, so it holds at zero signal too; for "eps" it divides by alpha_t.
        """
        if prediction == "eps":
            alpha, sigma = self.coefficients(t, x)
            return (x - sigma * output) / alpha, output
        here = self.to(t.device)
        root, sigma = _gather(here.alphas_cumprod.sqrt(), t, x), _gather(here.sigmas, t, x)
        return (root * x - sigma * output) / _gather(here.scale_arr, t, x), sigma * x + root * output

    def sampling_timesteps(self, steps: int, spacing: Spacing = "published") -> list[int]:
        """The timesteps that a sampler visits, from noise to clean.

        "published": every (T // steps)-th timestep starting from 1. This is the ancestors' rule with its consequences:
        the noisiest timesteps are never visited, and steps that do not divide T give more steps than asked for (64
        gives 67). Where the rule points past the last timestep (say 9 or 1000 steps; the ancestors crash) T-1 is taken.
        "trailing": `steps` timesteps counted back from T-1 (Lin et al. 2024), needed with zero terminal SNR.

        Raises ConfigError unless 1 <= steps <= T.
        """
        total = len(self)
        if not 1 <= steps <= total:
            raise ConfigError(f"the number of sampling steps must be in 1..{total}, got {steps}")
        if spacing == "published":
            return sorted({min(t + 1, total - 1) for t in range(0, total, total // steps)}, reverse=True)
        if spacing == "trailing":
            return [round(total - i * total / steps) - 1 for i in range(steps)]
        raise ConfigError(f"spacing must be 'published' or 'trailing', got {spacing!r}")


class FlowSchedule(NoiseSchedule):
    """Flow matching (Lipman et al. 2023; rectified flow, Liu et al. 2023): x_t = (1 - sigma_t) x0 + sigma_t noise.

    u = (t + 1) / T runs from 1 / T to 1, and sigma = shift u / (1 + (shift - 1) u): a shift above 1 spends more of the
    levels on strong noise (Esser et al. 2024, eq. 23). So a uniform t is the distribution that such a model is trained
    with, and DDIM with eta 0 on this schedule is Euler's method. The network is told 1000 sigma, and its output is the
    velocity noise - x0. There are no betas: alpha-bar is 1 - sigma^2, which the stochastic DDIM reads.
    """

    def __init__(self, shift: float = 1.0, num_timesteps: int = 1000) -> None:
        """Raises ConfigError for a shift that is not positive."""
        if not shift > 0:
            raise ConfigError(f"the shift of flow matching is {shift}: it must be above 0")
        u = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
        self.shift = shift
        self.sigmas = shift * u / (1 + (shift - 1) * u)
        self.alphas = 1 - self.sigmas
        self.alphas_cumprod = 1 - self.sigmas**2
        self.betas = torch.full_like(u, torch.nan)
        self.scale_arr = torch.ones_like(u)
        self.times = (1000 * self.sigmas).to(torch.float32)
        self._on_device: dict[torch.device, NoiseSchedule] = {}

    def velocity(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """noise - x0, the same at all timesteps."""
        return noise - latents

    def solve(self, x: Tensor, output: Tensor, t: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """(x0, noise) from x (b, ...) and a velocity of the same shape; exact at either end."""
        alpha, sigma = self.coefficients(t, x)
        return x - sigma * output, x + alpha * output


def with_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and stretch sqrt(alpha-bar) so that it ends at 0 and starts where it did (Lin et al. 2024, algorithm 1)."""
    root = (1 - betas.to(torch.float64)).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas_cumprod = root**2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


def timesteps_from_uniform(u: Tensor, num_timesteps: int, law: Literal["uniform", "sqrt"] = "uniform") -> Tensor:
    """Training timesteps (b,) int64 in 0..T-1 from uniform draws u (b,) in [0, 1); a pure function of u.

    "uniform": floor(T * u). "sqrt": floor(T * sqrt(u)), whose density grows with t: large t decides motion.
    Raises ConfigError for another law.
    """
    if law not in ("uniform", "sqrt"):
        raise ConfigError(f"timesteps must be drawn by 'uniform' or 'sqrt', got {law!r}")
    u = u.to(torch.float64)  # in float32, T * sqrt(u) can round up to T
    u = u.sqrt() if law == "sqrt" else u
    return (u * num_timesteps).long().clamp(max=num_timesteps - 1)


def _gather(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t], shaped (b, 1, ...) to broadcast over `like`, in `like`'s precision but at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return table[t].to(dtype).view(-1, *[1] * (like.ndim - 1))
