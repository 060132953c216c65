"""Losses and gradients of Algorithm 1 on tiny models, as they were when they were first recorded.

What a training step computes is a pure function of the sample's number and the weights. These numbers hold the order
of random draws, what is encoded with what, and every factor of the loss; they change only with what a run learns.
"""

import pytest
import torch

import aicl.tasks  # noqa: F401 (makes the tasks known)
from tests.aicl.test_training import aicl_config, build, save_base
from tests.aicl.tiny_models import randomise
from tests.lvdm.training_runs import ROOT, make_clips

MODEL = str(ROOT / "configs/models/tiny_lvdm.yaml")  # of which the losses were recorded

VIDEOCRAFTER, IMAGE_TO_VIDEO = (str(ROOT / f"configs/models/tiny_videocrafter{kind}.yaml") for kind in ("", "_i2v"))
TIMESTEPS = {"timesteps_per_sample": 2, "timesteps": "sqrt"}

# model, sections of the config, losses of two samples, norm of the gradient
RECORDED = {
    "one reference": (MODEL, {}, [2.7190228, 2.8865235], 1.0784832),
    "several, some left out": (
        MODEL,
        {"references": 3, "reference_dropout": 0.5},
        [2.7223334, 2.8859866],
        1.0750221,
    ),
    "several timesteps": (MODEL, {"references": 2, "training": TIMESTEPS}, [2.8340762, 2.9126093], 1.1011112),
    "noise of the device": (MODEL, {"training": {"noise": "device"}}, [2.8072953, 2.8415980], 1.0799190),
    "VideoCrafter, activations recomputed": (
        VIDEOCRAFTER,
        {"training": {"gradient_checkpointing": True}},
        [2.2731905, 2.3762920],
        0.27857724,
    ),
    "image to video": (IMAGE_TO_VIDEO, {}, [2.7275527, 2.8035820], 0.36715332),
}


@pytest.mark.parametrize("case", RECORDED)
def test_losses_are_those_that_were_recorded(tmp_path, case):
    model, sections, losses, norm = RECORDED[case]
    make_clips(tmp_path / "clips")
    save_base(model, tmp_path / "base")
    data = {"clip": {"num_frames": 4, "size": [32, 32], "fps": 8}}
    module, loader = build(aicl_config(tmp_path, **sections, data=data))
    randomise(module.trained, seed=0)  # what reads the references starts at zero
    found = module.losses(next(iter(loader.train_dataloader())))
    torch.testing.assert_close(found, torch.tensor(losses), rtol=2e-5, atol=0)
    found.mean().backward()
    gradient = torch.stack([p.grad.norm() for p in module.trained.parameters()]).norm()
    torch.testing.assert_close(gradient, torch.tensor(norm), rtol=2e-4, atol=0)
