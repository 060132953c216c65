"""Tiny trainings on the CPU, from config to checkpoint."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lvdm import config as configs
from lvdm.checkpoints import load_pipeline, read_model, save_pipeline
from lvdm.checkpoints.folder import write_part
from lvdm.data import collate
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.components import build_components
from lvdm.training import Recipe, RunSettings, TrainingSettings, build_task, train
from lvdm.training.autoencoder import AutoencoderModule
from lvdm.training.checkpoints import list_checkpoints
from lvdm.training.metrics import LossError
from lvdm.training.module import TrainingModule
from lvdm.video import probe
from tests.lvdm.training_runs import MODEL, ROOT, losses, make_clips, tiny_config

OTHER = ROOT / "configs/models/tiny_videocrafter.yaml"


@pytest.fixture
def clips(tmp_path):
    return make_clips(tmp_path / "clips")


def build(config):
    sections = {name: section for name, section in config.items() if name not in ("run", "training", "logging")}
    return build_task(Recipe(RunSettings(**config["run"]), TrainingSettings(**config["training"]), sections))


def autoencoder_config(tmp_path, **sections):
    return tiny_config(tmp_path, "autoencoder", model={"config": MODEL}, **sections)


def base_config(tmp_path, **sections):
    sections["model"] = {"config": MODEL, "train_text": True} | sections.get("model", {})
    return tiny_config(tmp_path, "base", **sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"timesteps": "sqrt"}}, "trains no diffusion model: leave them out"),
        ({"training": {"timesteps_per_sample": 2}}, "trains no diffusion model: leave them out"),
        ({"data": {"cache": "a cache"}}, "an autoencoder is trained on frames: leave it out"),
    ],
)
def test_what_does_nothing_for_an_autoencoder_is_refused(tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        build(autoencoder_config(tmp_path, **sections))


def test_an_autoencoder_is_exported_with_the_statistics_of_its_averaged_weights(tmp_path, clips):
    module, data = build(autoencoder_config(tmp_path, training={"ema": 0.9}))
    frames = [collate([data.dataset[number] for number in numbers]) for numbers in ((0, 1, 2, 3), (4, 5, 6, 7))]
    for name, average in module.ema.averages.items():
        if "quant_conv" in name and "post" not in name:
            average[:4] *= 1.5  # of the means; the rest are log variances
    for batch in frames:
        module.losses(batch)
    with module.showing():
        module.export(tmp_path, {})
        mean, logvar = module._encode(frames[1]["frames"])
    described = configs.load(tmp_path / "autoencoder.yaml")["latents"]
    deviation = (mean.var((0, 2, 3), correction=0) + logvar.exp().mean((0, 2, 3))).sqrt()
    assert described["shift"] == pytest.approx(mean.mean((0, 2, 3)).tolist(), rel=1e-4)
    assert described["scale"] == pytest.approx((1 / deviation).tolist(), rel=1e-4)


def test_previews_are_refused_where_there_are_none():
    with pytest.raises(ConfigError, match="shows no previews: set it to null"):
        TrainingModule(TrainingSettings(steps=1, batch_size=1, preview_every=1), {})


@pytest.mark.parametrize("model", [MODEL, ROOT / "configs/models/tiny_videocrafter_i2v.yaml"])
def test_a_base_model_shows_previews_of_clips_from_a_cache(tmp_path, clips, model):
    settings = {"preview_steps": 2}
    module, data = build(base_config(tmp_path, model={"config": str(model), "train_text": False}, training=settings))
    batch = collate([data.dataset[0], data.dataset[1]])
    posterior = module.pipeline.components.eval().codec.posterior(batch["frames"])
    cached = {"caption": batch["caption"], "latent_mean": posterior.mean, "first_frame": batch["frames"][:, :, 0]}
    expected, found = module.preview(batch), module.preview(cached)
    assert torch.equal(found["generated"], expected["generated"])
    assert torch.equal(found["real"], module.pipeline.decode(posterior.mode()))


def test_an_autoencoder_learns_and_a_base_model_is_built_on_it(tmp_path, clips):
    assert train(autoencoder_config(tmp_path, training={"steps": 12, "lr": 3e-3, "checkpoint_every": 12})) == 0
    run = tmp_path / "runs/autoencoder"
    history = [float(loss) for loss in losses(run).values()]
    assert len(history) == 12 and sum(history[-3:]) < 0.8 * sum(history[:3])
    described = configs.load(run / "checkpoints/step_00000012/autoencoder.yaml")
    assert len(described["latents"]["scale"]) == len(described["latents"]["shift"]) == 4

    settings = {
        "ema": 0.9,
        "caption_dropout": 0.3,
        "precision": "bfloat16",
    }  # which rounds what is frozen while it trains
    config = base_config(tmp_path, model={"autoencoder": str(run)}, training=settings)
    assert train(config) == 0
    pipeline = load_pipeline(tmp_path / "runs/base/checkpoints/step_00000004/pipeline")
    trained = load_file(run / "checkpoints/step_00000012/autoencoder.safetensors")
    for name, value in pipeline.components.codec.autoencoder.state_dict().items():
        assert torch.equal(value, trained[name]), f"{name} of the frozen autoencoder changed"
    assert pipeline.components.codec.scale == described["latents"]["scale"]
    pixels = pipeline("a red person walks", num_frames=2, height=16, width=16, num_inference_steps=2, progress=False)
    assert pixels.shape == (1, 2, 16, 16, 3)

    of_another = {"autoencoder": str(tmp_path / "runs/base")}  # a model's, as of the models that the repository ships
    assert train(base_config(tmp_path, run={"name": "other"}, model=of_another, training={"steps": 1})) == 0
    codec = load_pipeline(tmp_path / "runs/other/checkpoints/step_00000001/pipeline").components.codec
    assert codec.scale == described["latents"]["scale"]
    assert all(torch.equal(value, trained[name]) for name, value in codec.autoencoder.state_dict().items())


def test_an_autoencoder_goes_on_from_another_ones_weights(tmp_path, clips):
    assert train(autoencoder_config(tmp_path, training={"steps": 6, "lr": 3e-3, "checkpoint_every": 6})) == 0
    run = tmp_path / "runs/autoencoder"
    more = autoencoder_config(tmp_path, run={"name": "more"}, training={"steps": 2})
    more["model"]["init_from"] = str(run)
    assert train(more) == 0
    first, second = (
        [float(loss) for loss in losses(tmp_path / "runs" / name).values()] for name in ("autoencoder", "more")
    )
    assert second[0] < 0.9 * first[0]
    file = run / "checkpoints/step_00000006/autoencoder.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"autoencoder\.safetensors"):
        train(more | {"run": more["run"] | {"name": "damaged"}})


def test_a_base_model_starts_from_stored_weights_in_half_precision_and_in_parts(tmp_path, clips):
    """All that is trained, in the full precision of training; not the autoencoder, which need not be there."""
    first = base_module(base_config(tmp_path))
    stored = {name: value.half() for name, value in first.state_dict().items()}
    components, folder = first.pipeline.components, tmp_path / "half"
    folder.mkdir()
    for part in ("unet", "text_encoder"):
        write_part(folder, part, components.modules()[part].state_dict(), torch.float16, limit=100_000)
    assert len(list(folder.glob("unet-*.safetensors"))) > 1
    again = base_module(base_config(tmp_path, model={"init_from": str(folder)}, run={"seed": 1}))
    assert all(torch.equal(value, stored[name].float()) for name, value in again.state_dict().items())
    with pytest.raises(CheckpointError, match=r"(?s)unet in .* and those of model.config do not fit"):
        base_module(base_config(tmp_path, model={"config": str(OTHER), "init_from": str(folder)}))


def test_a_base_model_takes_from_another_layout_what_fits(tmp_path, clips):
    """VideoCrafter's attention within frames and to the text starts as LVDM's; that along frames stays random."""
    config = read_model(MODEL)
    lvdm = build_components(config)
    for value in lvdm.unet.parameters():
        value.data.fill_(0.5)
    save_pipeline(lvdm, config, tmp_path / "lvdm")
    start = {"config": str(OTHER), "init_from": str(tmp_path / "lvdm"), "init_what_fits": True}
    unet = base_module(base_config(tmp_path, model=start)).trained["unet"]
    taken = {name: bool((value == 0.5).all()) for name, value in unet.named_parameters()}
    frames, along = (f"input_blocks.1.{place}.blocks.0.attn1.to_q.weight" for place in (1, 2))
    assert taken[frames] and taken[frames.replace("attn1", "attn2")] and not taken[along]
    assert taken["time_embed.0.weight"]
    with pytest.raises(ConfigError, match=r"needs model\.init_from"):
        base_module(base_config(tmp_path, model={"init_what_fits": True}))


def base_module(config):
    run, training = (config.pop(name) for name in ("run", "training"))
    recipe = Recipe(RunSettings(**run), TrainingSettings(**training), {n: config[n] for n in ("model", "data")})
    torch.manual_seed(recipe.run.seed)
    return build_task(recipe)[0]


def test_a_run_that_failed_before_its_first_step_can_be_started_again(tmp_path, clips):
    with pytest.raises(ConfigError, match="multiples of"):
        train(autoencoder_config(tmp_path, data={"clip": {"num_frames": 1, "size": [15, 15]}}))
    assert (tmp_path / "runs/autoencoder/config.yaml").exists()
    assert train(autoencoder_config(tmp_path, training={"steps": 1})) == 0


def test_graphs_are_refused_where_they_would_do_nothing():
    with pytest.raises(ConfigError, match=r"training\.cuda_graphs does nothing for this task"):
        TrainingModule(TrainingSettings(steps=1, batch_size=1, cuda_graphs=True), {})


@pytest.mark.parametrize("graphs", [False, True])
def test_what_a_base_model_trains_is_registered_once(tmp_path, clips, graphs):
    module = base_module(base_config(tmp_path, training={"cuda_graphs": graphs}))
    assert {name.split(".")[1] for name in module.state_dict()} == {"unet", "text"}
    assert all(name.startswith("trained.") for name in module.state_dict())


def test_a_run_is_never_overwritten_and_never_mixed_with_another(tmp_path, clips):
    config = autoencoder_config(tmp_path, training={"steps": 2})
    train(config)
    before = losses(tmp_path / "runs/autoencoder")
    with pytest.raises(ConfigError, match="holds a run already: continue it with --resume auto"):
        train(config)
    other = autoencoder_config(tmp_path, training={"steps": 2, "lr": 0.5})
    with pytest.raises(ConfigError, match=r"another config \(training.lr differ"):
        train(other, resume="auto")
    assert losses(tmp_path / "runs/autoencoder") == before
    train(autoencoder_config(tmp_path, training={"steps": 3, "gradient_accumulation_steps": 2}), resume="auto")
    assert losses(tmp_path / "runs/autoencoder").keys() == {1, 2, 3}


def test_resume_needs_a_checkpoint(tmp_path, clips):
    with pytest.raises(CheckpointError, match="is no checkpoint of a training"):
        train(autoencoder_config(tmp_path), resume=str(tmp_path))
    with pytest.raises(CheckpointError, match="missing does not exist: name another"):
        train(autoencoder_config(tmp_path), resume=str(tmp_path / "missing"))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "run/checkpoints/step_00000002").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"is a run, .* such as .*step_00000002"):
        train(autoencoder_config(tmp_path), resume=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("clip", "message"),
    [({"num_frames": 9}, "9 frames are too many"), ({"size": [15, 15]}, "multiples of"), ({"fps": 0}, "above 0")],
)
def test_clips_that_the_model_cannot_take_are_refused_before_anything_is_written(tmp_path, clips, clip, message):
    config = base_config(tmp_path)
    config["data"]["clip"] |= clip
    with pytest.raises(ConfigError, match=message):
        train(config)
    assert not (tmp_path / "runs/base/config.yaml").exists()


def test_a_batch_gives_the_same_losses_however_it_is_split(tmp_path, clips):
    for name, accumulate in (("whole", 1), ("parts", 4)):
        train(
            base_config(
                tmp_path,
                run={"name": name},
                training={"batch_size": 4, "gradient_accumulation_steps": accumulate, "steps": 3},
            )
        )
    whole, parts = (losses(tmp_path / "runs" / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() == {1, 2, 3}
    for step in whole:
        assert float(whole[step]) == pytest.approx(float(parts[step]), rel=1e-4)


def test_a_run_goes_on_with_the_same_samples_in_each_step_when_it_is_split_otherwise(tmp_path, clips):
    """As `strategy: auto` may split it on another card: a step always begins with its own first sample."""

    def run(name, steps, accumulate, resume="none"):
        settings = {"batch_size": 4, "gradient_accumulation_steps": accumulate, "steps": steps}
        train(base_config(tmp_path, run={"name": name}, training=settings), resume)
        return losses(tmp_path / "runs" / name)

    whole = run("whole", 3, 1)
    run("changed", 1, 1)
    changed = run("changed", 3, 4, "auto")
    assert whole.keys() == changed.keys() == {1, 2, 3}
    for step in whole:
        assert float(changed[step]) == pytest.approx(float(whole[step]), rel=1e-4)


def test_a_run_that_goes_on_from_another_ones_checkpoint_has_its_own_settings(tmp_path, clips):
    train(autoencoder_config(tmp_path, training={"steps": 1}))
    (checkpoint,) = list_checkpoints(tmp_path / "runs/autoencoder/checkpoints")

    def go_on(**settings):
        config = autoencoder_config(tmp_path, run={"name": "other"}, training={"steps": 2, **settings})
        train(config, resume=str(checkpoint))

    with pytest.raises(CheckpointError, match=r"kept no average of weights.*set it to null"):
        go_on(ema=0.9)
    go_on(betas=[0.5, 0.6], weight_decay=0.25)
    (other,) = list_checkpoints(tmp_path / "runs/other/checkpoints")
    (group,) = torch.load(other / "state.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (tuple(group["betas"]), group["weight_decay"]) == ((0.5, 0.6), 0.25)


class Broken(AutoencoderModule):
    """Its loss of sample 9 is not a number (step 5 of batch 2); from step 8 on losses are a thousandfold."""

    poison, explosion = 9, None

    def losses(self, batch):
        losses = super().losses(batch)
        if self.explosion is not None and self.global_step >= self.explosion:
            return losses * 1000
        return torch.where(batch["number"] == self.poison, torch.nan, losses)


@pytest.mark.parametrize(
    ("poison", "explosion", "message", "last"),
    [(9, None, "not finite .* first at sample numbers 9", 3), (None, 8, "rose above", 6)],
)
def test_a_broken_loss_stops_the_run_and_leaves_the_last_good_checkpoint(
    tmp_path, clips, monkeypatch, poison, explosion, message, last
):
    monkeypatch.setattr("lvdm.training.task_autoencoder.AutoencoderModule", Broken)
    monkeypatch.setattr(Broken, "poison", -1 if poison is None else poison)
    monkeypatch.setattr(Broken, "explosion", explosion)
    with pytest.raises(LossError, match=message):
        train(autoencoder_config(tmp_path, training={"steps": 12, "checkpoint_every": 3}))
    checkpoints = list_checkpoints(tmp_path / "runs/autoencoder/checkpoints")
    assert checkpoints[-1].name == f"step_{last:08d}"
    state = torch.load(checkpoints[-1] / "state.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    monkeypatch.undo()  # as the message says: a lower rate under another name, from the checkpoint that was kept
    other = autoencoder_config(tmp_path, training={"steps": last + 1, "lr": 1e-6})
    assert train(other | {"run": other["run"] | {"name": "other"}}, resume=str(checkpoints[-1])) == 0
    assert losses(tmp_path / "runs/other").keys() == {last + 1}


def test_a_text_of_another_length_than_image_attention_splits_at_is_refused(tmp_path):
    model = configs.load(ROOT / "configs/models/tiny_videocrafter_i2v.yaml")
    model["text"]["context_length"] = 48
    with pytest.raises(ConfigError, match=r"text.context_length is 48: set it to 77, or the image is read as text"):
        train(base_config(tmp_path, model={"config": model}))


def test_only_the_newest_checkpoints_are_kept_and_none_is_half_there(tmp_path, clips):
    train(autoencoder_config(tmp_path, training={"steps": 7, "checkpoint_every": 2, "keep": 2}))
    folder = tmp_path / "runs/autoencoder/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000006", "step_00000007"]
    progress = json.loads((folder / "step_00000007/progress.json").read_text())
    assert (progress["step"], progress["samples"]) == (7, 14)


def test_a_time_limit_ends_a_run_with_a_checkpoint(tmp_path, clips):
    config = autoencoder_config(
        tmp_path, training={"steps": 100_000, "max_minutes": 0.02, "schedule": "cosine", "checkpoint_every": 100_000}
    )
    assert train(config) == 0
    progress = json.loads(
        (list_checkpoints(tmp_path / "runs/autoencoder/checkpoints")[0] / "progress.json").read_text()
    )
    assert progress["step"] < 1000 and 1.2 <= progress["seconds"] < 10
    lines = (tmp_path / "runs/autoencoder/metrics.csv").read_text().splitlines()
    rates = [float(line.split(",")[2]) for line in lines[1:]]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.5 * rates[0]  # the cosine follows the time


def test_previews_are_written_and_change_nothing(tmp_path, clips, caplog):
    caplog.set_level("INFO")
    train(base_config(tmp_path, run={"name": "plain"}, training={"steps": 3}))
    shown = {"steps": 3, "preview_every": 2, "previews": 1, "preview_steps": 2}
    train(base_config(tmp_path, run={"name": "shown"}, training=shown, logging={"tensorboard": True}))
    assert [path.name for path in (tmp_path / "runs/shown/previews").iterdir()] == ["step_00000002_0.mp4"]
    assert probe(tmp_path / "runs/shown/previews/step_00000002_0.mp4").height >= 192  # large enough to see
    said = caplog.text
    for sentence in ("training on the CPU in float32: 3 steps of", "M trained,", "data: ", "tensorboard --logdir"):
        assert sentence in said
    assert f"sample it with: aicl sample --base {tmp_path / 'runs/shown'} --prompt" in said
    assert losses(tmp_path / "runs/plain") == losses(tmp_path / "runs/shown")
