"""The forward process: published betas, rescaling, zero terminal SNR, timesteps of sampling and training."""

import numpy as np
import pytest
import torch

from lvdm.config import from_mapping
from lvdm.diffusion import DiffusionConfig, NoiseSchedule, timesteps_from_uniform
from lvdm.errors import ConfigError


@pytest.fixture(scope="module")
def published():
    return NoiseSchedule.scaled_linear(0.00085, 0.012, 1000, rescale_to=None, rescale_steps=400)


@pytest.fixture(scope="module")
def rescaled():
    return NoiseSchedule.scaled_linear(0.00085, 0.012, 1000, rescale_to=0.7, rescale_steps=400)


@pytest.fixture
def latents():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 5, 5, 5, generator=generator).unbind(0)


def test_scaled_linear_betas_are_linear_in_the_root(published):
    root = published.betas.sqrt()
    assert published.betas.dtype == torch.float64 and len(published) == 1000
    torch.testing.assert_close(published.betas[[0, -1]], torch.tensor([0.00085, 0.012], dtype=torch.float64))
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(999))
    # sqrt(alpha-bar) of the last timestep, known from Lin et al. 2024 as the flaw of Stable Diffusion's schedule
    assert published.alphas[-1].item() == pytest.approx(0.068265, abs=1e-6)
    assert published.scale_arr.eq(1).all()


