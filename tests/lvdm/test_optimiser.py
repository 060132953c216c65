"""What a step of the optimiser does to a parameter: AdamW by its definition, clipping, accumulation, the rate."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lvdm import config as configs
from lvdm.training import TrainingModule, TrainingSettings
from lvdm.training.optim import build_optimizer
from lvdm.training.run import build_trainer
from lvdm.training.strategy import build_strategy

SETTINGS = {"steps": 1, "batch_size": 2, "accelerator": "cpu", "precision": "float32", "weight_decay": 0.0, "lr": 0.1}


def settings(**changes) -> TrainingSettings:
    return configs.from_mapping(TrainingSettings, SETTINGS | changes, where="training")


def test_the_optimiser_is_adam_with_decoupled_decay():
    lr, first, second, decay, eps = 0.05, 0.8, 0.9, 0.2, 1e-8
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = build_optimizer(
        [parameter], settings(lr=lr, betas=[first, second], weight_decay=decay), parameter.device
    )
    value, m, v = parameter.detach().clone(), torch.zeros(2), torch.zeros(2)
    for step, gradient in enumerate(torch.tensor([[0.5, 1e-3], [-1.0, 2e-3], [0.0, 0.0]]), start=1):
        parameter.grad = gradient.clone()
        optimiser.step()
        m, v = first * m + (1 - first) * gradient, second * v + (1 - second) * gradient**2
        value = value - lr * decay * value
        value = value - lr * (m / (1 - first**step)) / ((v / (1 - second**step)).sqrt() + eps)
        torch.testing.assert_close(parameter.detach(), value)


def test_the_optimiser_leaves_frozen_parameters_out():
    trained, frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    optimiser = build_optimizer([trained, frozen], settings(), trained.device)
    assert [id(p) for group in optimiser.param_groups for p in group["params"]] == [id(trained)]


class Line(TrainingModule):
    """A loss with a known gradient: that of parameter i is the mean of slopes[i] * batch["x"]."""

    def __init__(self, options: TrainingSettings, slopes: list[float]) -> None:
        super().__init__(options, {"line": nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in slopes)})
        self.slopes = slopes

    def losses(self, batch):
        return sum(slope * p for slope, p in zip(self.slopes, self.trained["line"])) * batch["x"]


def moved(slopes: list[float], x: list[float], **changes) -> list[float]:
    """Where the parameters are after training from zero on samples x."""
    options = settings(**changes)
    module = Line(options, slopes)
    samples = [{"x": value, "number": i, "noise_seed": i} for i, value in enumerate(x)]
    strategy = build_strategy(options)
    trainer = build_trainer(options, strategy, logger=False)
    trainer.fit(module, DataLoader(samples, batch_size=options.micro_batch))
    return [p.item() for p in module.trained["line"]]


# Adam's first step is rate * g / (|g| + 1e-8): of the size of the rate, unless a gradient is as small as 1e-8.
def first_step(*gradients: float, lr: float = 0.1) -> list[float]:
    return [pytest.approx(-lr * g / (abs(g) + 1e-8), rel=1e-4) for g in gradients]


def test_the_norm_of_all_gradients_is_clipped():
    assert moved([3.0, 4.0], [1.0, 1.0], max_grad_norm=None) == first_step(3.0, 4.0)
    assert moved([3.0, 4.0], [1.0, 1.0], max_grad_norm=1e-8) == first_step(0.6e-8, 0.8e-8)
    assert moved([3e-9, 4e-9], [1.0, 1.0], max_grad_norm=1.0) == first_step(3e-9, 4e-9)  # which is below the limit


def test_clipping_is_on_by_default():
    assert settings().max_grad_norm == 1.0


def test_accumulated_gradients_are_averaged_like_those_of_one_batch():
    together = moved([1e-8], [1.0, 2.0, 3.0, 6.0], batch_size=4, max_grad_norm=None)
    apart = moved([1e-8], [1.0, 2.0, 3.0, 6.0], batch_size=4, gradient_accumulation_steps=2, max_grad_norm=None)
    assert together == apart == first_step(3e-8)


def test_a_step_takes_the_rate_of_the_schedule():
    assert moved([1.0], [1.0, 1.0], warmup_steps=4) == first_step(1.0, lr=0.1 / 5)


def test_trainers_of_every_strategy_clip_and_accumulate():
    options = settings(max_grad_norm=0.7, gradient_accumulation_steps=2, batch_size=4)
    trainer = build_trainer(options, build_strategy(options), logger=False)
    assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (0.7, 2)
    assert isinstance(trainer, pl.Trainer) and trainer.gradient_clip_algorithm in (None, "norm")
