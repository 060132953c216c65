"""The UNet wrapped once: samplers and training never see its dtype, its batching or what its output means."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lvdm.diffusion.schedule import NoiseSchedule, Prediction
from lvdm.errors import ConfigError


@dataclass(frozen=True)
class Condition:
    """What one branch of guidance, or one training batch, is conditioned on.

    context: (b, tokens, d), or (1, tokens, d) for all samples. fps: (b,) or one number, None where the UNet has none.
    extras: further UNet arguments by name, which other branches may lack.
    """

    context: Tensor
    fps: Tensor | float | None = None
    extras: dict[str, Any] = field(default_factory=dict)


class Denoiser:
    """A network with its noise schedule and what its output means: the noise ("eps") or a velocity ("v", "flow").

    The UNet is called as `unet(x, t, context, fps=fps, **extras)`, x and context in its own dtype; where it
    `shares_branches`, x, t and fps are those of one branch. An extra arrives as a list of (rows, value), `rows` being
    the slice of the context's batch that the value is for. Results are float32 or better.
    Raises ConfigError for another prediction, or for noise prediction on a schedule of zero terminal SNR, where the
    noise at the last timestep says nothing about the clean latent.
    """

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule, prediction: Prediction = "eps") -> None:
        if prediction not in get_args(Prediction):
            raise ConfigError(f"prediction must be 'eps', 'v' or 'flow', got {prediction!r}")
        if prediction == "eps" and schedule.zero_terminal_snr:
            raise ConfigError("a schedule of zero terminal SNR needs prediction 'v', got 'eps'")
        self.unet, self.schedule, self.prediction = unet, schedule, prediction

    def guided(self, branches: Sequence[Condition], weights: Sequence[float], rescale: float = 0.0) -> "Guided":
        """The model that samplers call: the weighted sum of all branches' predictions, in one batched UNet call.

        Classifier-free guidance of strength g has branches [unconditional, conditional] and weights [1 - g, g]. The
        weights must sum to 1; a branch of weight 0 is not computed. `rescale` in 0..1 pulls the standard deviation of
        the result towards that of the last branch, the fully conditioned one (Lin et al. 2024, section 3.4).
        Raises ConfigError for branches that cannot share a batch or weights that do not fit.
        """
        if len(branches) != len(weights) or not branches:
            raise ConfigError(f"guidance needs one weight for each branch, got {len(weights)} for {len(branches)}")
        if not all(map(math.isfinite, weights)):
            raise ConfigError(f"guidance weights {list(weights)} must be finite: choose another guidance strength")
        if abs(sum(weights) - 1) > 1e-6:
            raise ConfigError(f"guidance weights must sum to 1, got {list(weights)}")
        if not 0 <= rescale <= 1:
            raise ConfigError(f"guidance rescale must be in 0..1, got {rescale}")
        used = [(branch, float(weight)) for branch, weight in zip(branches, weights) if weight != 0]
        _check_same_batch([branch for branch, _ in used])
        return Guided(self, [branch for branch, _ in used], [weight for _, weight in used], rescale)

    def loss(
        self,
        prediction: Tensor,
        latents: Tensor,
        noise: Tensor,
        t: Tensor,
        weighting: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of a prediction for each sample (b,): eq. 9.

        prediction: what `predict` gave for the noisy latents; latents: clean, scaled (b, c, t, h, w); noise: standard
        normal, same shape; t: (b,) int64; weighting: (b,) factors on the losses; places: (b, 1, t, h, w) factors on the
        squared errors. The target is the noise or a velocity.
        """
        latents, noise = latents.float(), noise.float()
        target = self.schedule.target(latents, noise, t, self.prediction)
        errors = (prediction - target).square()
        loss = (errors if places is None else errors * places).flatten(1).mean(1)
        return loss if weighting is None else loss * weighting

    def predict(self, x: Tensor, t: Tensor, branches: Sequence[Condition]) -> Tensor:
        """The network's output for every branch: x (b, c, t, h, w), t (b,) int64 -> (branches * b, c, t, h, w)."""
        return self.output(x, self.schedule.told(t), branches)

    def output(self, x: Tensor, times: Tensor, branches: Sequence[Condition]) -> Tensor:
        """As `predict`, for `times` (b,) as the network is told them: x is already as it takes its input."""
        batch, count, dtype = len(x), len(branches), _dtype_of(self.unet, x)
        context = torch.cat([branch.context.expand(batch, -1, -1) for branch in branches])
        fps = None
        rates = [branch.fps for branch in branches if branch.fps is not None]
        if rates:  # all have one or none, see `guided`
            fps = torch.cat([_per_sample(rate, batch, x.device) for rate in rates])
        extras: dict[str, list[tuple[slice, Any]]] = {}
        for i, branch in enumerate(branches):
            for name, value in branch.extras.items():
                extras.setdefault(name, []).append((slice(i * batch, (i + 1) * batch), value))
        shared = getattr(self.unet, "shares_branches", False) and all(_alike(rate, rates[0]) for rate in rates)
        if shared:
            fps = None if fps is None else fps[:batch]
        else:
            x, times = x.repeat(count, *[1] * (x.ndim - 1)), times.repeat(count)
        output = self.unet(x.to(dtype), times, context.to(dtype), fps=fps, **extras)
        return output.to(torch.promote_types(output.dtype, torch.float32))


@dataclass(frozen=True)
class Guided:
    """A denoiser under guidance. Calling it gives the noise; `predict` also gives x0, exact at zero signal too."""

    denoiser: Denoiser
    branches: list[Condition]
    weights: list[float]
    rescale: float = 0.0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Noise prediction for x (b, c, t, h, w) at timesteps t (b,)."""
        return self.predict(x, t)[1]

    def predict(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, noise), both of x's shape.

        Predictions are combined as the UNet gives them. x0 and noise are affine in its output and the weights sum to
        one, so this equals combining either of them.
        """
        outputs = self.denoiser.predict(x, t, self.branches).chunk(len(self.branches))
        output, *others = (weight * branch for weight, branch in zip(self.weights, outputs))
        for other in others:
            output = output + other
        if self.rescale:
            dims = tuple(range(1, x.ndim))
            ratio = outputs[-1].std(dims, keepdim=True) / output.std(dims, keepdim=True)
            output = output * (1 + self.rescale * (ratio - 1))
        return self.denoiser.schedule.solve(x, output, t, self.denoiser.prediction)


NoiseModel = Callable[[Tensor, Tensor], Tensor] | Guided


def _check_same_batch(branches: list[Condition]) -> None:
    """All branches go through the UNet as one batch, and padding a context would change what it means."""
    shapes = [tuple(branch.context.shape[1:]) for branch in branches]
    if len(set(shapes)) > 1:
        raise ConfigError(f"all guidance branches need a context of the same tokens and width, got {shapes}")
    if len({branch.fps is None for branch in branches}) > 1:
        raise ConfigError("either all guidance branches give fps or none does")


def _alike(one: Tensor | float, other: Tensor | float) -> bool:
    """Whether two frame rates are surely the same, without reading a tensor, for which the host would wait."""
    return one is other or (not (isinstance(one, Tensor) or isinstance(other, Tensor)) and one == other)


def _per_sample(value: Tensor | float, batch: int, device: torch.device) -> Tensor:
    return value.expand(batch) if isinstance(value, Tensor) else torch.full((batch,), value, device=device)


def _dtype_of(unet: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype that the network computes in: what it says itself, or that of its first floating-point parameter."""
    if isinstance(own := getattr(unet, "dtype", None), torch.dtype):
        return own
    return next((p.dtype for p in unet.parameters() if p.is_floating_point()), x.dtype)
