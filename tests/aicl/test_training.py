"""Training AICL on a tiny frozen base model: what learns, what stays, and exact resuming after a crash."""

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import aicl.tasks  # noqa: F401 (makes the tasks known)
from aicl.adapter import read_adapter
from aicl.reference_context import ReferenceContext
from aicl.training_task import AICLSections
from lvdm import config as configs
from lvdm.checkpoints import read_model, save_pipeline
from lvdm.data import ClipCache, ClipConfig, ClipDataset, cache_settings
from lvdm.data.caching import encoder_settings, load_encoders
from lvdm.diffusion import Condition, timesteps_from_uniform
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.components import build_components
from lvdm.training import Recipe, RunSettings, TrainingSettings, build_task, config_schema, train
from lvdm.training.checkpoints import list_checkpoints
from lvdm.training.randomness import BatchRandomness
from tests import processes
from tests.aicl.tiny_models import randomise
from tests.lvdm.training_runs import MODEL, ROOT, losses, make_clips, save_config, tiny_config

PRISM = {"width": 16, "depth": 1, "heads": 2, "head_dim": 8, "text_width": 16}


def aicl_config(tmp_path, **sections):
    sections["prism"] = PRISM | sections.get("prism", {})
    sections["integration"] = {"head_dim": 16} | sections.get("integration", {})
    return tiny_config(tmp_path, "aicl", **{"base": {"path": str(tmp_path / "base")}, "references": 1, **sections})


@pytest.fixture
def clips(tmp_path):
    """Clips, and beside them a base model. A fresh UNet would end in zeros, through which no gradient flows."""
    save_base(MODEL, tmp_path / "base")
    return make_clips(tmp_path / "clips")


def save_base(model, folder, seed=0):
    config = read_model(model)
    torch.manual_seed(0)
    components = build_components(config)
    randomise(components.unet, seed=seed)
    save_pipeline(components, config, folder)


def build(config):
    run = configs.from_mapping(RunSettings, config["run"])
    training = configs.from_mapping(TrainingSettings, config["training"])
    sections = {name: section for name, section in config.items() if name not in ("run", "training", "logging")}
    torch.manual_seed(0)
    return build_task(Recipe(run, training, sections))


