"""One training step of a tiny AICL model, its gradients written to a file: run by test_zero2_gradients.

    python tests/gpu/gradients.py OUT.safetensors key=value ...

Runs by itself because Lightning starts the processes of the other devices by running the same command again.
"""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

import aicl.tasks  # noqa: F401 (makes the tasks known)
from lvdm import config as configs
from lvdm.training import Recipe, RunSettings, TrainingSettings, build_task
from lvdm.training.strategy import build_strategy
from tests.aicl.tiny_models import randomise

CONFIG = Path(__file__).with_name("gradients.yaml")


class SaveGradients(pl.Callback):
    """Collects the full gradients just before the optimiser's step; with ZeRO they are spread over the devices."""

    def __init__(self, path: str):
        self.path = path

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        gradient = lambda parameter: parameter.grad  # noqa: E731
        if module.settings.uses_deepspeed:
            from deepspeed.utils import safe_get_full_grad as gradient
        gradients = {name: gradient(parameter) for name, parameter in module.trained.named_parameters()}
        if trainer.is_global_zero:
            save_file({name: value.float().cpu().contiguous() for name, value in gradients.items()}, self.path)


def main(out: str, overrides: list[str]) -> None:
    config = configs.load(CONFIG, overrides)
    run = configs.from_mapping(RunSettings, config.pop("run"))
    settings = configs.from_mapping(TrainingSettings, config.pop("training"))
    torch.manual_seed(run.seed)
    module, data = build_task(Recipe(run, settings, config))
    randomise(module.pipeline.components.unet, seed=1)  # fresh UNets and integrations end in zeros: no gradients
    randomise(module.trained, seed=2)
    trainer = pl.Trainer(
        **build_strategy(settings),
        max_steps=1,
        accumulate_grad_batches=settings.gradient_accumulation_steps,
        callbacks=[SaveGradients(out)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data)


if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    main(sys.argv[1], sys.argv[2:])