def test_linear_betas():
    schedule = NoiseSchedule.linear(1e-4, 0.02, 1000)
    assert np.allclose(schedule.betas, np.linspace(1e-4, 0.02, 1000), rtol=0, atol=1e-15)
    assert schedule.alphas_cumprod[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_rescaling_falls_linearly_then_stays(rescaled, published):
    assert np.allclose(rescaled.scale_arr[:400], np.linspace(1, 0.7, 400)) and rescaled.scale_arr[400:].eq(0.7).all()
    torch.testing.assert_close(rescaled.alphas, published.alphas * rescaled.scale_arr)
    torch.testing.assert_close(rescaled.sigmas, published.sigmas)


def test_zero_terminal_snr_ends_without_signal_and_starts_where_it_did(published):
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    assert schedule.zero_terminal_snr and not published.zero_terminal_snr
    assert schedule.alphas[-1] == 0 and schedule.sigmas[-1] == 1
    assert schedule.alphas[0].item() == pytest.approx(published.alphas[0].item(), abs=1e-12)
    # shifted and stretched: an affine map of the original
    slope = schedule.alphas.diff() / published.alphas.diff()
    torch.testing.assert_close(slope, slope[:1].expand(999), rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", [{}, {"rescale_to": 0.7}, {"zero_terminal_snr": True}])
def test_noising_and_velocity_invert_exactly(options, latents):
    schedule = NoiseSchedule.scaled_linear(**options)
    x0, noise = latents
    t = torch.tensor([0, 400, 999])
    x, v = schedule.add_noise(x0, noise, t), schedule.velocity(x0, noise, t)
    expected = torch.stack([schedule.alphas[i] * a + schedule.sigmas[i] * b for i, a, b in zip(t, x0, noise)])
    torch.testing.assert_close(x, expected.float())
    for found, wanted in zip(schedule.solve(x, v, t, "v"), (x0, noise)):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(schedule.solve(x[:2], noise[:2], t[:2], "eps")[0], x0[:2], atol=2e-5, rtol=1e-5)


def test_half_precision_latents_are_noised_in_float32(published, latents):
    x0, noise = (x.bfloat16() for x in latents)
    t = torch.tensor([1, 500, 999])
    found = published.add_noise(x0, noise, t)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, published.add_noise(x0.float(), noise.float(), t))


def test_published_timesteps():
    schedule = NoiseSchedule.scaled_linear()
    assert schedule.sampling_timesteps(50) == list(range(981, 0, -20))
    assert len(schedule.sampling_timesteps(64)) == 67  # 1000 // 64 = 15 apart
    assert schedule.sampling_timesteps(1) == [1]
    # the rule reaches timestep 1000 here, one past the end
    assert schedule.sampling_timesteps(3) == [999, 667, 334, 1]
    assert schedule.sampling_timesteps(1000) == list(range(999, 0, -1))


def test_trailing_timesteps_start_at_the_noisiest():
    schedule = NoiseSchedule.scaled_linear()
    assert schedule.sampling_timesteps(5, "trailing") == [999, 799, 599, 399, 199]
    assert schedule.sampling_timesteps(1000, "trailing") == list(range(999, -1, -1))
    for steps in (1, 3, 7, 64, 999):
        found = schedule.sampling_timesteps(steps, "trailing")
        assert found == (np.round(1000 - np.arange(steps) * 1000 / steps).astype(int) - 1).tolist()


def test_training_timesteps_are_pure_functions_of_u():
    u = torch.tensor([0.0, 0.25, 0.5, 0.81, 1 - 2**-24])
    assert timesteps_from_uniform(u, 1000, "uniform").tolist() == [0, 250, 500, 810, 999]
    assert timesteps_from_uniform(u, 1000, "sqrt").tolist() == [0, 500, 707, 900, 999]
    assert timesteps_from_uniform(u, 1000).dtype == torch.int64
    # P(t < T/2) = 1/4 under the square root
    grid = (torch.arange(4000) + 0.5) / 4000
    assert (timesteps_from_uniform(grid, 1000, "sqrt") < 500).float().mean().item() == pytest.approx(0.25, abs=1e-3)


def test_settings_build_the_schedule():
    settings = from_mapping(DiffusionConfig, {"rescale_to": 0.7, "beta_end": 0.0195, "num_timesteps": 500})
    schedule = settings.build_schedule()
    assert len(schedule) == 500 and schedule.scale_arr[-1] == 0.7
    assert schedule.betas[-1].item() == pytest.approx(0.0195)
    linear = DiffusionConfig(schedule="linear", zero_terminal_snr=True, prediction="v").build_schedule()
    assert linear.zero_terminal_snr


def test_settings_left_alone_are_those_of_the_published_models(published):
    settings = DiffusionConfig()
    assert (settings.prediction, settings.spacing) == ("eps", "published")
    for schedule in (settings.build_schedule(), NoiseSchedule.scaled_linear()):
        assert torch.equal(schedule.betas, published.betas) and torch.equal(schedule.scale_arr, published.scale_arr)


def test_rescaling_takes_400_timesteps_by_default_and_may_take_one(published):
    scale = NoiseSchedule(published.betas, rescale_to=0.5).scale_arr
    assert np.allclose(scale[:400], np.linspace(1, 0.5, 400)) and (scale[399:] == 0.5).all() and scale[398] > 0.5
    assert (NoiseSchedule(published.betas, rescale_to=0.5, rescale_steps=1).scale_arr[1:] == 0.5).all()


def test_the_name_of_a_schedule_says_how_its_betas_run():
    sizes = {"beta_start": 1e-4, "beta_end": 0.02, "num_timesteps": 1000, "rescale_to": 0.5, "rescale_steps": 1000}
    built = {name: DiffusionConfig(schedule=name, **sizes).build_schedule() for name in ("linear", "scaled_linear")}
    assert np.allclose(built["linear"].betas, np.linspace(1e-4, 0.02, 1000), rtol=0, atol=1e-15)
    assert np.allclose(built["scaled_linear"].betas, np.linspace(0.01, 0.02**0.5, 1000) ** 2, rtol=0, atol=1e-15)
    for schedule in built.values():  # the whole chain may be rescaled
        assert np.allclose(schedule.scale_arr, np.linspace(1, 0.5, 1000))
    assert torch.equal(NoiseSchedule.linear().betas, NoiseSchedule.linear(1e-4, 0.02, 1000).betas)


def test_moving_keeps_the_tables_and_is_remembered(published):
    assert published.to("cpu") is published
    meta = published.to("meta")
    assert meta is published.to("meta") and len(meta) == 1000
    assert {table.device.type for table in (meta.betas, meta.alphas, meta.sigmas, meta.scale_arr)} == {"meta"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.sampling_timesteps(0), "the number of sampling steps must be in 1..1000, got 0"),
        (lambda s: s.sampling_timesteps(1001), "the number of sampling steps must be in 1..1000, got 1001"),
        (lambda s: s.sampling_timesteps(5, "even"), "spacing must be 'published' or 'trailing', got 'even'"),
        (
            lambda s: NoiseSchedule(s.betas, rescale_to=0.7, rescale_steps=1001),
            "rescale_to must be above 0 and rescale_steps in 1..1000, got 0.7 and 1001",
        ),
        (lambda s: NoiseSchedule(-s.betas), "betas must be a list of numbers above 0 and at most 1"),
        (lambda s: NoiseSchedule(0 * s.betas), "betas must be a list of numbers above 0 and at most 1"),
        (
            lambda s: timesteps_from_uniform(s.betas, 1000, "cosine"),
            "timesteps must be drawn by 'uniform' or 'sqrt', got 'cosine'",
        ),
    ],
)
def test_errors(published, call, message):
    with pytest.raises(ConfigError) as caught:
        call(published)
    assert str(caught.value) == message
