"""What a training of AICL measures and previews, and what its module keeps of what it was given."""

from itertools import cycle

import pytest
import torch

from aicl.adapter import read_adapter
from aicl.training import AICLModule
from aicl.training_pairs import PairMaker, ReferenceSettings
from aicl.training_task import AICLSections, build_base_pipeline, prism_config
from lvdm.errors import ConfigError
from lvdm.pipeline import VideoPipeline
from lvdm.training.randomness import BatchRandomness
from lvdm.training.settings import TrainingSettings
from lvdm.video import to_pixels
from tests.aicl.test_training import aicl_config, build, save_base
from tests.lvdm.training_runs import MODEL, ROOT, make_clips


@pytest.fixture
def clips(tmp_path):
    save_base(MODEL, tmp_path / "base")
    return make_clips(tmp_path / "clips")


def test_the_gap_is_a_mean_over_eight_timesteps_at_least_spread_evenly(tmp_path, clips):
    module, data = build(aicl_config(tmp_path, training={"batch_size": 3}))
    batch, seen = next(iter(data.train_dataloader())), []
    costs = cycle([2.0, 2.5])  # of the right references, then of wrong ones
    module.losses = lambda given: seen.append(given) or torch.full((3,), next(costs))
    assert module.diagnostics(batch) == {"reference_gap": 0.5, "reference_gap_percent": 25.0}
    assert len(seen) == 2 * 3  # three rounds of three samples
    for i, (right, wrong) in enumerate(zip(seen[::2], seen[1::2])):
        torch.testing.assert_close(right["timestep_u"], (batch["timestep_u"] + i / 3) % 1.0)
        assert torch.equal(right["timestep_u"], wrong["timestep_u"])
        assert torch.equal(right["noise_seed"], batch["noise_seed"] + i)
        assert torch.equal(wrong["references"], right["references"].roll(1, 0))
        captions = right["reference_captions"]
        assert wrong["reference_captions"] == [captions[-1], *captions[:-1]]


def test_a_caption_is_encoded_once_a_batch(tmp_path, clips):
    module, _ = build(aicl_config(tmp_path))
    first = torch.zeros(4, 3, 16, 16)
    captions = ["a person jumps", "blue", "a person jumps", "a person jumps"]
    asked, text = [], module.pipeline.components.text
    text.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    with torch.no_grad():
        found = module.encode_text(captions, first)
        assert asked == [2] and torch.equal(found[0], found[2]) and torch.equal(found[0], found[3])
        torch.testing.assert_close(found, text.encode(captions))


def test_judged_is_what_was_measured_three_times_and_after_a_thousand_steps(tmp_path, clips):
    module, _ = build(aicl_config(tmp_path))

    def judged(*points):
        return module.judge_diagnostics({"reference_gap_percent": list(points)})

    assert judged() is None  # none was a finite number
    assert judged((500, 0.0), (1000, 0.0)) is None
    assert judged((1, 0.0), (500, 0.0), (999, 0.0)) is None
    assert "after 1000 steps" in judged((1, 0.0), (500, 0.0), (1000, 0.0))
    late = [(step, 0.0) for step in range(1000, 1300, 100)]
    assert judged(*((step, 9.0) for step in range(100, 1000, 100)), *late) is not None  # the last five, by their median
    assert judged(*late, *((step, 1.0) for step in (1300, 1400, 1500))) is None


def test_a_single_reference_and_none_left_out_draw_no_weights(tmp_path, clips):
    module, _ = build(aicl_config(tmp_path, reference_dropout=0.5))
    randomness = BatchRandomness(range(4), "cpu")
    assert module._weights(torch.empty(4, 1), randomness) is None
    assert module._weights(torch.empty(4, 2), randomness).shape == (4, 2)
    module.reference_dropout = 0.0
    assert module._weights(torch.empty(4, 2), randomness) is None


