"""What accompanies a training sample: itself, others, by which shares; from files, from a cache, on the device."""

import numpy as np
import pytest
import torch

import aicl.tasks  # noqa: F401 (makes the tasks known)
from aicl.cli import parse, verb_module
from aicl.training_features import disturb_features
from aicl.training_pairs import PairMaker, ReferenceSettings, build_pair_sampler, pairs_line
from aicl.training_task import AICLSections
from lvdm import config as configs
from lvdm.data import CachedChanges, Changed, ClipCache, ClipRecord, SelfPairConfig, Wrong
from lvdm.data.manifest import DataConfig
from lvdm.errors import ConfigError, DataError
from lvdm.training import train
from lvdm.training.diagnostics import read_history
from lvdm.training.randomness import BatchRandomness
from lvdm.training.settings import LoggingSettings, TrainingSettings
from lvdm.training.tasks import config_schema
from tests.aicl.test_training import aicl_config, build, save_base
from tests.aicl.tiny_models import randomise
from tests.lvdm.training_runs import MODEL, ROOT, losses, make_clips, save_config

CAPTIONS = ["a man runs", "a dog runs", "she is running fast", "a mountain lake"]
RECORDS = [ClipRecord(f"{i}.mp4", caption) for i, caption in enumerate(CAPTIONS)]
CHANGES = {"scale": 0.2, "convolution": 0.0}


@pytest.fixture
def clips(tmp_path):
    save_base(MODEL, tmp_path / "base")
    return make_clips(tmp_path / "clips")


def drawn(settings, count=200, number=0, records=RECORDS):
    sampler = build_pair_sampler(settings, records)
    return [sampler(np.random.default_rng(seed), records, number) for seed in range(count)]


def test_self_pairs_take_every_video_and_no_other():
    samples = drawn(ReferenceSettings(kind="self", count=2))
    assert all(references == [Changed(target)] * 2 for target, *references in samples)
    assert {target for target, *_ in samples} == {0, 1, 2, 3}


def test_a_single_video_trains():
    records = [ClipRecord("only.mp4", "")]
    assert drawn(ReferenceSettings(kind="self"), 3, records=records) == [[0, Changed(0)]] * 3
    with pytest.raises(DataError, match=r"references\.kind = self"):
        build_pair_sampler(ReferenceSettings(), records)
    with pytest.raises(DataError, match="the data has only one"):
        build_pair_sampler(ReferenceSettings(kind="self", wrong_share=0.1), records)


