"""Diffusion: the forward process, the denoiser around a UNet, and samplers."""

from lvdm.diffusion.denoiser import Condition, Denoiser, Guided
from lvdm.diffusion.noise import draw_noise, make_generators, noise_like
from lvdm.diffusion.samplers import SAMPLERS, sample_ddim, sample_ddpm, sample_dpmpp_2m, sample_lcm
from lvdm.diffusion.schedule import DiffusionConfig, FlowSchedule, NoiseSchedule, timesteps_from_uniform

__all__ = [
    "SAMPLERS",
    "Condition",
    "Denoiser",
    "DiffusionConfig",
    "FlowSchedule",
    "Guided",
    "NoiseSchedule",
    "draw_noise",
    "make_generators",
    "noise_like",
    "sample_ddim",
    "sample_ddpm",
    "sample_dpmpp_2m",
    "sample_lcm",
    "timesteps_from_uniform",
]