def test_the_module_keeps_its_pairs_and_a_base_without_training_modes(tmp_path):
    make_clips(tmp_path / "clips")
    module, data = build(aicl_config(tmp_path, base={"config": MODEL}, references={"kind": "self", "count": 2}))
    assert "; each clip is shown itself, changed; clips of 2 frames of 16x16, where the base" in data.about
    assert module.pairs.settings == ReferenceSettings(kind="self", count=2)
    assert not any(part.training for part in module.pipeline.components.modules().values())
    maker = PairMaker(ReferenceSettings(count=3))
    given = AICLModule(module.pipeline, module.prism, module.integrated, module.settings, pairs=maker)
    assert given.pairs is maker and given.reference_dropout == 0.0
    module.export(tmp_path, {"step": 3})
    assert read_adapter(tmp_path / "adapter.safetensors")[0].fps == 8  # the clips' rate
    plain = AICLModule(module.pipeline, module.prism, module.integrated, module.settings)
    assert plain.pairs.settings == ReferenceSettings()
    own = [prism_config(section, module.pipeline, module.settings) for section in ({}, {"use_checkpoint": True})]
    assert [each.use_checkpoint for each in own] == [False, True]  # that of the training, unless the section says it


PUPPETS = {"kind": "puppets", "size": 16, "frames": 2}
CACHE = {"cache": "a cache"}
NOWHERE = {"path": "a model that is not there"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"reference_dropout": 1.0}, r"choose a number in \[0, 1\)"),
        ({"base": {"path": "a model", "config": MODEL}}, "not both or neither"),
        ({"data": CACHE, "references": {"kind": "self", "geometry": 0.5}}, "geometry does nothing with data.cache"),
        ({"data": CACHE, "references": {"caption_dropout": 0.1}}, "caption_dropout and prompt_dropout do nothing"),
        ({"data": {**PUPPETS, "references": 1}, "references": 2}, "brings its own references"),
        ({"data": PUPPETS, "references": {"kind": "same_action"}}, "brings its own references"),
        ({"data": PUPPETS, "references": {"kind": "self", "wrong_share": 0.1}}, "brings its own references"),
        ({"references": {"kind": "self", "captions": "given"}}, "data that brings references of its own"),
        (
            {"data": PUPPETS, "references": {"kind": "self", "captions": "given"}},
            "data that brings references of its own",
        ),
        (
            {"data": {**PUPPETS, "references": 2}, "references": {"count": 3}},
            "count is 3, and the data brings 2 references",
        ),
        (
            {"data": {**PUPPETS, "references": 2}, "references": {"candidates": 3}},
            "candidates is 3, and the data brings 2",
        ),
        # what is written wrongly is said before a base model is looked for
        ({"base": NOWHERE, "prism": {"widht": 8}}, "unknown key 'widht' in prism: did you mean 'width'"),
        ({"base": NOWHERE, "integration": {"mod": "both"}}, "unknown key 'mod' in integration: did you mean 'mode'"),
        ({"base": NOWHERE, "references": {"knd": "self"}}, "unknown key 'knd' in references: did you mean 'kind'"),
        ({"base": NOWHERE, "data": {"clip": {"fsp": 8}}}, "unknown key 'fsp' in data.clip: did you mean 'fps'"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, clips, sections, message):
    with pytest.raises(ConfigError, match=message):
        build(aicl_config(tmp_path, **sections))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({}, True),
        ({"references": 2}, False),
        ({"reference_dropout": 0.0}, False),
        ({"data": {**PUPPETS, "references": 1}, "references": None}, True),
        ({"data": {**PUPPETS, "references": 2}, "references": None}, False),
        ({"data": PUPPETS, "references": {"kind": "self", "count": 2}}, False),
    ],
)
def test_a_training_says_that_of_one_reference_none_is_left_out(tmp_path, clips, sections, said):
    _, data = build(aicl_config(tmp_path) | {"reference_dropout": 0.5} | sections)
    assert ("reference_dropout = 0.5 does nothing, since each sample has one reference" in data.about) == said