def loss_of(module, data):
    batch = next(iter(data.train_dataloader()))
    return module.losses(batch).mean()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trained_parameter_gets_a_gradient_by_the_second_step_and_nothing_else_does(
    tmp_path, clips, checkpointing
):
    module, data = build(aicl_config(tmp_path, references=2, training={"gradient_checkpointing": checkpointing}))
    base = {name: p.clone() for name, p in module.pipeline.components.unet.named_parameters()}
    optimizer = torch.optim.SGD(module.trained.parameters(), lr=1.0)
    loss_of(module, data).backward()
    optimizer.step()
    optimizer.zero_grad()
    loss_of(module, data).backward()
    without = [name for name, p in module.trained.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    for part in module.pipeline.components.modules().values():
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    assert all(torch.equal(p, base[name]) for name, p in module.pipeline.components.unet.named_parameters())


def test_recomputing_activations_gives_the_same_gradients(tmp_path, clips):
    gradients = []
    for checkpointing in (False, True):
        module, data = build(aicl_config(tmp_path, training={"gradient_checkpointing": checkpointing}))
        assert module.trained["prism"].config.use_checkpoint is checkpointing
        loss_of(module, data).backward()
        gradients.append([p.grad for p in module.trained.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-7)


def test_references_left_out_are_as_if_they_had_never_been_shown(tmp_path, clips):
    module, data = build(aicl_config(tmp_path, references=2, reference_dropout=0.5))
    randomise(module.trained, seed=0)  # what reads the references starts at zero
    batch = next(iter(data.train_dataloader()))
    losses = {}
    for share in (0.0, 1.0):
        module.reference_dropout = share
        losses[share] = module.losses(batch)
    assert not torch.allclose(losses[0.0], losses[1.0], rtol=1e-5)
    module.reference_dropout = 0.0
    for name in ("references", "reference_captions"):
        batch[name] = [row[:1] for row in batch[name]] if name == "reference_captions" else batch[name][:, :1]
    torch.testing.assert_close(module.losses(batch), losses[1.0], rtol=1e-5, atol=0)  # rounding, of other shapes


def test_the_first_reference_of_a_sample_is_never_left_out(tmp_path, clips):
    module, _ = build(aicl_config(tmp_path, references=3, reference_dropout=0.3))
    weights = module._weights(torch.empty(2000, 3), BatchRandomness(range(2000), "cpu"))
    assert weights[:, 0].min() == 1 and set(weights.unique().tolist()) == {0.0, 1.0}
    assert weights[:, 1:].mean() == pytest.approx(0.7, abs=0.03)


def test_several_draws_of_a_sample_are_rows_of_their_own(tmp_path, clips):
    module, data = build(
        aicl_config(tmp_path, references=2, reference_dropout=0.5, training={"timesteps_per_sample": 2})
    )
    randomise(module.trained, seed=0)
    batch, called, denoiser = next(iter(data.train_dataloader())), [], module._denoiser
    predict = denoiser.predict
    denoiser.predict = lambda *arguments: called.append(arguments) or predict(*arguments)
    losses, latents = module.losses(batch), module.encode_target(batch, module.randomness(batch))
    [(noisy, t, [condition])] = called
    u = torch.stack([batch["timestep_u"], (batch["timestep_u"] + 0.5) % 1], dim=1)
    assert torch.equal(t, timesteps_from_uniform(u.flatten(), 1000))
    alpha, sigma = denoiser.schedule.coefficients(t, noisy)
    noise = (noisy - alpha * latents.repeat_interleave(2, dim=0)) / sigma
    assert len(noise.flatten(1).unique(dim=0)) == 4
    whole = condition.extras["references"]
    for row in range(4):
        sample, one = row // 2, slice(row, row + 1)
        shown = ReferenceContext(whole.features[one], whole.frames, whole.weights[one])
        assert torch.equal(shown.features, whole.features[2 * sample : 2 * sample + 1])
        alone = Condition(condition.context[one], extras={"references": shown})
        prediction = predict(noisy[one], t[one], [alone])
        losses[sample] -= 0.5 * (prediction - noise[one]).square().mean()
    torch.testing.assert_close(losses, torch.zeros(2), rtol=0, atol=1e-5)


def test_the_reference_gap_is_zero_until_references_are_read(tmp_path, clips):
    module, data = build(aicl_config(tmp_path, references=2))
    batch = next(iter(data.train_dataloader()))
    assert module.diagnostics(batch)["reference_gap"] == 0  # what reads references starts at zero
    randomise(module.trained, seed=0)
    gap = module.diagnostics(batch)["reference_gap"]
    swapped = {name: batch[name][::-1] if isinstance(batch[name], list) else batch[name].flip(0) for name in batch}
    others = {name: swapped[name] for name in ("references", "reference_captions")}
    costs = []
    for i in range(4):  # rounds of two samples, so that eight timesteps are seen
        u, seeds = (batch["timestep_u"] + i / 4) % 1.0, batch["noise_seed"] + i
        again = batch | {"timestep_u": u, "noise_seed": seeds}
        costs.append(module.losses(again | others).mean() - module.losses(again).mean())
    torch.testing.assert_close(gap, torch.stack(costs).mean(), rtol=1e-3, atol=1e-6)
    assert gap != 0


def test_diagnostics_are_logged_beside_the_loss(tmp_path, clips):
    assert train(aicl_config(tmp_path, logging={"diagnostics": 2}, training={"ema": 0.9})) == 0
    with (tmp_path / "runs/aicl/metrics.csv").open(newline="") as file:
        found = [(int(row["step"]), bool(row["loss"]), bool(row["reference_gap"])) for row in csv.DictReader(file)]
    assert [step for step, _, diagnosed in found if diagnosed] == [2, 4]
    assert [step for step, loss, _ in found if loss] == [1, 2, 3, 4]


def test_compiling_gives_the_same_gradients_and_is_done_once(tmp_path, clips):
    torch._dynamo.reset()
    gradients, graphs = [], []
    with torch.compiler.set_stance(force_backend="aot_eager"):  # graphs as in earnest, but no C++ is built
        for compiled in (False, True):
            module, data = build(aicl_config(tmp_path, training={"compile": compiled}, prism={"depth": 2}))
            for _ in range(2):
                module.zero_grad()
                loss_of(module, data).backward()
                graphs.append(counters["stats"]["unique_graphs"])
            gradients.append([p.grad for p in module.trained.parameters()])
    assert graphs[0] == graphs[1] < graphs[2] == graphs[3]
    for plain, other in zip(*gradients):
        torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-7)


def test_prism_and_backbone_are_captured_once_each_as_cuda_graphs(tmp_path, clips, monkeypatch):
    """What is captured, on a CPU; the graphs themselves are tested in tests/gpu."""
    captured = []

    def capture(module, samples, allow_unused_input):
        captured.append((module.network, samples))
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    losses = []
    for graphs in (False, True):
        settings = {"cuda_graphs": graphs, "timesteps_per_sample": 2}
        module, data = build(aicl_config(tmp_path, references=2, reference_dropout=0.5, training=settings))
        randomise(module.trained, seed=0)
        batches = iter(data.train_dataloader())
        losses.append(torch.cat([module.losses(next(batches)) for _ in range(2)]))
    assert torch.equal(*losses)
    assert [type(network).__name__ for network, _ in captured] == ["ActionPrism", "IntegratedBackbone"]
    latents, timesteps, context, features, weights = captured[1][1]
    assert (len(latents), len(timesteps), len(context), len(features), len(weights)) == (4, 4, 4, 4, 4)
    assert features.requires_grad and not weights.requires_grad  # through R gradients reach the prism


def test_only_trained_parameters_are_registered(tmp_path, clips):
    module, _ = build(aicl_config(tmp_path))
    assert {name.split(".")[1] for name, _ in module.named_parameters()} == {"prism", "integration"}
    assert module.state_dict().keys() == {f"trained.{name}" for name, _ in module.trained.named_parameters()}


def test_a_run_writes_an_adapter_with_each_checkpoint(tmp_path, clips):
    config = aicl_config(tmp_path, training={"preview_every": 4, "previews": 1, "preview_steps": 2})
    assert train(config) == 0
    run = tmp_path / "runs/aicl"
    for step in (2, 4):
        info, state = read_adapter(run / f"checkpoints/step_{step:08d}/adapter.safetensors")
        assert info.step == step and info.prism.context_dim == 32
    saved = torch.load(run / "checkpoints/step_00000004/state.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == {f"trained.{name}" for name in state}
    assert all(torch.equal(saved[f"trained.{name}"], value) for name, value in state.items())
    assert (run / "previews/step_00000004_0.mp4").exists()


def test_training_starts_from_an_adapter_of_the_same_sizes_alone(tmp_path, clips):
    first, _ = build(aicl_config(tmp_path))
    randomise(first.trained, seed=3)
    first.export(tmp_path, {"step": 7})
    start = str(tmp_path / "adapter.safetensors")
    again, _ = build(aicl_config(tmp_path, init_from=start))
    theirs = dict(first.trained.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in again.trained.named_parameters())
    save_base(MODEL, tmp_path / "other", seed=1)
    with pytest.warns(UserWarning, match="trained on other weights of this 'lvdm' network"):
        build(aicl_config(tmp_path, init_from=start, base={"path": str(tmp_path / "other")}))
    for section, setting in (("prism", {"mlp_ratio": 2}), ("integration", {"spatial_positions": "none"})):
        with pytest.raises(CheckpointError, match=f"another {next(iter(setting))} of prism or integration"):
            build(aicl_config(tmp_path, init_from=start, **{section: setting}))
    with pytest.raises(ConfigError, match="make them equal"):
        build(aicl_config(tmp_path, integration={"feature_channels": 8}))
    other = {"path": None, "config": str(ROOT / "configs/models/tiny_videocrafter.yaml")}
    with pytest.raises(CheckpointError, match=r"was trained on a network of family 'lvdm' .*: load it on its own"):
        build(aicl_config(tmp_path, init_from=start, base=other))


def test_image_to_video_trains(tmp_path, clips):
    model = str(ROOT / "configs/models/tiny_videocrafter_i2v.yaml")
    size = {"data": {"clip": {"num_frames": 2, "size": [32, 32], "fps": 8}, "kind": "folder", "path": str(clips)}}
    save_base(model, tmp_path / "image_base")
    config = aicl_config(tmp_path, base={"path": str(tmp_path / "image_base")}, training={"steps": 2}, **size)
    assert train(config) == 0
    assert losses(tmp_path / "runs/aicl").keys() == {1, 2}


@pytest.mark.parametrize("row", [*range(1, 10), "2_unpooled", "2_centred", "7_centred", "8_two_prisms"])
def test_every_row_of_table_2_trains_a_step(tmp_path, clips, row):
    published = configs.load(ROOT / f"configs/ablations/table2_{row}.yaml")
    changes = {
        "prism": {n: v for n, v in published["prism"].items() if n not in PRISM},
        "integration": {n: v for n, v in published["integration"].items() if n != "head_dim"},
    }
    module, data = build(aicl_config(tmp_path, **changes))
    loss = loss_of(module, data)
    loss.backward()
    assert loss.isfinite() and any(p.grad is not None and p.grad.any() for p in module.trained.parameters())


def test_the_rows_of_table_2_are_different_models_but_for_the_shared_one(tmp_path):
    rows = [configs.load(ROOT / f"configs/ablations/table2_{row}.yaml") for row in range(1, 10)]
    shapes = [(str(row["prism"]), str(row["integration"])) for row in rows]
    assert shapes[2] == shapes[5] == shapes[8]
    assert len(set(shapes)) == 7


@pytest.mark.parametrize(
    ("name", "batch", "size"),
    [
        ("aicl_lvdm", 6, (256, 256)),
        ("aicl_videocrafter", 4, (320, 512)),
        ("aicl_videocrafter2", 4, (320, 512)),
        ("aicl_videocrafter_i2v", 3, (320, 512)),
    ],
)
def test_full_size_configs_state_the_papers_training(name, batch, size):
    config = configs.load(ROOT / f"configs/{name}.yaml", ["training.steps=7"], schema=config_schema())
    training = configs.from_mapping(TrainingSettings, config["training"])
    assert (training.batch_size, training.precision) == (batch, "bfloat16")
    assert training.strategy == "auto"  # how a step is spread over memory, which changes nothing that is learned
    assert (training.lr, training.betas, training.weight_decay) == (1e-4, [0.9, 0.9], 0.03)
    assert tuple(config["data"]["clip"]["size"]) == size and config["data"]["clip"]["num_frames"] == 16
    sections = {key: value for key, value in config.items() if key not in ("run", "training", "logging")}
    assert configs.from_mapping(AICLSections, sections).references == 1


def test_a_single_frame_shows_no_action(tmp_path, clips):
    with pytest.raises(ConfigError, match=r"num_frames is 1: a single frame shows no action"):
        train(aicl_config(tmp_path, data={"clip": {"num_frames": 1, "size": [16, 16]}}))


def test_a_base_model_is_needed(tmp_path, clips):
    with pytest.raises(ConfigError, match=r"either base.path .* or base.config"):
        train(aicl_config(tmp_path, base={}))


def test_a_cache_of_another_base_model_is_refused(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(ClipDataset, "check_cached", lambda self: None)  # only settings: nothing is in these caches
    config = aicl_config(tmp_path, data={"cache": str(tmp_path / "cache")})
    config["data"]["clip"]["augmentation"] = {"random_crop": True, "cached_crops": 1}
    clip = configs.from_mapping(ClipConfig, config["data"]["clip"])
    encoders = load_encoders(tmp_path / "base", "cpu")
    models = encoder_settings(encoders.codec, encoders.text, "float32")
    ClipCache.create(tmp_path / "cache", cache_settings(clip, seed=0) | models)
    build(config)
    config["training"]["precision"] = (
        "bfloat16"  # the weights of the run are rounded, but those of the file are the same
    )
    build(config)
    torch.nn.init.normal_(encoders.codec.autoencoder.encoder.conv_in.weight)
    models = encoder_settings(encoders.codec, encoders.text, "float32")
    ClipCache.create(tmp_path / "other", cache_settings(clip, seed=0) | models)
    config["data"]["cache"] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="made with another autoencoder than this base model's"):
        build(config)


def wait_for(process, run, step):
    """Let the process train until metrics.csv has `step`."""
    deadline = time.monotonic() + 120
    while max(losses(run), default=0) < step:
        if not process.is_alive() or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"training ended before step {step}: {(run.parent.parent / 'log').read_text()}")
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_continues_as_if_nothing_had_happened(tmp_path, clips):
    """kill -9 in mid-epoch, resume, SIGTERM, resume: the losses of an uninterrupted run, digit for digit."""
    long = {
        "steps": 100_000,
        "checkpoint_every": 3,
        "keep": 1,
        "ema": 0.9,
        "gradient_accumulation_steps": 2,
    }
    config = aicl_config(tmp_path, training=long, data={"workers": 1})
    config_file, run = save_config(tmp_path / "config.yaml", config), tmp_path / "runs/aicl"

    def start(*arguments):
        command = (processes.aicl_verb, "train", "--config", str(config_file), *arguments)
        return processes.start(*command, log=tmp_path / "log")

    process = start()
    wait_for(process, run, 5)
    process.kill()
    process.join()
    assert list_checkpoints(run / "checkpoints")

    process = start("--resume", "auto")
    wait_for(process, run, max(losses(run)) + 2)  # beyond what the killed run had logged
    loaders = Path(f"/proc/{process.pid}/task/{process.pid}/children")  # schedulers signal these too
    for pid in (loaders.read_text().split() if loaders.exists() else []) + [process.pid]:
        os.kill(int(pid), signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM, (tmp_path / "log").read_text()
    last = max(losses(run))
    assert list_checkpoints(run / "checkpoints")[-1].name == f"step_{last:08d}"  # written because of the signal

    config["training"]["steps"] = last + 2
    assert train(config, resume="auto") == 0
    config["run"] = config["run"] | {"name": "uninterrupted"}
    config["data"] = config["data"] | {"workers": 0}
    assert train(config) == 0
    assert losses(run) == losses(tmp_path / "runs/uninterrupted")
    assert losses(run).keys() == set(range(1, last + 3))
