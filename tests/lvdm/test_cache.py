"""Latent and text caches: the same losses as from files, interruptible, verified."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lvdm.checkpoints import save_pipeline
from lvdm.config import from_mapping, load
from lvdm.data import (
    AugmentationConfig,
    CachedChanges,
    CachedClip,
    ClipCache,
    ClipConfig,
    ClipDataset,
    SelfPairConfig,
    Wrong,
    cache_settings,
    caching,
    collate,
    fingerprint,
    read_clip,
)
from lvdm.data.caching import (
    cache_clips,
    cache_texts,
    check_encoders,
    encoder_settings,
    load_encoders,
    remove_damaged,
)
from lvdm.errors import ConfigError, DataError, DiskError, VideoError
from lvdm.hashing import FileIdentity
from lvdm.models.components import ModelConfig, build_components
from lvdm.pipeline import VideoPipeline
from lvdm.training.base import BaseModule
from lvdm.training.settings import TrainingSettings
from lvdm.video import write_video
from tests.lvdm.disks import full_disk, read_only_disk
from tests.lvdm.training_runs import MODEL
from tests.lvdm.videos import pixels, records, truncated

CONFIG = ClipConfig(
    num_frames=2, size=(16, 16), augmentation=AugmentationConfig(random_crop=True, flip=0.5, cached_crops=2)
)
SEED = 5


def sample_pair(rng, listed, number=0):
    return [int(index) for index in rng.choice(len(listed), 2, replace=False)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    listed = records(folder, 5)
    truncated(listed[2].path, listed[2].path, 0.3)
    return listed


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    config = from_mapping(ModelConfig, load(MODEL))
    components = build_components(config)
    for parameter in components.unet.parameters():  # zero output projections would hide what goes in
        torch.nn.init.normal_(parameter, std=0.1)
    return VideoPipeline(components.eval(), config)


@pytest.fixture(scope="module")
def whole(videos, pipeline, tmp_path_factory):
    """A complete cache; tests must not change it."""
    cache = ClipCache.create(tmp_path_factory.mktemp("cache"), settings(pipeline))
    assert fill(cache, videos, pipeline) == 2  # both augmentations of the broken video
    return cache


def settings(pipeline):
    components = pipeline.components
    return cache_settings(CONFIG, SEED) | encoder_settings(components.codec, components.text, "float32")


def fill(cache, videos, pipeline, **options):
    cache_texts(cache, [record.caption for record in videos], pipeline.components.text)
    return cache_clips(cache, videos, CONFIG, SEED, pipeline.components.codec, **options)


def contents(cache):
    """What is in the cache: file name -> tensors as lists (the order of metadata in the files varies)."""
    entries = {}
    for path in cache.folder.rglob("*"):
        if path.suffix == ".safetensors":
            entries[path.name] = {name: tensor.tolist() for name, tensor in load_file(path).items()}
        elif path.is_file():
            entries[path.name] = path.read_text()
    return entries


def test_losses_from_a_cache_are_those_from_files(videos, pipeline, whole):
    training = TrainingSettings(steps=1, batch_size=4, precision="float32", caption_dropout=0.3)
    module = BaseModule(pipeline, training)
    from_files = ClipDataset(videos, CONFIG, sample_pair, SEED)
    from_cache = ClipDataset(videos, CONFIG, sample_pair, SEED, cache=whole)
    losses = []
    for dataset in (from_files, from_cache):
        with torch.no_grad():
            losses.append(torch.cat([module.losses(collate([dataset[n + i] for i in range(4)])) for n in (0, 4, 8)]))
    assert len(set(losses[0].tolist())) == 12  # of different videos, times and noise
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    assert from_cache[3]["skipped"] == [] and from_cache.sample(7) == from_files.sample(7)


def test_a_wrong_reference_is_told_with_the_targets_caption(videos, whole, monkeypatch):
    """From files and from a cache; its own caption would say that it does not belong, and at sampling nothing does."""
    texts = []
    monkeypatch.setattr(ClipCache, "read_text", lambda cache, caption: texts.append(caption) or torch.zeros(1, 1))

    def misled(rng, listed, number=0):
        target, other = sample_pair(rng, listed)
        return [target, Wrong(other, changed=False), other]

    for cache in (None, whole):
        item = ClipDataset(videos, CONFIG, misled, SEED, cache)[0]
        told, own = item["reference_captions"]
        assert told == item["caption"] != own
    assert texts[-3:] == [item["caption"], told, own]


def test_a_cached_item(videos, pipeline, whole):
    dataset = ClipDataset(videos, CONFIG, sample_pair, SEED, cache=whole)
    source = ClipDataset(videos, CONFIG, sample_pair, SEED)
    for number in (0, 1, 2):
        item, original = dataset[number], source[number]
        posterior = pipeline.components.codec.posterior(original["frames"][None])
        torch.testing.assert_close(item["latent_mean"], posterior.mean[0])
        torch.testing.assert_close(item["latent_std"], posterior.std[0])
        assert item["reference_latent_mean"].shape == (1, *item["latent_mean"].shape)
        assert torch.equal(item["first_frame"], original["frames"][:, 0])
        assert torch.equal(item["reference_first_frame"], original["references"][:, :, 0])
        with torch.no_grad():
            torch.testing.assert_close(item["context"], pipeline.encode_prompt([item["caption"]])[0])
            torch.testing.assert_close(item["reference_context"], pipeline.encode_prompt(item["reference_captions"]))
        assert "frames" not in item and "references" not in item
        for name in ("number", "timestep_u", "noise_seed", "caption", "fps", "reference_fps", "reference_captions"):
            assert item[name] == original[name]


def test_caching_goes_on_where_it_was_interrupted(videos, pipeline, whole, tmp_path):
    cache = ClipCache.create(tmp_path / "cache", settings(pipeline))

    def interrupt(done, total, broken):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(cache, videos, pipeline, progress=interrupt)
    before = {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*") if path.is_file()}
    again = ClipCache.create(tmp_path / "cache", settings(pipeline))
    counts = []
    fill(again, videos, pipeline, progress=lambda *state: counts.append(state))
    assert counts[0][:2] == (0, 6) and counts[-1][:2] == (6, 6)
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nothing was made twice
    assert contents(again) == contents(whole)


def test_a_crop_and_its_changed_versions_are_read_once(videos, pipeline, tmp_path, monkeypatch):
    read, changes = [], CachedChanges(SelfPairConfig(), 3)
    monkeypatch.setattr(caching, "read_clip", lambda *given: read.append(given[1]) or read_clip(*given))
    cache = ClipCache.create(tmp_path, settings(pipeline))
    assert fill(cache, videos[:2], pipeline, changes=changes, batch_size=3) == 0
    assert len(read) == 4  # two crops of two videos
    assert all(cache.has_clip(record.key, entry) for record in videos[:2] for entry in range(2 * 4))


def test_processes_share_the_work(videos, pipeline, whole, tmp_path):
    cache = ClipCache.create(tmp_path, settings(pipeline))
    counts = []
    for rank in range(3):
        fill(cache, videos, pipeline, part=(rank, 3), progress=lambda *state: counts.append(state[1]))
    assert sorted({*counts}) == [3, 4] and contents(cache) == contents(whole)


def test_damage_is_noticed_skipped_and_repaired(videos, pipeline, tmp_path):
    cache = ClipCache.create(tmp_path, settings(pipeline))
    fill(cache, videos, pipeline)
    good = contents(cache)
    for damage in (lambda data: data[:-100], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"x"):
        path = cache._clip_path(videos[0].key, 1)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(VideoError, match=r"cached crop 1 of 0.mp4 is damaged; run aicl cache --verify"):
            cache.read_clip(videos[0].key, 1)
        dataset = ClipDataset(videos[:2], CONFIG, seed=SEED, cache=cache)
        assert any("is damaged" in error for number in range(12) for error in dataset[number]["skipped"])
        text = cache._text_path(videos[1].caption)
        text.write_bytes(damage(text.read_bytes()))
        with pytest.raises(VideoError, match="caption 1' is damaged"):
            cache.read_text(videos[1].caption)
        assert remove_damaged(cache, videos, CONFIG) == 2
        with pytest.raises(DataError, match="is not in the cache"):
            cache.read_clip(videos[0].key, 1)
        fill(cache, videos, pipeline)
        assert contents(cache) == good


def test_another_video_under_a_cached_name_stops_a_training_and_is_cached_anew(videos, pipeline, tmp_path):
    cache = ClipCache.create(tmp_path / "cache", settings(pipeline))
    fill(cache, videos[:2], pipeline)
    other = replace(videos[0], path=tmp_path / "other" / videos[0].path.name)
    other.path.parent.mkdir()
    dataset = ClipDataset([other], CONFIG, seed=SEED, cache=cache)
    before = dataset[0]["latent_mean"]  # the latents are enough where the videos are not at hand
    write_video(other.path, 255 - pixels(15, 20, 28), fps=10)
    with pytest.raises(DataError, match=r"other/0\.mp4: is another file than the one of this name that .* --verify"):
        dataset[0]
    assert remove_damaged(cache, [other, videos[1]], CONFIG) == 2
    fill(cache, [other, videos[1]], pipeline)
    assert not torch.equal(dataset[0]["latent_mean"], before)


def test_a_copy_of_a_video_is_the_same_and_another_of_its_size_is_not(videos, pipeline, tmp_path):
    cache = ClipCache.create(tmp_path / "cache", settings(pipeline))
    copies = [replace(video, path=tmp_path / video.path.name) for video in videos[1:3]]  # the second one is broken
    for video, copy in zip(videos[1:3], copies):
        shutil.copyfile(video.path, copy.path)
    fill(cache, copies, pipeline)
    for video in copies:
        os.utime(video.path, (1, 1))  # as on another machine, or unpacked again
    good, broken = (ClipDataset([video], CONFIG, seed=SEED, cache=cache) for video in copies)
    good[0]
    with pytest.raises(DataError, match="no readable videos"):
        broken[0]
    for video in copies:
        content = video.path.read_bytes()
        video.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for video in copies:
        with pytest.raises(DataError, match="is another file than the one of this name"):
            ClipDataset([video], CONFIG, seed=SEED, cache=cache)[0]
    assert remove_damaged(cache, copies, CONFIG) == 4


def test_the_size_is_all_that_an_older_cache_tells(tmp_path):
    cache, path = ClipCache.create(tmp_path / "cache", {}), tmp_path / "a.mp4"
    path.write_bytes(b"abc")
    clip = CachedClip(torch.zeros(4, 2, 3, 3), torch.ones(4, 2, 3, 3), 8.0, torch.zeros(24, 24, 3, dtype=torch.uint8))
    cache.write_clip("a.mp4", 0, replace(clip, source=FileIdentity(3)))
    cache.write_clip("a.mp4", 1, replace(clip, source=FileIdentity(4)))
    assert cache.read_clip("a.mp4", 0, path).source == FileIdentity(3)
    with pytest.raises(DataError, match="is another file"):
        cache.read_clip("a.mp4", 1, path)


def test_an_incomplete_cache_stops_a_training(videos, pipeline, tmp_path):
    cache = ClipCache.create(tmp_path, settings(pipeline))
    with pytest.raises(DataError, match=r"is not in the cache; run aicl cache again"):
        ClipDataset(videos, CONFIG, seed=SEED, cache=cache)[0]


def test_a_broken_video_is_tried_again_once_it_is_another_file(videos, pipeline, tmp_path):
    folder, cache = tmp_path / "videos", ClipCache.create(tmp_path / "cache", settings(pipeline))
    absent, empty, broken = listed = [replace(video, path=folder / video.path.name) for video in videos[:3]]
    folder.mkdir()
    empty.path.touch()
    broken.path.write_bytes(videos[2].path.read_bytes())
    assert fill(cache, listed, pipeline) == 6  # two augmentations of each
    assert fill(cache, [empty, broken], pipeline) == 0  # which nothing happened to
    for number in (0, 1):
        shutil.copyfile(videos[number].path, listed[number].path)
    assert fill(cache, listed, pipeline) == 0
    for video in (absent, empty):
        assert cache.why_broken(video.key, 0) is None
        assert cache.read_clip(video.key, 1, video.path).mean.shape == (4, 2, 8, 8)
    assert cache.why_broken(broken.key, 0) is not None


def test_what_a_cache_lacks_is_said_before_a_training_starts(videos, pipeline, tmp_path):
    cache, changes = ClipCache.create(tmp_path, settings(pipeline)), CachedChanges(SelfPairConfig(), 1)

    def start(listed, known_broken=(), changes=None):
        dataset = ClipDataset(listed, CONFIG, seed=SEED, cache=cache, known_broken=known_broken)
        dataset.changes = changes
        dataset.check_cached()

    fill(cache, videos[:3], pipeline)  # the last of them is broken
    start(videos[:3])
    start(videos[:4], known_broken=[videos[3].key])
    with pytest.raises(DataError, match=r"^3\.mp4 is not in the cache .*; run aicl cache again"):
        start(videos[:4])
    with pytest.raises(DataError, match=r" is not in the cache .* \(nor are 3 others\)"):
        start(videos)
    with pytest.raises(DataError, match="the caption 'another' is not in the cache"):
        start([replace(videos[0], caption="another")])
    with pytest.raises(DataError, match=r"0\.mp4 is not in the cache"):  # whose changed versions were not made yet
        start(videos[:1], changes=changes)
    fill(cache, videos[:1], pipeline, changes=changes)
    start(videos[:1], changes=changes)


def test_a_cache_belongs_to_its_settings_and_models(videos, pipeline, whole):
    other = ClipConfig(num_frames=2, size=(16, 24), augmentation=CONFIG.augmentation)
    for make, reason in (
        (lambda: ClipDataset(videos, other, seed=SEED, cache=whole), r"data\.clip\.size = .*, not \[16, 24\];"),
        (lambda: ClipDataset(videos, CONFIG, seed=SEED + 1, cache=whole), r"made with run\.seed = 5, not 6;"),
        (
            lambda: ClipCache.create(whole.folder, settings(pipeline) | {"codec": "0123"}),
            "made with another autoencoder;",
        ),
        (lambda: ClipDataset(videos, ClipConfig(2, (16, 16)), seed=SEED, cache=whole), "fixed augmentations"),
    ):
        with pytest.raises(ConfigError, match=reason):
            make()


def test_no_cache(tmp_path):
    with pytest.raises(DataError, match="is not a latent cache"):
        ClipCache(tmp_path)
    (tmp_path / "cache.json").write_text('{"format": 99, "settings": {}}')
    with pytest.raises(DataError, match="cache format 99"):
        ClipCache(tmp_path)


def test_fingerprints(pipeline):
    layer = torch.nn.Linear(3, 2)
    before = fingerprint(layer, 1.0)
    assert fingerprint(torch.nn.Linear(3, 2), 1.0) != before and fingerprint(layer, 2.0) != before
    copy = torch.nn.Linear(3, 2)
    copy.load_state_dict(layer.state_dict())
    assert fingerprint(copy, 1.0) == before
    copy.weight.data[0, 0] += 1e-3
    assert fingerprint(copy, 1.0) != before


def test_text_features_keep_their_precision(tmp_path):
    cache = ClipCache.create(tmp_path, {})
    features = torch.randn(4, 8, dtype=torch.bfloat16)
    cache.write_text("a caption", features)
    assert torch.equal(cache.read_text("a caption"), features) and cache.has_text("a caption")
    clip = CachedClip(torch.randn(4, 2, 3, 3), torch.rand(4, 2, 3, 3), 7.25, torch.zeros(24, 24, 3, dtype=torch.uint8))
    cache.write_clip("k", 0, clip)
    back = cache.read_clip("k", 0)
    assert torch.equal(back.mean, clip.mean) and torch.equal(back.std, clip.std) and back.fps == 7.25
    assert torch.equal(back.first_frame, clip.first_frame) and not cache.has_clip("k", 1)


def test_encoders_of_a_model_folder(pipeline, tmp_path):
    save_pipeline(pipeline.components, pipeline.config, tmp_path / "model")
    encoders = load_encoders(tmp_path / "model", "cpu")
    assert encoders.unet is None
    expected = encoder_settings(pipeline.components.codec, pipeline.components.text, "float32")
    assert encoder_settings(encoders.codec, encoders.text, "float32") == expected
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(ConfigError, match="is a model of diffusers, of which no latents are cached: train on the vid"):
        load_encoders(tmp_path, "cpu")


def test_a_cache_of_another_model_is_refused(whole, pipeline):
    codec, text = pipeline.components.codec, pipeline.components.text
    check_encoders(whole.folder, codec, text)
    other = build_components(from_mapping(ModelConfig, load(MODEL)))
    check_encoders(whole.folder, codec)
    with pytest.raises(ConfigError, match="made with another text encoder than this base model's"):
        check_encoders(whole.folder, codec, other.text)
    with pytest.raises(ConfigError, match="made with another autoencoder and text encoder than"):
        check_encoders(whole.folder, other.codec, other.text)


def test_a_cache_of_older_names_is_read(tmp_path):
    new = {"clip": {"size": [8, 8], "augmentation": {"flip": 0.0, "cached_crops": 2}}, "precision": "float32"}
    old = {"clip": {"size": [8, 8], "view": {"flip": 0.0, "variants": 2}}, "precision": "fp32"}
    ClipCache.create(tmp_path, old)
    ClipCache(tmp_path).require(new)
    with pytest.raises(ConfigError, match=r"made with data\.clip\.augmentation\.flip = 0\.0, not None; change"):
        ClipCache(tmp_path).require(new | {"clip": {"size": [8, 8], "augmentation": {"cached_crops": 2}}})


def test_a_full_disk_is_one_sentence_and_caching_goes_on_once_there_is_room(videos, pipeline, whole, tmp_path):
    cache = ClipCache.create(tmp_path, settings(pipeline))
    with full_disk(500), pytest.raises(DiskError, match=r"safetensors: cannot be written \(.*\); make room"):
        fill(cache, videos, pipeline)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "cache.json"]
    fill(cache, videos[:2], pipeline)
    with read_only_disk(), pytest.raises(DiskError, match="Read-only"):
        fill(cache, videos, pipeline)
    fill(cache, videos, pipeline)
    assert contents(cache).keys() == contents(whole).keys()
    with full_disk(50), pytest.raises(DiskError, match=r"cache.json: cannot be written"):
        ClipCache.create(tmp_path / "other", settings(pipeline))
    assert list((tmp_path / "other").iterdir()) == []
