"""Optimiser and learning rate. The rate is a pure function of the step, so resuming needs no scheduler state."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from lvdm.errors import ConfigError
from lvdm.training.settings import TrainingSettings


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: TrainingSettings, device: torch.device
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay: DeepSpeed's CPU Adam where ZeRO offloads, else PyTorch's, fused where possible.

    Raises ConfigError where DeepSpeed's operator cannot be compiled.
    """
    lr, (beta1, beta2), weight_decay = settings.lr, settings.betas, settings.weight_decay
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if settings.strategy == "deepspeed_zero2_offload":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        try:
            return DeepSpeedCPUAdam(parameters, adamw_mode=True, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay)
        except Exception as error:  # compiling fails in many ways: no compiler, no ninja, another version of CUDA
            raise ConfigError(
                f"DeepSpeed could not compile its CPU Adam ({str(error).splitlines()[0]}): install a C++ compiler "
                "and ninja, or set training.strategy to deepspeed_zero2 or single"
            ) from error
    # Fused kernels unscale gradients themselves, which Lightning forbids together with clipping under float16.
    fused = device.type == "cuda" and not settings.uses_deepspeed and settings.precision != "float16"
    return torch.optim.AdamW(parameters, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=fused)


def learning_rate(settings: TrainingSettings, step: int, progress: float) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant or a cosine over `progress` in [0, 1]."""
    rate = settings.lr
    if settings.schedule == "cosine":
        wave = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        rate *= settings.min_lr_ratio + (1 - settings.min_lr_ratio) * wave
    return rate * min(1.0, (step + 1) / (settings.warmup_steps + 1))
