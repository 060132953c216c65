"""Samplers against published figures, against closed forms for Gaussian data, and against diffusers' schedulers.

For data N(MEAN, STD^2) the best noise prediction is known, E[noise | x] = sigma (x - alpha MEAN) / (alpha^2 STD^2 +
sigma^2), and so is the end of its probability-flow ODE: (x - alpha MEAN) / sqrt(alpha^2 STD^2 + sigma^2) is constant.
"""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import get_args

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from lvdm.checkpoints import read_model
from lvdm.diffusion import (
    SAMPLERS,
    Condition,
    Denoiser,
    NoiseSchedule,
    make_generators,
    noise_like,
    sample_ddim,
    sample_ddpm,
    sample_dpmpp_2m,
)
from lvdm.errors import ConfigError
from lvdm.models.components import build_components
from lvdm.options import SamplerName
from lvdm.pipeline import VideoPipeline
from tests.lvdm.training_runs import MODEL
from tests.parity.rebuild import figure, inputs

MEAN, STD = 0.7, 0.5


def gaussian_eps(schedule, x, t):
    """The exact noise prediction for Gaussian data."""
    alpha, sigma = schedule.coefficients(t, x)
    return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def flow_end(schedule, x, start, end=0):
    """Where the probability flow takes x from timestep `start` to timestep `end` (None: to the clean latent)."""
    alphas, sigmas = schedule.alphas.tolist(), schedule.sigmas.tolist()
    spread = [math.hypot(alpha * STD, sigma) for alpha, sigma in zip(alphas, sigmas)]
    alpha_end, spread_end = (1.0, STD) if end is None else (alphas[end], spread[end])
    return alpha_end * MEAN + spread_end * (x - alphas[start] * MEAN) / spread[start]


def uniform_log_snr(rescale_to=None):
    """1,601 timesteps evenly spaced in log SNR, on which a solver's order shows cleanly."""
    alphas_cumprod = torch.sigmoid(2 * torch.linspace(3, -4, 1601, dtype=torch.float64))
    return NoiseSchedule(
        1 - alphas_cumprod / alphas_cumprod.roll(1).index_fill(0, torch.tensor([0]), 1.0), rescale_to=rescale_to
    )


@pytest.mark.parametrize("name", ["ddim_50_cfg", "ddim_25_cfg_rescaled"])
def test_ddim_gives_the_ancestors_latents(name):
    settings, expected = figure(name)
    schedule = NoiseSchedule.scaled_linear(
        0.00085, 0.012, 1000, rescale_to=settings["scale_b"], rescale_steps=settings["mid_step"]
    )

    def eps(x, t):
        assert t.dtype == torch.int64 and t.shape == (2,)

        def branch(c):
            return torch.tanh(0.7 * x + c) * 0.8 + 0.1 * torch.sin(t / 100.0).view(-1, 1, 1, 1, 1)

        return branch(0.0) + settings["guidance"] * (branch(0.3) - branch(0.0))

    found = sample_ddim(eps, inputs("x_T", settings["x_T"]), schedule, settings["steps"], eta=settings["eta"])
    assert (found - torch.from_numpy(expected["z"])).abs().max() < 1e-3
    assert schedule.sampling_timesteps(settings["steps"])[::-1] == expected["timesteps"].tolist()


@pytest.mark.parametrize("rescale_to", [None, 0.7])
@pytest.mark.parametrize(("sampler", "order"), [(sample_ddim, 1), (sample_dpmpp_2m, 2)])
def test_deterministic_samplers_converge_at_their_order(sampler, order, rescale_to):
    schedule = uniform_log_snr(rescale_to)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    errors = []
    for steps in (40, 80, 160):
        found = sampler(partial(gaussian_eps, schedule), x, schedule, steps)
        start = schedule.sampling_timesteps(steps)[0]
        errors.append((found - flow_end(schedule, x, start)).abs().max().item())
    assert errors[-1] < (0.015 if order == 1 else 3e-4)
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("rescale_to", [None, 0.7])
def test_ddim_ends_at_the_closed_form_on_the_published_schedule(rescale_to):
    schedule = NoiseSchedule.scaled_linear(rescale_to=rescale_to)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    found = sample_ddim(partial(gaussian_eps, schedule), x, schedule, 500)
    torch.testing.assert_close(found, flow_end(schedule, x, 999), atol=8e-3, rtol=0)


@pytest.mark.parametrize("rescale_to", [None, 0.7])
@pytest.mark.parametrize(
    ("sampler", "steps"), [(sample_ddpm, None), (sample_ddpm, 500), (partial(sample_ddim, eta=1.0), 500)]
)
def test_stochastic_samplers_give_the_data_distribution(sampler, steps, rescale_to):
    schedule = NoiseSchedule.scaled_linear(rescale_to=rescale_to)
    x = noise_like((1, 40_000), [3])
    found = sampler(partial(gaussian_eps, schedule), x, schedule, steps=steps, generators=make_generators([4]))
    # standard errors: 0.0025 on the mean, 0.7% on the variance; the rest is discretisation
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.var().item() == pytest.approx(STD**2, rel=0.06)


