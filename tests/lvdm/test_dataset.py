"""Training samples and batches: contents, broken files, workers, ranks and resuming."""

import json
import logging
import signal
from itertools import islice

import pytest
import torch

from lvdm.data import (
    AugmentationConfig,
    ClipConfig,
    ClipDataModule,
    ClipDataset,
    DataConfig,
    build_datamodule,
    collate,
    read_clip,
)
from lvdm.errors import ConfigError, DataError
from lvdm.video import open_video, read_frames, to_frames
from tests.lvdm.disks import full_disk
from tests.lvdm.videos import records

CONFIG = ClipConfig(num_frames=4, size=(16, 16), stride=2, augmentation=AugmentationConfig(random_crop=True, flip=0.5))


def sample_triple(rng, listed, number=0):
    return [int(index) for index in rng.choice(len(listed), 3, replace=False)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return records(tmp_path_factory.mktemp("videos"), 8)


def break_file(record, folder):
    """The same record, but about a broken copy in another folder."""
    path = folder / record.path.name
    path.write_bytes(record.path.read_bytes()[:200])
    return type(record)(path, record.caption, record.label, record.key)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name


def test_an_item_is_what_the_plan_says(videos):
    dataset = ClipDataset(videos, CONFIG, sample_triple, seed=3)
    item, sample = dataset[11], dataset.sample(11)
    assert item["number"] == 11 and item["skipped"] == []
    assert (item["timestep_u"], item["noise_seed"]) == (sample.timestep_u, sample.noise_seed)
    assert item["frames"].shape == (3, 4, 16, 16) and item["references"].shape == (2, 3, 4, 16, 16)
    for clip, frames, caption, fps in [
        (sample.target, item["frames"], item["caption"], item["fps"]),
        *zip(sample.references, item["references"], item["reference_captions"], item["reference_fps"], strict=True),
    ]:
        shown, rate = read_clip(videos[clip.index], clip.augmentation, CONFIG)
        assert torch.equal(frames, to_frames(shown)) and rate == fps == pytest.approx(5.0)
        assert caption == videos[clip.index].caption


def test_views_show_other_frames_and_windows(videos):
    dataset = ClipDataset(videos[:1], CONFIG)
    items = [dataset[number]["frames"] for number in range(12)]
    starts = {int(item[0, 0, -1, item.shape[-1] // 2] * 100) for item in items}
    assert len(starts) > 3
    assert len({bool(item[0, 0, 0, 0] > 0.9) for item in items}) == 2  # the corner: cropped away, flipped, or there


def test_a_flip_mirrors_all_frames(videos):
    config = ClipConfig(num_frames=4, size=(20, 28), augmentation=AugmentationConfig(random_position=False, flip=1.0))
    frames = ClipDataset(videos[:1], config)[0]["frames"]
    expected = to_frames(read_frames(videos[0].path, [4, 5, 6, 7]))
    assert torch.equal(frames, expected.flip(-1)) and not torch.equal(frames, expected)


def test_the_rate_of_a_stretched_clip_is_what_is_shown(videos):
    config = ClipConfig(num_frames=4, size=(16, 16), stride=5)  # spans 16 of 12 frames: every 11/3-th is taken
    assert ClipDataset(videos[:1], config)[0]["fps"] == pytest.approx(10 * 3 / 11)


def test_collate(videos):
    dataset = ClipDataset(videos, CONFIG, sample_triple)
    batch = collate([dataset[4], dataset[5]])
    assert batch["frames"].shape == (2, 3, 4, 16, 16) and batch["references"].shape == (2, 2, 3, 4, 16, 16)
    assert batch["number"].tolist() == [4, 5] and batch["noise_seed"].dtype == torch.int64
    assert batch["noise_seed"].tolist() == [dataset.sample(n).noise_seed for n in (4, 5)]
    assert batch["timestep_u"].dtype == torch.float64 and batch["fps"].dtype == torch.float32
    assert batch["caption"] == [dataset[4]["caption"], dataset[5]["caption"]]
    assert [len(captions) for captions in batch["reference_captions"]] == [2, 2]
    assert batch["reference_fps"].shape == (2, 2)
    assert "references" not in collate([ClipDataset(videos, CONFIG)[0]])


def test_broken_videos_are_replaced_reported_and_never_tried_twice(videos, tmp_path, monkeypatch):
    listed = [break_file(record, tmp_path) if index in (1, 4, 6) else record for index, record in enumerate(videos)]
    dataset = ClipDataset(listed, CONFIG, sample_triple, seed=1)
    tried = []
    opened = open_video
    monkeypatch.setattr("lvdm.data.dataset.open_video", lambda path: tried.append(str(path)) or opened(path))
    items = [dataset[number] for number in range(20)]
    reports = [error for item in items for error in item["skipped"]]
    assert len(reports) == 3 and all(any(f"{i}.mp4: " in error for error in reports) for i in (1, 4, 6))
    for index in (1, 4, 6):
        assert len([path for path in tried if path == str(listed[index].path)]) == 1
    good = {videos[index].caption for index in (0, 2, 3, 5, 7)}
    assert {item["caption"] for item in items} | {c for item in items for c in item["reference_captions"]} == good
    # What a sample is does not depend on when the broken files were found, only on which are broken.
    fresh = ClipDataset(listed, CONFIG, sample_triple, seed=1)
    warned = ClipDataset(listed, CONFIG, sample_triple, seed=1, known_broken=[listed[i].key for i in (1, 4, 6)])
    for number in (19, 7, 0):
        for other in (fresh, warned):
            item = other[number]
            assert_same(item | {"skipped": []}, items[number] | {"skipped": []})
            assert other is fresh or item["skipped"] == []


def test_samples_without_broken_videos_are_not_touched_by_them(videos, tmp_path):
    whole = ClipDataset(videos, CONFIG, sample_triple)
    dataset = ClipDataset([break_file(videos[0], tmp_path), *videos[1:]], CONFIG, sample_triple)
    same = 0
    for number in range(12):
        sample = whole.sample(number)
        if 0 not in {clip.index for clip in (sample.target, *sample.references)}:
            assert_same(dataset[number] | {"skipped": []}, whole[number])
            same += 1
    assert 0 < same < 12


def test_a_data_set_of_broken_videos_stops(videos, tmp_path):
    dataset = ClipDataset([break_file(record, tmp_path) for record in videos[:2]], CONFIG)
    with pytest.raises(DataError, match=r"2 of 2 are broken; check the data set with aicl check-data"):
        dataset[0]
    with pytest.raises(DataError, match="lists no videos"):
        ClipDataset([], CONFIG)


def test_bad_clip_settings():
    with pytest.raises(ConfigError, match="not both"):
        ClipConfig(num_frames=4, size=(16, 16), stride=2, fps=8)
    with pytest.raises(ConfigError, match="positive"):
        ClipConfig(num_frames=0, size=(16, 16))


# -- batches --------------------------------------------------------------------------------------------------------


def batches(dataset, count, workers=0, start=0, batch_size=2):
    return list(islice(iter(ClipDataModule(dataset, batch_size, workers, start).train_dataloader()), count))


def test_workers_change_nothing(videos):
    dataset = ClipDataset(videos, CONFIG, sample_triple)
    for alone, shared in zip(batches(dataset, 4), batches(dataset, 4, workers=2), strict=True):
        assert_same(alone, shared)


def test_a_run_goes_on_where_it_stopped(videos):
    dataset = ClipDataset(videos, CONFIG, sample_triple)
    whole = batches(dataset, 5)
    for later, expected in zip(batches(dataset, 2, start=6), whole[3:], strict=True):
        assert_same(later, expected)


class Ranked:
    """What a data module asks its trainer."""

    def __init__(self, global_rank, world_size):
        self.global_rank, self.world_size = global_rank, world_size


def test_ranks_share_the_samples(videos):
    dataset = ClipDataset(videos, CONFIG)
    numbers = []
    for rank in range(2):
        module = ClipDataModule(dataset, 2)
        module.trainer = Ranked(rank, 2)
        numbers.append([batch["number"].tolist() for batch in islice(module.train_dataloader(), 2)])
    assert numbers == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_what_stops_a_worker_is_said_in_one_sentence(videos, tmp_path):
    """As without workers: a loader's own message is a traceback."""
    said = []
    for workers in (0, 1):
        listed = [break_file(record, tmp_path) for record in videos]
        with pytest.raises(DataError) as stop:
            batches(ClipDataset(listed, CONFIG), 1, workers)
        said.append(str(stop.value))
    assert said[0] == said[1] and said[0].startswith("sample 0: no readable videos")


def test_workers_report_broken_videos_to_the_main_process(videos, tmp_path, caplog):
    listed = [break_file(record, tmp_path) if index < 3 else record for index, record in enumerate(videos)]
    module = ClipDataModule(ClipDataset(listed, CONFIG), batch_size=2, workers=2)
    with caplog.at_level(logging.WARNING):
        for batch in islice(module.train_dataloader(), 20):
            assert "skipped" not in module.on_before_batch_transfer(batch, 0)
    # Workers share what they know; only two that meet the same file in the same moment both try it.
    assert 3 <= module.skipped <= 6 and len(caplog.records) == module.skipped
    assert f"({module.skipped} so far)" in caplog.records[-1].message and ".mp4" in caplog.records[-1].message
    assert int(module.dataset._broken.sum()) == 3


def test_how_many_clips_a_report_takes_away_is_said(videos, tmp_path):
    report = tmp_path / "check.json"
    config = DataConfig(kind="folder", path=str(tmp_path), clip=CONFIG, report=str(report), workers=0)
    for broken, said in (([], "8 clips from"), ([videos[1].key, "of another folder.mp4"], ", less 1 that ")):
        report.write_text(json.dumps({"broken": dict.fromkeys(broken, "is cut off")}))
        about = build_datamodule(config, 2, 0, records=videos).about
        assert said in about and (" lists as broken" in about) == bool(broken)


def test_a_lack_of_shared_memory_is_said_and_nobody_waits(videos):
    def waited(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(60)
    try:
        data = ClipDataModule(ClipDataset(videos, CONFIG, seed=3), batch_size=4, workers=1)
        with full_disk(5000), pytest.raises(ConfigError, match=r"/dev/shm\) has no room for the next batch"):
            next(iter(data.train_dataloader()))
        assert next(iter(data.train_dataloader()))["frames"].is_shared()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