def test_what_models_of_diffusers_cannot_is_refused(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(VideoPipeline, "supports_cuda_graphs", False)
    monkeypatch.setattr(VideoPipeline, "supports_latent_cache", False)
    with pytest.raises(ConfigError, match="captures this library's own networks only"):
        build(aicl_config(tmp_path, training={"cuda_graphs": True}))
    with pytest.raises(ConfigError, match="holds latents of this library's own models"):
        build(aicl_config(tmp_path, data=CACHE))


def test_new_layers_follow_the_run_s_seed(tmp_path, clips):
    config, found = aicl_config(tmp_path), []
    for seed in (0, 0, 1):
        config["run"]["seed"] = seed
        module, _ = build(config)
        found.append(torch.cat([value.flatten() for value in module.trained.state_dict().values()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("rate", [{"fps": 8, "stride": None}, {"fps": None, "stride": 2}])
def test_a_training_by_stride_says_at_which_rate_references_will_be_sampled(tmp_path, clips, rate):
    config = aicl_config(tmp_path)
    config["data"]["clip"] |= rate
    module, data = build(config)
    said = "sampled at 4 frames a second, the base model's, or at --reference-fps" in data.about
    assert module.fps == rate["fps"] and said == (rate["fps"] is None)


def test_the_base_model_has_the_precision_of_the_run(tmp_path, clips):
    settings = TrainingSettings(steps=1, batch_size=1, accelerator="cpu", precision="bfloat16")
    for base in (AICLSections.Base(path=str(tmp_path / "base")), AICLSections.Base(config=MODEL)):
        assert build_base_pipeline(base, settings).components.unet.dtype == torch.bfloat16


def test_a_preview_shows_the_batchs_first_frames_at_its_size_and_length(tmp_path, monkeypatch):
    make_clips(tmp_path / "clips")
    save_base(str(ROOT / "configs/models/tiny_videocrafter_i2v.yaml"), tmp_path / "base")
    clip = {"num_frames": 2, "size": [32, 48], "fps": 8}
    module, data = build(aicl_config(tmp_path, data={"clip": clip}, training={"preview_steps": 3}))
    batch, told = next(iter(data.train_dataloader())), []
    conditions = module.pipeline.conditions
    module.pipeline.conditions = lambda *args, **options: told.append((args, options)) or conditions(*args, **options)
    steps, sample = [], VideoPipeline.sample_latents
    monkeypatch.setattr(
        VideoPipeline,
        "sample_latents",
        lambda *args, **options: steps.append(options["num_inference_steps"]) or sample(*args, **options),
    )
    videos = module.preview(batch)
    b = len(batch["caption"])
    assert steps == [3, 3]
    [((captions, image), options)] = told
    assert captions == batch["caption"] and options == {"size": (32, 48), "fps": 8, "num_frames": 2}
    assert module.pipeline.config.defaults.fps == 4  # the adapter's videos have the rate of its clips
    assert torch.equal(image, to_pixels(batch["frames"])[:, 0])
    assert {name: video.shape for name, video in videos.items()} == dict.fromkeys(
        ("reference", "base", "ours"), (b, 2, 32, 48, 3)
    )
    assert torch.equal(videos["ours"], videos["base"])  # what reads references starts at zero


def test_a_preview_of_a_distilled_model_has_one_branch_and_leaves_what_training_tells(tmp_path, monkeypatch):
    save_base(MODEL, tmp_path / "base")
    make_clips(tmp_path / "clips")
    module, data = build(aicl_config(tmp_path, training={"preview_steps": 1}))
    told: list[float | None] = []
    backbone = type(module.pipeline.components.unet)
    monkeypatch.setattr(backbone, "embeds_guidance", True)
    monkeypatch.setattr(backbone, "embed_guidance", lambda network, scale: told.append(scale))
    sampled, sample = [], VideoPipeline.sample_latents
    monkeypatch.setattr(
        VideoPipeline, "sample_latents", lambda *args, **options: sampled.append(args[1:3]) or sample(*args, **options)
    )
    module.preview(next(iter(data.train_dataloader())))
    assert [(len(branches), weights) for branches, weights in sampled] == [(1, [1.0])] * 2
    assert told == [module.pipeline.config.defaults.guidance_scale, None]