def test_mixed_pairs_follow_their_schedule():
    settings = ReferenceSettings(kind="mixed", self_share=[(0, 1.0), (100, 1.0), (200, 0.0)])
    assert [settings.share_of_self_pairs(n) for n in (0, 100, 150, 200, 900)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert all(isinstance(reference, Changed) for _, reference in drawn(settings, number=50))
    late = drawn(settings, number=300)
    assert {tuple(pair) for pair in late if pair[0] < 3} == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert {pair[1] for pair in late if pair[0] == 3} == {Changed(3)}  # nobody else shows a lake
    half = drawn(settings, number=150)
    assert 0.4 < np.mean([isinstance(pair[1], Changed) for pair in half if pair[0] < 3]) < 0.6


def test_each_reference_of_a_sample_is_chosen_for_itself():
    half = drawn(ReferenceSettings(kind="mixed", count=2, self_share=0.5))
    assert {(isinstance(a, Changed), isinstance(b, Changed)) for target, a, b in half if target < 3} == {
        (True, True), (True, False), (False, True), (False, False)
    }  # fmt: skip
    others = drawn(ReferenceSettings(kind="mixed", count=2, self_share=0.0))
    assert all({a, b} == {0, 1, 2} - {target} for target, a, b in others if target < 3)


def test_all_candidates_are_drawn():
    settings = ReferenceSettings(candidates=2)
    assert all({a, b} == {0, 1, 2} - {target} for target, a, b in drawn(settings))
    sampler = build_pair_sampler(settings, RECORDS)
    assert "3 clips have 2 others of their action, 1 have not" in pairs_line(sampler, settings)
    with pytest.raises(DataError, match="indexed for 4 videos, the data set has 5"):
        build_pair_sampler(ReferenceSettings(kind="self"), RECORDS)(np.random.default_rng(0), [*RECORDS, RECORDS[0]])


def test_wrong_references_are_changed_like_right_ones():
    samples = drawn(ReferenceSettings(kind="self", wrong_share=0.25), 400)
    wrong = [reference.index != target for target, reference in samples]
    assert 0.18 < np.mean(wrong) < 0.32
    assert all(isinstance(reference, Wrong if w else Changed) for w, (_, reference) in zip(wrong, samples))
    assert all(reference.changed for w, (_, reference) in zip(wrong, samples) if w)
    always = drawn(ReferenceSettings(kind="self", wrong_share=1.0))
    assert {(target, reference.index) for target, reference in always} == {
        (a, b) for a in range(4) for b in range(4) if a != b
    }
    twice = [ClipRecord("0.mp4", "another caption of the first"), *RECORDS]
    always = drawn(ReferenceSettings(kind="self", wrong_share=1.0), records=twice)
    assert all({target, reference.index} != {0, 1} for target, reference in always)
    mixed = drawn(ReferenceSettings(kind="mixed", wrong_share=1.0))
    assert {reference.changed for _, reference in mixed} == {True, False}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"count": 0}, "1 or more"),
        ({"self_share": 1.5}, r"in \[0, 1\]"),
        ({"self_share": [(5, 1.0), (5, 0.0)]}, "ascending"),
        ({"kind": "self", "geometry": [(0, 1.0), (9, 10.0)]}, "changes.scale = 1.0"),
        ({"kind": "self", "geometry": -0.5}, "0 or more"),
        ({"wrong_share": 0.1}, "needs references.kind"),
        ({"self_share": 0.4}, "self_share needs references.kind = mixed"),
        ({"self_share": 0.4, "kind": "self"}, "self_share needs references.kind = mixed"),
        ({"geometry": 0.5}, "geometry does nothing with references.kind = same_action"),
        ({"captions": "given"}, "captions does nothing with references.kind = same_action"),
        ({"candidates": 4, "kind": "self"}, "same_action"),
        ({"candidates": 1, "count": 2}, "references.count or more"),
        ({"prompt_dropout": 1.0}, r"references\.prompt_dropout = 1.0"),
        ({"feature_noise": -1.0}, "0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        ReferenceSettings.read(section)
    assert ReferenceSettings.read(3).count == 3 and ReferenceSettings.read(None).kind == "same_action"
    assert ReferenceSettings(count=2, candidates=2).drawn == 2
    assert ReferenceSettings(kind="mixed").changes_to_cache and ReferenceSettings().changes_to_cache is None


def device_batch(count=None, number=0):
    frames = torch.rand(3, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = {
        "frames": frames,
        "caption": ["a", "b", "c"],
        "number": torch.arange(number, number + 3),
        "noise_seed": torch.tensor([11, 22, 33]),
    }
    if count is not None:
        batch["references"] = torch.zeros(3, count, 3, 2, 8, 8)
        batch["reference_captions"] = [["x"] * count] * 3
    return batch


def test_on_the_device_targets_without_references_become_self_pairs():
    batch = device_batch()
    made = PairMaker(ReferenceSettings(kind="self", count=2))(batch)
    assert made["references"].shape == (3, 2, 3, 2, 8, 8)
    assert made["reference_captions"] == [["a"] * 2, ["b"] * 2, ["c"] * 2]
    assert not torch.equal(made["references"][:, 0], made["references"][:, 1])
    assert PairMaker(ReferenceSettings(kind="self"))(made)["references"] is made["references"]  # once is enough
    alone = {name: value[1:2] for name, value in batch.items()}
    again = PairMaker(ReferenceSettings(kind="self", count=2))(alone)
    torch.testing.assert_close(again["references"][0], made["references"][1], atol=2e-5, rtol=0)


def test_on_the_device_a_share_of_given_references_becomes_self_pairs():
    settings = ReferenceSettings(kind="mixed", self_share=[(0, 1.0), (10, 0.0)], changes=SelfPairConfig(brightness=0.5))
    batch = device_batch(2, number=100)
    late = PairMaker(settings)(batch)
    assert torch.equal(late["references"], batch["references"]) and late["reference_captions"] == [["x", "x"]] * 3
    early = PairMaker(settings)(device_batch(2, number=4))
    own = [[text != "x" for text in texts] for texts in early["reference_captions"]]
    assert any(map(any, own)) and not all(map(all, own))
    for i, row in enumerate(own):
        for j, mine in enumerate(row):
            assert early["references"][i, j].any() == mine


def test_geometry_follows_its_schedule_by_sample_number():
    """Nothing before its first point, all of it after its last one, and each clip by its own number."""
    changes = SelfPairConfig(colour=0, convolution=0, contrast=0, brightness=0, start=0, rate=0)
    scheduled = PairMaker(ReferenceSettings(kind="self", geometry=[(1, 0.0), (2, 1.0)], changes=changes))
    batch = device_batch()
    batch["frames"] = torch.linspace(-0.9, 0.9, 8).expand(3, 3, 2, 8, 8)  # samples 0, 1 and 2
    made, constant = scheduled(batch), PairMaker(ReferenceSettings(kind="self", changes=changes))(batch)
    distance = (made["references"][:, 0] - batch["frames"]).abs().amax((1, 2, 3, 4))
    assert distance[:2].max() < 1e-5 and distance[2] > 0.01
    assert torch.equal(made["references"][2], constant["references"][2])


def test_on_the_device_references_that_do_not_belong_are_kept_but_changed():
    batch = device_batch(1) | {"reference_wrong": [[True], [False], [True]]}
    batch["references"] = batch["references"] + 0.1
    made = PairMaker(ReferenceSettings(kind="self"))(batch)
    assert made["reference_captions"] == [["x"], ["b"], ["x"]]
    spread = made["references"].std((3, 4, 5)).amax((1, 2))
    assert spread[0] < 1e-3 < spread[1]  # a flat clip stays flat
    assert not torch.allclose(made["references"][0], batch["references"][0])


def test_references_that_were_chosen_with_the_sample_are_changed_as_it_says():
    batch = device_batch(1) | {"reference_changed": [[False], [True], [False]]}
    batch["references"] = batch["frames"][[1, 2, 0], None]  # none of them the target's
    made = PairMaker(ReferenceSettings(kind="mixed"))(batch)
    kept = [torch.equal(a, b) for a, b in zip(made["references"], batch["references"])]
    assert kept == [True, False, True] and made["reference_captions"] == [["x"]] * 3
    assert PairMaker(ReferenceSettings(kind="self"))(made) is made  # once is enough
    own = device_batch() | {"references": batch["frames"][:, None], "reference_changed": [[True]] * 3}
    anew = PairMaker(ReferenceSettings(kind="self"))(device_batch())["references"]
    assert torch.equal(PairMaker(ReferenceSettings(kind="self"))(own)["references"], anew)


def test_a_self_pair_may_keep_the_caption_that_came_with_a_reference():
    settings = ReferenceSettings(kind="self", captions="given")
    made = PairMaker(settings)(device_batch(1))
    assert made["reference_captions"] == [["x"]] * 3 and made["references"].any()
    assert PairMaker(settings)(device_batch())["reference_captions"] == [["a"], ["b"], ["c"]]


def test_captions_are_left_out_by_their_shares_and_by_sample():
    batch = {
        "caption": ["a"] * 400,
        "reference_captions": [["r", "s"]] * 400,
        "noise_seed": torch.arange(400),
    }
    made = PairMaker(ReferenceSettings(prompt_dropout=0.2, caption_dropout=0.5)).leave_out_captions(batch)
    prompts = np.array([text == "" for text in made["caption"]])
    texts = np.array([row == ["", ""] for row in made["reference_captions"]])
    assert 0.13 < prompts.mean() < 0.27 and 0.42 < texts.mean() < 0.58
    assert 0.05 < (prompts & texts).mean() < 0.16  # independent of each other
    alone = {name: value[7:9] for name, value in batch.items()}
    again = PairMaker(ReferenceSettings(prompt_dropout=0.2, caption_dropout=0.5)).leave_out_captions(alone)
    assert again["caption"] == made["caption"][7:9]
    assert PairMaker(ReferenceSettings()).leave_out_captions(batch) is batch
    half = PairMaker(ReferenceSettings(kind="mixed", prompt_dropout=0.5))
    prompts = np.array([text == "" for text in half.leave_out_captions(batch)["caption"]])
    own = np.array(half._own(batch | {"number": torch.zeros(400, dtype=torch.int64)}, 1))[:, 0]
    assert 0.42 < prompts.mean() < 0.58 and 0.42 < own.mean() < 0.58 and 0.42 < (prompts == own).mean() < 0.58


def test_the_candidate_that_moves_like_the_target_is_kept_whatever_it_looks_like():
    def bar(row, column, down, level):
        """A bar that moves from a place, in other colours."""
        frames = torch.full((3, 8, 16, 16), level)
        for t in range(8):
            at = row + t if down else row
            frames[:, t, at : at + 3, column + (0 if down else t) : column + 3] = -level
        return frames

    target = bar(1, 2, True, 0.2)[None]
    others = [bar(1, 10, True, 0.9), bar(8, 2, False, 0.2), bar(2, 2, True, -0.8)]
    candidates = torch.stack(others)[None]
    batch = device_batch() | {"frames": target, "references": candidates, "caption": ["a"]}
    batch |= {"reference_captions": [["0", "1", "2"]], "reference_fps": torch.tensor([[0.0, 1.0, 2.0]])}
    made = PairMaker(ReferenceSettings(candidates=3))(batch)
    assert made["reference_captions"] == [["2"]] and made["reference_fps"].tolist() == [[2.0]]
    assert torch.equal(made["references"], candidates[:, 2:])
    latents = {"latent_mean": target, "reference_latent_mean": candidates, "reference_captions": [["0", "1", "2"]]}
    assert PairMaker(ReferenceSettings(candidates=3))(latents)["reference_captions"] == [["2"]]


def test_r_is_disturbed_by_as_much_as_it_says():
    R = torch.randn(64, 6, 8, 4, 4) * torch.arange(1.0, 9.0)[:, None, None]
    numbers = BatchRandomness(range(64), "cpu")
    assert torch.equal(disturb_features(R, ReferenceSettings(), numbers), R)
    noise = disturb_features(R, ReferenceSettings(feature_noise=0.5), numbers) - R
    torch.testing.assert_close(noise.std((0, 1, 3, 4)), torch.arange(1.0, 9.0) / 2, rtol=0.05, atol=0)
    dropped = disturb_features(R, ReferenceSettings(feature_dropout=0.25), numbers)
    share = (dropped == 0).flatten(3).all(3).all(1).float()  # whole channels of a sample
    assert 0.18 < share.mean() < 0.32 and set(share.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(
        dropped[share[:, None].expand(-1, 6, -1) == 0], (R / 0.75)[share[:, None].expand(-1, 6, -1) == 0]
    )


def test_a_training_with_all_of_it_learns(tmp_path, clips):
    references = {"prompt_dropout": 0.3, "caption_dropout": 0.3, "feature_noise": 0.1, "feature_dropout": 0.1}
    config = self_config(tmp_path, references=references, training={"motion_weight": 0.5, "steps": 2})
    assert train(config) == 0
    config["data"]["cache"] = str(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"prompt_dropout do nothing with data\.cache"):
        build(config)


def self_config(tmp_path, **sections):
    references = {"kind": "self", "count": 1, "changes": CHANGES} | sections.pop("references", {})
    return aicl_config(tmp_path, references=references, **sections)


def test_one_clip_without_a_caption_trains(tmp_path, clips):
    for path in sorted(clips.iterdir()):
        if path.stem != "0":
            path.unlink()
    (clips / "0.txt").unlink()
    config = self_config(tmp_path)
    with pytest.raises(DataError, match=r"data\.default_caption"):
        build(config | {"base": {"path": str(tmp_path / "missing")}})  # data comes first: a model takes long to load
    config["data"]["default_caption"] = "a person"
    assert "reference_gap says nothing" in build(config)[1].about
    assert train(config) == 0
    assert len(losses(tmp_path / "runs" / "aicl")) == 4


def make_cache(tmp_path, config, *overrides):
    """A latent cache of the folder of clips for this training, by the command; the training is told of it."""
    file, out = save_config(tmp_path / "training.yaml", config), str(tmp_path / "cache")
    options = ["--base", str(tmp_path / "base"), "--out", out, "--workers", "0", "--device", "cpu"]
    verb_module("cache").main(parse("cache", ["--config", str(file), *options, *overrides]))
    config["data"]["cache"] = out
    return ClipCache(out)


def test_a_cache_of_changed_clips_gives_what_files_give(tmp_path, clips):
    config = self_config(tmp_path)
    config["data"]["clip"]["augmentation"] = {"random_crop": True, "cached_crops": 2}
    changes = CachedChanges(SelfPairConfig(**CHANGES), 3)
    cache = make_cache(tmp_path, config, "references.cached_changes=3", "references.changes.rotation=4.0")
    with pytest.raises(ConfigError, match=r"made with references\.cached_changes = 3, not 4; change"):
        build(config)  # four versions of each crop are the default
    config["references"]["cached_changes"] = 3
    other = config | {"references": config["references"] | {"changes": CHANGES | {"scale": 0.4}}}
    with pytest.raises(ConfigError, match=r"made with references\.changes\.scale = 0\.2, not 0\.4; change"):
        build(other)
    module, loaded = build(config)
    randomise(module.trained, seed=0)
    batch = next(iter(loaded.train_dataloader()))
    sample = loaded.dataset.sample(int(batch["number"][0]))
    target, reference = sample.target, sample.references[0]
    assert reference.index == target.index and reference.cached_crop == target.cached_crop
    key = loaded.dataset.records[target.index].key
    entry = changes.entry(target.cached_crop, reference.changed, 2)
    assert torch.equal(batch["reference_latent_mean"][0, 0], cache.read_clip(key, entry).mean)
    assert not torch.allclose(batch["reference_latent_mean"][0, 0], batch["latent_mean"][0], atol=1e-2)
    versions = [cache.read_clip(key, changes.entry(target.cached_crop, c, 2)) for c in range(3)]
    assert len({tuple(each.first_frame.flatten().tolist()) for each in versions}) == 3
    assert module.losses(batch).isfinite().all()


@pytest.mark.parametrize("model", ["tiny_lvdm", "tiny_videocrafter", "tiny_videocrafter_i2v"])
def test_every_base_takes_a_step_with_self_pairs_from_files_and_from_a_cache(tmp_path, model):
    make_clips(tmp_path / "clips", 2)
    save_base(str(ROOT / f"configs/models/{model}.yaml"), tmp_path / "base")
    config = self_config(tmp_path, references={"cached_changes": 2})
    for cached in (False, True):
        if cached:
            config["data"]["clip"]["augmentation"] = {"cached_crops": 1}
            make_cache(tmp_path, config)
        module, data = build(config)
        assert module.pipeline.takes_image == model.endswith("_i2v") == ("--image" in module.after)
        assert "reference_gap says nothing" not in data.about
        randomise(module.trained, seed=0)
        batch = next(iter(data.train_dataloader()))
        assert ("reference_latent_mean" in batch) == cached
        loss = module.losses(batch)
        loss.mean().backward()
        assert loss.isfinite().all() and all(p.grad is not None for p in module.trained.parameters())
        assert "reference_gap" in module.diagnostics(batch)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_gap_is_logged_and_drawn_by_default_whatever_the_batch(tmp_path, clips, batch_size):
    config = self_config(tmp_path, training={"steps": 4, "batch_size": batch_size}, logging={"diagnostics": 2})
    assert train(config) == 0
    run = tmp_path / "runs" / "aicl"
    for name in ("reference_gap", "reference_gap_percent"):
        steps = [step for step, _ in read_history(run / "metrics.csv", name)]
        assert steps == ([4] if batch_size == 1 else [2, 4])  # a batch of one needs another before it
    assert (run / "diagnostics.png").exists()
    assert LoggingSettings().diagnostics == 100


def test_the_gap_is_zero_until_references_are_read(tmp_path, clips):
    module, data = build(self_config(tmp_path))
    batch = next(iter(data.train_dataloader()))
    assert module.diagnostics(batch)["reference_gap"] == 0
    randomise(module.trained, seed=0)
    read = module.diagnostics(batch)
    assert read["reference_gap"] != 0 and read["reference_gap_percent"].isfinite()


def test_a_training_that_does_not_read_references_is_told_so(tmp_path, clips):
    module, _ = build(self_config(tmp_path))

    def judged(last, value):
        return module.judge_diagnostics(
            {"reference_gap_percent": [(step, value) for step in range(100, last + 1, 100)]}
        )

    assert judged(900, 0.0) is None and judged(1000, 5.0) is None
    assert "references are hardly read" in judged(1000, 0.2)


@pytest.mark.parametrize("base", ["lvdm", "videocrafter", "videocrafter2", "videocrafter_i2v"])
def test_recommended_configs_differ_from_the_papers_by_what_they_say(base):
    paper, ours, small = (
        configs.load(ROOT / f"configs/aicl_{base}{kind}.yaml", schema=config_schema())
        for kind in ("", "_self_pairs", "_small_set")
    )
    for config in (ours, small):
        sections = {key: value for key, value in config.items() if key not in ("run", "training", "logging")}
        assert configs.from_mapping(AICLSections, sections).pairs.kind == "self"
        configs.from_mapping(TrainingSettings, config["training"])
        configs.from_mapping(DataConfig, config["data"], where="data")
        assert config["base"] == paper["base"] and config["prism"] == paper["prism"]
        assert config["training"]["batch_size"] == paper["training"]["batch_size"]
        # any folder of videos, see docs/recipe.md
        own = ("kind", "path", "captions", "default_caption", "split", "part")
        assert [config["data"][name] for name in own] == ["folder", "data/mine", None, None, None, "all"]
    assert ours["data"]["clip"] == paper["data"]["clip"]
    assert small["data"]["clip"]["augmentation"]["cached_crops"] == 8
