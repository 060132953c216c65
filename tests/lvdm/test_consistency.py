"""Few steps: the consistency sampler, UNets that are told the strength of guidance, and T2V-Turbo v2's layout."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from aicl.guidance import branches as guidance_branches
from aicl.reference_context import ReferenceContext
from lvdm.checkpoints import convert_checkpoint, family_of, load_pipeline
from lvdm.diffusion import Condition, NoiseSchedule, make_generators, sample_lcm
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.components import build_components
from lvdm.pipeline import VideoPipeline
from tests.lvdm.published import model_config, tiny_checkpoint
from tests.lvdm.test_unets import run, small

EMBEDDED = {"fps_cond": True, "temporal_conv": True, "time_cond_proj_dim": 8, "motion_cond_proj_dim": 8}


def schedule():
    return NoiseSchedule(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)


@pytest.mark.parametrize(("steps", "visited"), [(1, [999]), (4, [999, 759, 519, 279]), (3, [999, 679, 359])])
def test_consistency_sampling_visits_the_levels_of_the_distillation(steps, visited):
    noise, clean, found = schedule(), torch.full((1, 1, 1, 2, 2), 3.0), []

    def exact(x, t):
        found.append(int(t[0]))
        alpha, sigma = noise.coefficients(t, x)
        return (x - alpha * clean) / sigma

    x_T = torch.randn(1, 1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample_lcm(exact, x_T, noise, steps), clean, atol=1e-4, rtol=0)
    assert found == visited


def test_a_step_of_consistency_sampling_is_that_of_algorithm_3():
    """Luo et al. 2023, with the boundary condition of section 4.1 (sigma_data 0.5, timesteps times 10)."""
    noise, (theirs,), ours = schedule(), make_generators([7]), make_generators([7])
    x = torch.full((1, 1, 1, 2, 2), 2.0, dtype=torch.float64)
    found = sample_lcm(lambda x, t: 0.5 * x, x, noise, 50, generators=ours)
    for t in range(999, 0, -20):
        x0 = (x - noise.sigmas[t] * 0.5 * x) / noise.alphas[t]
        skip, out = 0.25 / ((10 * t) ** 2 + 0.25), 10 * t / math.sqrt((10 * t) ** 2 + 0.25)
        x = skip * x + out * x0
        if t > 19:
            drawn = torch.randn(x.shape[1:], generator=theirs, dtype=torch.float64)
            x = noise.alphas[t - 20] * x + noise.sigmas[t - 20] * drawn
    torch.testing.assert_close(found, x, rtol=1e-10, atol=0)


def test_consistency_sampling_takes_its_noise_from_the_generators():
    def half(x, t):
        return 0.5 * x

    def sample(seed):
        return sample_lcm(half, torch.ones(1, 1, 1, 2, 2), schedule(), 4, generators=make_generators([seed]))

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
    with pytest.raises(ConfigError, match="takes 1 to 50 steps, got 51"):
        sample_lcm(half, torch.ones(1, 1, 1, 2, 2), schedule(), 51)


@torch.no_grad()
def test_the_strength_of_guidance_is_a_condition():
    plain, unet = small("videocrafter", fps_cond=True, temporal_conv=True), small("videocrafter", **EMBEDDED)
    assert not plain.embeds_guidance and unet.embeds_guidance
    added = unet.state_dict().keys() - plain.state_dict().keys()
    assert added == {"time_cond_proj.weight", "motion_cond_proj.weight", "combine_proj.weight"}
    unet.embed_guidance(7.5)
    before = run(unet)
    unet.embed_guidance(3.0)
    assert (run(unet) - before).abs().max() > 1e-4

    scale, motion, width = 3.0, 0.05, unet.params.model_channels
    rates = [math.exp(-i * math.log(10_000) / 3) for i in range(4)]

    def features(value):
        angles = [1000 * value * rate for rate in rates]
        return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])

    for timestep, strength in ((10, 0.0), (700, motion)):
        told = features(scale) @ unet.time_cond_proj.weight.T
        moved = features(strength) @ unet.motion_cond_proj.weight.T
        expected = torch.cat([told, moved]) @ unet.combine_proj.weight.T
        found = unet._guidance(torch.tensor([timestep]), unet.time_cond_proj)
        assert found.shape == (1, width)
        torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)


def test_references_of_a_distilled_model_have_a_strength_of_their_own():
    negative, positive = (Condition(torch.zeros(1, 1, 1)) for _ in range(2))
    context = ReferenceContext(torch.zeros(1, 2, 4, 1, 1), (2,))
    assert guidance_branches(negative, positive, None, 7.5, None, embedded=True) == ([positive], [1.0])
    [read], [weight] = guidance_branches(negative, positive, context, 7.5, None, embedded=True)
    assert read.extras == {"references": context} and weight == 1.0
    branches, weights = guidance_branches(negative, positive, context, 7.5, 3.0, embedded=True)
    assert branches[0] is positive and branches[1].extras == {"references": context} and weights == [-2.0, 3.0]


def test_the_motion_prior_needs_the_guidance():
    with pytest.raises(ConfigError, match="motion_cond_proj_dim needs time_cond_proj_dim"):
        small("videocrafter", motion_cond_proj_dim=8)


def test_lcm_on_a_model_that_was_not_distilled_for_it_is_said_once():
    config = model_config("tiny_lvdm")
    pipe = VideoPipeline(build_components(config).eval(), config)
    small = {"num_inference_steps": 1, "height": 16, "width": 16, "num_frames": 1, "progress": False}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        pipe("a dog runs", **small)
        pipe("a dog runs", sampler="lcm", **small)
        pipe("a cat runs", sampler="lcm", **small)
        pipe.config = replace(config, defaults=replace(config.defaults, sampler="lcm"))
        pipe("a dog runs", **small)
    [warning] = found
    assert str(warning.message) == (
        "the sampler 'lcm' is for models that were distilled for it, such as T2V-Turbo, and nothing says that this one "
        "was: expect bad videos, or leave it out, which takes 'ddim'"
    )


def test_a_published_unet_alone_is_converted_with_the_other_parts_of_its_teacher(tmp_path):
    teacher, config = tiny_checkpoint("videocrafter2_t2v_512")
    save_file({name: tensor.contiguous() for name, tensor in teacher.items()}, tmp_path / "teacher.safetensors")
    convert_checkpoint(tmp_path / "teacher.safetensors", tmp_path / "teacher", config)
    prefix, width = "model.diffusion_model.", config.unet["model_channels"]
    student = {name.removeprefix(prefix): 2 * x for name, x in teacher.items() if name.startswith(prefix)}
    student |= {"time_cond_proj.weight": torch.randn(width, 8), "motion_cond_proj.weight": torch.randn(width, 8)}
    student["combine_proj.weight"] = torch.randn(width, 2 * width)
    save_file({name: tensor.contiguous() for name, tensor in student.items()}, tmp_path / "unet.safetensors")
    config.unet |= {"time_cond_proj_dim": 8, "motion_cond_proj_dim": 8}
    assert family_of(tmp_path / "unet.safetensors").config == "t2v_turbo_v2"
    with pytest.raises(CheckpointError, match="autoencoder, text_encoder"):
        convert_checkpoint(tmp_path / "unet.safetensors", tmp_path / "model", config)
    convert_checkpoint(tmp_path / "unet.safetensors", tmp_path / "model", config, rest=tmp_path / "teacher")
    pipe = load_pipeline(tmp_path / "model")
    unet = pipe.components.unet
    assert torch.equal(unet.combine_proj.weight, student["combine_proj.weight"])
    assert torch.equal(unet.time_embed[0].weight, student["time_embed.0.weight"])
    options = {"num_inference_steps": 2, "sampler": "lcm", "progress": False}
    with warnings.catch_warnings(action="error"):  # its guidance tells that it was distilled
        videos = [pipe("a dog runs", guidance_scale=scale, **options) for scale in (2.0, 8.0)]
    assert not torch.equal(*videos)


def test_the_shipped_config_is_the_teachers_with_three_more_projections():
    from lvdm.checkpoints import read_model

    assert read_model("models/t2v_turbo_v2").defaults.sampler == "lcm"
    teacher, student = (
        build_components(read_model(f"models/{name}"), ["unet"], init="meta").unet.state_dict()
        for name in ("videocrafter2_t2v_512", "t2v_turbo_v2")
    )
    assert student.keys() - teacher.keys() == {
        "time_cond_proj.weight",
        "motion_cond_proj.weight",
        "combine_proj.weight",
    }
    assert tuple(student["combine_proj.weight"].shape) == (320, 640)
    assert all(student[name].shape == tensor.shape for name, tensor in teacher.items())