def test_ddim_with_full_noise_is_ddpm():
    schedule = NoiseSchedule.scaled_linear()
    x = noise_like((2, 4, 3), [1, 2])
    eps = partial(gaussian_eps, schedule)
    runs = [
        sampler(eps, x, schedule, steps=40, spacing="published", generators=make_generators([5, 6]))
        for sampler in (partial(sample_ddim, eta=1.0), sample_ddpm)
    ]
    torch.testing.assert_close(*runs, atol=1e-5, rtol=1e-5)


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OURS_AND_THEIRS = {
    "ddim, published": (
        partial(sample_ddim, steps=50),
        lambda: DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    ),
    "ddim, trailing": (
        partial(sample_ddim, steps=25, spacing="trailing"),
        lambda: DDIMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing"),
    ),
    "ddim, half noise": (
        partial(sample_ddim, steps=50, eta=0.5),
        lambda: DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    ),
    "ddpm": (
        partial(sample_ddpm, steps=50),
        lambda: DDPMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing"),
    ),
    "dpmpp_2m, published": (
        partial(sample_dpmpp_2m, steps=20),
        lambda: DPMSolverMultistepScheduler(**SCHEDULE, final_sigmas_type="sigma_min"),
    ),
    "dpmpp_2m, trailing": (
        partial(sample_dpmpp_2m, steps=20, spacing="trailing"),
        lambda: DPMSolverMultistepScheduler(**SCHEDULE, final_sigmas_type="zero", timestep_spacing="trailing"),
    ),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers, under numpy 2
@pytest.mark.parametrize("name", OURS_AND_THEIRS)
def test_agrees_with_diffusers(name):
    sampler, make_scheduler = OURS_AND_THEIRS[name]
    schedule, scheduler = NoiseSchedule.scaled_linear(), make_scheduler()
    steps, spacing = sampler.keywords["steps"], sampler.keywords.get("spacing")
    visited = []

    def eps(x, t):
        visited.append(t[0].item())
        return torch.tanh(0.7 * x) * 0.8 + 0.1 * math.sin(t[0].item() / 100)

    x = noise_like((1, 4, 2, 3, 3), [0])
    ours = sampler(eps, x, schedule, generators=make_generators([1]))
    if isinstance(scheduler, DPMSolverMultistepScheduler) and spacing is None:
        scheduler.set_timesteps(timesteps=schedule.sampling_timesteps(steps))
    else:
        scheduler.set_timesteps(steps)
    assert visited == scheduler.timesteps.tolist()
    options = {"generator": make_generators([1])[0]}
    if isinstance(scheduler, DDIMScheduler):
        options["eta"] = sampler.keywords.get("eta", 0.0)
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t.view(1)), t, x, **options).prev_sample
    torch.testing.assert_close(ours, x, atol=2e-4, rtol=1e-4)


class Velocity(torch.nn.Module):
    """A stand-in for a UNet that predicts v; tanh keeps it from being linear."""

    def forward(self, x, t, context, fps=None):
        return torch.tanh(0.5 * x) + 0.1 * torch.sin(t / 100.0).view(-1, 1, 1, 1, 1)


def test_zero_terminal_snr_with_v_prediction_agrees_with_diffusers():
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    model = Denoiser(Velocity(), schedule, "v").guided([Condition(torch.zeros(1, 1, 1))], [1.0])
    scheduler = DDIMScheduler(
        **SCHEDULE,
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )
    scheduler.set_timesteps(25)
    x = start = noise_like((2, 4, 2, 3, 3), [0, 1])
    for t in scheduler.timesteps:
        x = scheduler.step(Velocity()(x, t.expand(2), None), t, x).prev_sample
    torch.testing.assert_close(sample_ddim(model, start, schedule, 25, spacing="trailing"), x, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])  # which is for distilled models
def test_every_sampler_crosses_zero_terminal_snr(name):
    """The best v for Gaussian data, from a timestep without signal to the clean latent."""
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)

    class Best(torch.nn.Module):
        def forward(self, x, t, context, fps=None):
            alpha, sigma = schedule.coefficients(t, x)
            spread = alpha**2 * STD**2 + sigma**2
            x0 = MEAN + alpha * STD**2 * (x - alpha * MEAN) / spread
            return alpha * sigma * (x - alpha * MEAN) / spread - sigma * x0

    model = Denoiser(Best(), schedule, "v").guided([Condition(torch.zeros(1, 1, 1))], [1.0])
    x = noise_like((1, 1, 20_000), [0])
    found = SAMPLERS[name](model, x, schedule, 250, spacing="trailing", generators=make_generators([1]))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, rel=0.05)


def test_plain_noise_models_are_refused_without_signal():
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    with pytest.raises(ConfigError) as caught:
        sample_ddim(lambda x, t: x, torch.zeros(1, 2), schedule, 5, spacing="trailing")
    assert str(caught.value) == "noise prediction cannot start from zero terminal SNR: use a v-prediction denoiser"


