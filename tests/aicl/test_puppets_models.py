"""Every small base model of the puppet world is built from its config and takes a training step, also with AICL."""

from pathlib import Path

import pytest
import torch

import aicl.tasks  # noqa: F401 (makes the tasks known)
from aicl.puppets.data import FPS
from lvdm import config as configs
from lvdm.training import Recipe, RunSettings, TrainingSettings, build_task
from lvdm.training.tasks import config_schema
from tests.aicl.tiny_models import randomise

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = ["training.batch_size=2", "training.compile=false", "training.cuda_graphs=false", "training.precision=float32",
       "training.accelerator=cpu", "data.workers=0", "data.programs=8", "data.frames=2"]  # fmt: skip
RANDOM = ["model.autoencoder=null", "model.init_from=null", "model.init_what_fits=false"]
MODELS = ["vc1", "vc2", "i2v", "128_16", "hard"]


def first_loss(file, *overrides, batches=None):
    """The loss of each sample of the first batch, which goes to the list `batches`, and the module."""
    config = configs.load(CONFIGS / "puppets" / file, [*CPU, *overrides], config_schema())
    run = configs.from_mapping(RunSettings, config["run"])
    training = configs.from_mapping(TrainingSettings, config["training"])
    sections = {name: section for name, section in config.items() if name not in ("run", "training", "logging")}
    torch.manual_seed(0)
    module, data = build_task(Recipe(run, training, sections))
    module.trained.train()
    randomise(module.trained, seed=0)  # what starts at zero would hide what goes in
    batch = data.prepare(next(iter(data.train_dataloader())))
    if batches is not None:
        batches.append(batch)
    return module.losses(batch), module


@pytest.mark.parametrize("name", MODELS)
def test_base_model_takes_a_step(name):
    losses, module = first_loss(f"base_{name}.yaml", *RANDOM)
    losses.mean().backward()
    assert losses.shape == (2,) and losses.isfinite().all()
    without = {part for part, net in module.trained.items() if all(p.grad is None for p in net.parameters())}
    assert not without and ("image_encoder" in module.trained) == (name == "i2v")


@pytest.mark.parametrize(("name", "count"), [("guarded", 1), ("partial", 2)])
def test_references_that_mislead_or_tell_a_part_take_a_step(name, count):
    model = str(CONFIGS / "models/puppets.yaml")
    batches = []
    changes = ["training.batch_size=6", "data.program_share=0", "data.names.made_up=0"]  # most have a known name
    losses, module = first_loss(
        f"self_pairs_{name}.yaml", "base.path=null", f"base.config={model}", *changes, batches=batches
    )
    losses.mean().backward()
    assert losses.isfinite().all() and all(p.grad is not None for p in module.trained.parameters())
    [drawn] = batches
    pairs = module.pairs(drawn)
    assert pairs["references"].shape[:2] == (6, count)
    if name == "guarded":
        wrong = [any(row) for row in drawn["reference_wrong"]]
        assert any(wrong) and not all(wrong)
        own = [text == caption for [text], caption in zip(pairs["reference_captions"], pairs["caption"], strict=True)]
        assert not any(mine for mine, other in zip(own, wrong, strict=True) if other)
    else:  # frames that are blank, or pictures of which one half is
        spread = pairs["references"].std(2)
        assert (spread.flatten(2).amin(2) < 1e-4).any()


def test_the_probes_captions_tell_of_others_than_its_references_show():
    batches, model = [], str(CONFIGS / "models/puppets.yaml")
    overrides = ["base.path=null", f"base.config={model}", "training.motion_weight=0.5"]
    losses, module = first_loss("self_pairs_probe.yaml", *overrides, batches=batches)
    losses.mean().backward()
    assert losses.isfinite().all() and all(p.grad is not None for p in module.trained.parameters())
    [drawn] = batches
    pairs = module.pairs(drawn)
    assert pairs["references"].shape[:2] == (2, 2) and pairs["reference_captions"] == drawn["reference_captions"]
    assert any(text != caption for row, caption in zip(pairs["reference_captions"], pairs["caption"]) for text in row)
    assert not torch.allclose(pairs["references"], drawn["references"], atol=0.1)


@pytest.mark.parametrize("name", ["i2v", "128_16"])
def test_aicl_takes_a_step_on_it(name):
    model = str(CONFIGS / "models" / f"puppets_{name}.yaml")
    losses, module = first_loss(f"self_pairs_{name}.yaml", "base.path=null", f"base.config={model}")
    losses.mean().backward()
    assert losses.isfinite().all() and all(p.grad is not None for p in module.trained.parameters())


def test_an_image_to_video_model_is_trained_on_first_frames_and_on_none():
    """A dropped caption takes the first frame with it: that is the unconditional branch of the pipeline."""
    losses, module = first_loss("base_i2v.yaml", *RANDOM, "training.caption_dropout=1.0")
    with torch.no_grad():
        frames = torch.rand(2, 3, 2, 64, 64) * 2 - 1
        batch = {"caption": ["a person waves"] * 2, "frames": frames, "noise_seed": torch.tensor([1, 2])}
        dropped = module._context(batch, module.randomness(batch))
        module.settings.caption_dropout = 0.0
        kept = module._context(batch, module.randomness(batch))
        _, unconditional = module.pipeline.conditions(
            ["a person waves"], torch.zeros(8, 8, 3, dtype=torch.uint8), size=(64, 64)
        )
    assert kept.shape == dropped.shape == (2, 77 + 16, 256)
    torch.testing.assert_close(dropped[0], unconditional.context[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(kept[0, 77:], kept[1, 77:], atol=1e-3)
    assert losses.isfinite().all() and module.pipeline.config.defaults.fps == FPS