@pytest.mark.parametrize("sampler", [partial(sample_ddim, eta=1.0), sample_ddpm, sample_dpmpp_2m])
def test_a_seed_gives_the_same_sample_in_any_batch(sampler):
    schedule = NoiseSchedule.scaled_linear()

    def run(seeds):
        generators = make_generators(seeds)
        x = noise_like((len(seeds), 4, 3, 2, 2), seeds)
        return sampler(partial(gaussian_eps, schedule), x, schedule, steps=10, generators=generators)

    together = run([11, 12, 13])
    assert torch.equal(run([13, 11]), together[[2, 0]])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_progress_precision_and_gradients(name):
    schedule, calls = NoiseSchedule.scaled_linear(), []
    scale = torch.ones((), requires_grad=True)
    found = SAMPLERS[name](
        lambda x, t: (x * scale).bfloat16(),
        torch.ones(1, 3, dtype=torch.bfloat16),
        schedule,
        4,
        callback=lambda step, total, t, x: calls.append((step, total, t, tuple(x.shape))),
    )
    spacing = "trailing" if name == "ddpm" else "published"
    times = [999, 759, 519, 279] if name == "lcm" else schedule.sampling_timesteps(4, spacing)
    assert calls == [(step, 4, t, (1, 3)) for step, t in enumerate(times, start=1)]
    assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_impossible_eta(eta):
    with pytest.raises(ConfigError) as caught:
        sample_ddim(lambda x, t: x, torch.zeros(1, 2), NoiseSchedule.scaled_linear(), 5, eta)
    assert str(caught.value) == f"eta must be in 0..1, got {eta}"


@pytest.mark.parametrize("name", SAMPLERS)
def test_impossible_steps(name):
    with pytest.raises(ConfigError) as caught:
        SAMPLERS[name](lambda x, t: x, torch.zeros(1, 2), NoiseSchedule.scaled_linear(), 0)
    taken = "the number of sampling steps must be in 1..1000"
    taken = "the sampler 'lcm' takes 1 to 50 steps" if name == "lcm" else taken
    assert str(caught.value) == f"{taken}, got 0"


def test_one_generator_for_each_sample():
    with pytest.raises(ConfigError) as caught:
        sample_ddpm(
            lambda x, t: x, torch.zeros(3, 2), NoiseSchedule.scaled_linear(), 5, generators=make_generators([1])
        )
    assert str(caught.value) == "a batch of 3 needs 3 seeds, got 1"


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_step_goes_from_noise_to_the_clean_latent(name):
    schedule, visited = NoiseSchedule.scaled_linear(), []
    x0 = torch.tensor([[0.5, -1.0, 2.0]])

    def eps(x, t):  # the exact noise of x0
        visited.append(int(t[0]))
        alpha, sigma = (table[t].float()[:, None] for table in (schedule.alphas, schedule.sigmas))
        return (x - alpha * x0) / sigma

    found = SAMPLERS[name](eps, torch.randn(1, 3), schedule, 1)
    assert visited == [999]
    torch.testing.assert_close(found, x0, atol=1e-4, rtol=0)


def test_what_a_callback_returns_replaces_the_latents():
    schedule = NoiseSchedule.scaled_linear()
    for name in SAMPLERS:
        found = SAMPLERS[name](
            lambda x, t: x, torch.ones(1, 3), schedule, 3, callback=lambda step, total, t, x: torch.zeros_like(x)
        )
        assert torch.equal(found, torch.zeros(1, 3))


def test_every_sampler_can_be_chosen_as_an_option():
    choices = get_args(SamplerName)
    assert sorted(choices) == sorted([*SAMPLERS, "scheduler"])  # the last is that of diffusers' models


def test_a_sampler_of_ones_own_is_one_function():
    """What `VideoPipeline.sample_latents` gives it: the model's spacing, and an eta only if it asks for one."""
    seen = {}

    @SAMPLERS.register("own")
    def sample_own(eps, x_T, schedule, steps, *, generators=None, callback=None, spacing="published"):
        seen.update(steps=steps, spacing=spacing)
        return x_T - eps(x_T, torch.zeros(len(x_T), dtype=torch.int64))

    try:
        config = read_model(MODEL)
        config.diffusion = replace(config.diffusion, spacing="trailing")
        pipe = VideoPipeline(build_components(config), config)
        positive, negative = pipe.conditions(["a person walks"])
        x_T = pipe.initial_noise(make_generators([0]), num_frames=2, size=(16, 16))
        noise = pipe.sample_latents([negative, positive], [-1, 2], x_T, sampler="own", num_inference_steps=7)
        assert seen == {"steps": 7, "spacing": "trailing"} and noise.shape == x_T.shape
        with pytest.raises(ConfigError, match="eta is a setting of the sampler 'ddim', not of 'own'"):
            pipe.sample_latents([positive], [1], x_T, sampler="own", eta=0.5)
    finally:
        SAMPLERS.remove("own")
    with pytest.raises(ConfigError, match="unknown sampler 'own': choose from ddim, ddpm, dpmpp_2m"):
        pipe.sample_latents([positive], [1], x_T, sampler="own")
