"""Files as they come from phones, cameras, broadcasts and bad copies: what a player shows is what is read."""

import struct
from dataclasses import replace
from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest
import torch

from lvdm.data import AugmentationConfig, ClipCache, ClipConfig, ClipDataset, ClipRecord, uniform_sampler
from lvdm.data.caching import cache_clips
from lvdm.data.checking import check_records
from lvdm.data.datamodule import ClipDataModule
from lvdm.errors import VideoError
from lvdm.models.autoencoder import AutoencoderKL
from lvdm.models.codec import LatentCodec
from lvdm.video import (
    VIDEO_ENDINGS,
    Video,
    check_video,
    frame_indices,
    load_clip,
    open_video,
    probe,
    read_frames,
    reading,
    to_pixels,
    write_video,
)
from lvdm.video.timing import PacketTime, presentation, uneven
from tests.lvdm.videos import encode, grey, oriented, pixels

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 255, (30, 40, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)


def levels(frames: torch.Tensor) -> list[int]:
    return [int(frame[frame.shape[0] // 2, frame.shape[1] // 2, 0]) for frame in frames]


def noisy(path, codec, frames=40, options=None):
    """A moving pattern that leaves no packet nearly empty, so that damage hits something."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options={"g": "12"} | (options or {}))
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p"
        for index in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(NOISE, 3 * index, 1), format="rgb24")))
        file.mux(stream.encode())
    return path


# -- how frames look ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("swap", "mirror_x", "mirror_y"), list(product((False, True), repeat=3)))
def test_all_eight_orientations(tmp_path, swap, mirror_x, mirror_y):
    """A display matrix takes a stored point (x, y) to (a x + c y, b x + d y)."""
    plain = encode(tmp_path / "plain.mp4", frames=6)
    sx, sy = (-1 if mirror_x else 1), (-1 if mirror_y else 1)
    path = oriented(plain, tmp_path / "turned.mp4", (0, sy, sx, 0) if swap else (sx, 0, 0, sy))
    stored = read_frames(plain, [0, 5])
    expected = stored.transpose(1, 2) if swap else stored
    expected = expected.flip([axis for axis, mirrored in ((2, mirror_x), (1, mirror_y)) if mirrored])
    frames = read_frames(path, [0, 5])
    assert torch.equal(frames, expected)
    info = probe(path)
    assert (info.height, info.width) == tuple(expected.shape[1:3])


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(64, 45), 68), (Fraction(8, 9), 43), (Fraction(1), 48)])
def test_pixels_become_square(tmp_path, aspect, width):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for image in pixels(4).numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    assert (probe(path).height, probe(path).width) == (32, width)
    assert read_frames(path, [1, 3]).shape == (2, 32, width, 3)
    assert abs(levels(read_frames(path, [3]))[0] - grey(3)) <= 2


def test_the_stream_that_players_choose(tmp_path):
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as file:
        streams = []
        for size in (16, 64):
            stream = file.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = size, size, "yuv420p"
            streams.append(stream)
        streams[0].disposition = av.stream.Disposition(0)
        streams[1].disposition = av.stream.Disposition.default
        for stream in streams:
            for image in pixels(10, stream.height, stream.width).numpy():
                file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            file.mux(stream.encode())
    assert probe(path).width == 64 and read_frames(path, [9]).shape == (1, 64, 64, 3)


def test_interlaced_frames_are_deinterlaced(tmp_path):
    path = tmp_path / "fields.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"x264-params": "interlaced=1", "crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p"
        for index in range(12):
            image = np.roll(NOISE, 6 * index, 1).copy()
            image[1::2] = np.roll(NOISE, 6 * index + 3, 1)[1::2]  # the second field is later
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    with av.open(str(path)) as file:
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    frames = read_frames(path, range(12)).numpy()
    assert len(frames) == probe(path).num_frames == check_video(path).num_frames == 12

    def combing(video):  # how much a row differs from the mean of its neighbours
        video = video.astype(float)
        return np.abs(video[:, 1:-1:2] - (video[:, :-2:2] + video[:, 2::2]) / 2).mean()

    assert combing(frames) < combing(stored) / 2
    assert torch.equal(read_frames(path, [7, 2]), torch.from_numpy(frames[[7, 2]]))


# -- when frames are shown ------------------------------------------------------------------------------------------

SLOWING = [round(1000 * k / 30) for k in range(30)] + [1000 + 200 * k for k in range(15)]  # 30 fps, then 5
PAUSE = [round(1000 * k / 30) for k in range(30)] + [3500 + round(1000 * k / 30) for k in range(14)]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("stamps", [SLOWING, PAUSE], ids=["slowing", "pause"])
def test_frames_are_chosen_by_their_time(tmp_path, stamps, ending):
    path = encode(tmp_path / f"a.{ending}", frames=len(stamps), times=stamps)
    video, times = open_video(path), np.array(stamps) / 1000
    assert video.info.times == pytest.approx(times, abs=2e-3)
    for count, position in ((8, 0.0), (20, 0.37), (24, 1.0)):
        indices, rate = video.choose(count, fps=8, position=position)
        start = position * max(times[-1] - (count - 1) / 8, 0)
        assert rate == pytest.approx(8)
        assert indices == [int(np.flatnonzero(times <= start + k / 8 + 6e-4)[-1]) for k in range(count)]
    indices = video.choose(8, fps=8, position=0.0)[0]
    assert all(abs(a - grey(i)) <= 2 for a, i in zip(levels(video.read(indices)), indices))
    assert torch.equal(to_pixels(load_clip(path, 8, (32, 48), fps=8, position=0.0)), video.read(indices))


def test_rules_for_short_videos_of_varying_rate():
    times = np.array(SLOWING) / 1000
    rule = {"source_fps": (len(times) - 1) / times[-1], "times": times, "target_fps": 8.0}
    held = frame_indices(len(times), 40, short="hold", **rule)
    assert held[31:] == [len(times) - 1] * 9 and held[:3] == [0, 3, 7]
    stretched = frame_indices(len(times), 40, short="stretch", **rule)
    assert stretched[0] == 0 and stretched[-1] == len(times) - 1
    looped = frame_indices(len(times), 40, short="loop", **rule)
    assert looped[:31] == held[:31] and looped[-1] < 30
    with pytest.raises(VideoError, match="spans"):
        frame_indices(len(times), 40, short="error", **rule)


def test_a_constant_rate_in_coarse_ticks_counts_as_constant(tmp_path):
    stamps = [round(1000 * k / 30) for k in range(40)]
    assert open_video(encode(tmp_path / "a.mkv", times=stamps)).info.times is None
    assert open_video(write_video(tmp_path / "a.gif", pixels(20), fps=8)).info.times is None


def packets(stamps, keys=(0,), decoded=None):
    decoded = decoded or [None] * len(stamps)
    return [PacketTime(stamp, other, number in keys) for number, (stamp, other) in enumerate(zip(stamps, decoded))]


def test_missing_and_restarting_time_stamps():
    whole = presentation(packets([0, 120, 40, 80, 160]), step=40)
    assert whole.ticks.tolist() == [0, 40, 80, 120, 160] and whole.exact and whole.known
    late = presentation(packets([None, None, 0, 40, 80]), step=40)
    assert late.ticks.tolist() == [-80, -40, 0, 40, 80] and not late.exact
    none = presentation(packets([None] * 4), step=40)
    assert none.ticks.tolist() == [0, 40, 80, 120] and not none.known
    decoding = presentation(packets([None] * 4, decoded=[-40, 0, 40, 200]), step=40)
    assert decoding.ticks.tolist() == [-40, 0, 40, 200] and decoding.known and not decoding.exact
    repeated = presentation(packets([0, 40, 40, 80]), step=40)
    assert repeated.ticks.tolist() == [0, 40, 40, 80] and not repeated.exact
    joined = presentation(packets([0, 40, 80, 0, 40, 80], keys=(0, 3)), step=40)
    assert joined.ticks.tolist() == [0, 40, 80, 120, 160, 200] and not joined.exact
    pause = presentation(packets([0, 3500, 40, 80, 3540]), step=40)
    assert pause.ticks.tolist() == [0, 40, 80, 3500, 3540] and pause.exact
    assert uneven(pause.ticks) and not uneven(joined.ticks) and not uneven(np.array([0, 33, 67, 100, 133]))


def test_reading_from_key_frames_gives_the_same_frames(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", frames=60)
    video = open_video(path)
    wanted, seeks = [59, 3, 40, 3], []
    original = Video._key_before
    monkeypatch.setattr(Video, "_key_before", lambda self, index: seeks.append(index) or original(self, index))
    by_time = video.read(wanted)
    assert seeks and len(video.keys) >= 5
    from_the_start = replace(video, keys=np.array([], dtype=np.int64))
    stamps_that_fit_nothing = replace(video, ticks=video.ticks + 7)
    for other in (from_the_start, stamps_that_fit_nothing):
        assert torch.equal(other.read(wanted), by_time)
    assert all(abs(a - grey(i)) <= 2 for a, i in zip(levels(by_time), wanted))


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
def test_a_file_cut_between_key_frames_begins_at_the_first_one(tmp_path, ending):
    """As tools that cut without encoding anew leave it, and a broadcast that is recorded from any moment on."""
    path = tmp_path / f"cut.{ending}"
    with av.open(str(encode(tmp_path / "whole.mp4", frames=60))) as whole, av.open(str(path), "w") as cut:
        source = whole.streams.video[0]
        stream = cut.add_stream_from_template(source)
        packets = [packet for packet in whole.demux(source) if packet.size]
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        first = round(float(packets[keys[2]].pts * source.time_base * source.average_rate))  # frame of the third key
        for packet in packets[keys[1] + 2 :]:
            packet.stream = stream
            cut.mux(packet)
    info = check_video(path)
    assert info.num_frames == 60 - first and info.damaged == 0 and info.fps == pytest.approx(25, rel=1e-2)
    expected = [grey(number) for number in range(first, 60)]
    everything = levels(read_frames(path, range(info.num_frames)))
    assert all(abs(a - b) <= 2 for a, b in zip(everything, expected, strict=True))
    assert abs(levels(read_frames(path, [info.num_frames - 1]))[0] - expected[-1]) <= 2


# -- names, endings, containers -------------------------------------------------------------------------------------


def test_names_that_look_like_protocols_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http:x.mp4", "file:y.mp4", "concat:a|b.mp4", "crypto:z.gif", "-.mp4", "%03d.mp4"):
        write_video(name, pixels(3), fps=5)
        assert (tmp_path / name).is_file() and probe(name).num_frames == 3
        assert read_frames(name, [2]).shape == (1, 32, 48, 3)


def test_playlists_open_no_other_file(tmp_path):
    other = encode(tmp_path / "other.ts", frames=6)
    for name, text in (
        ("a.mp4", f"#EXTM3U\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"),
        ("b.mp4", f"ffconcat version 1.0\nfile {other.name}\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(VideoError, match="not a readable video"):
            probe(tmp_path / name)


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("wmv", "msmpeg4v3"), ("flv", "flv"), ("3gp", "mpeg4"), ("mts", "libx264"), ("m2ts", "libx264")],
)
def test_more_endings_are_videos(tmp_path, ending, codec):
    path = tmp_path / f"a.{ending}"
    container = {"mts": "mpegts", "m2ts": "mpegts", "wmv": "asf"}.get(ending)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 144, 176, "yuv420p"
        for image in pixels(12, 144, 176).numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    assert path.suffix in VIDEO_ENDINGS
    assert check_video(path).num_frames == 12
    assert abs(levels(read_frames(path, [7]))[0] - grey(7)) <= 6


@pytest.mark.parametrize("name", ["a\0b.mp4", "x" * 300 + ".mp4", "\ud800.mp4"])
def test_impossible_names_give_one_sentence(tmp_path, name):
    with pytest.raises(VideoError) as caught:
        probe(tmp_path / name)
    assert "\n" not in str(caught.value) and str(caught.value).encode()


# -- damage and size ------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    path = noisy(tmp_path / "a.avi", "mpeg4")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = RNG.integers(0, 255, 1500, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def test_damaged_frames_are_reported_counted_and_warned_about(tmp_path, damaged, caplog):
    info = check_video(damaged)
    assert 0 < info.damaged < info.num_frames
    frames = []
    open_video(damaged).read(range(info.num_frames), damaged=frames)
    assert len(frames) == info.damaged
    report = check_records([ClipRecord(damaged, "a", key="a.avi")], tmp_path / "report.json")
    assert report["broken"] == {}
    assert report["damaged"] == {"a.avi": f"{info.damaged} of {info.num_frames} frames decode with errors"}
    load_clip(damaged, info.num_frames, (16, 16))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(damaged) in caplog.text and "decode with errors" in caplog.text


def test_training_counts_damaged_videos_once(damaged, caplog):
    config = ClipConfig(num_frames=probe(damaged).num_frames, size=(16, 16))
    module = ClipDataModule(ClipDataset([ClipRecord(damaged, "a")], config, uniform_sampler), batch_size=2)
    batches = iter(module.train_dataloader())
    for _ in range(2):
        batch = module.on_before_batch_transfer(next(batches), 0)
    assert "damaged" not in batch and len(module.damaged) == 1 and module.skipped == 0
    assert caplog.text.count("used a damaged video") == 1


def test_caching_says_which_videos_are_damaged(tmp_path, damaged, caplog):
    config = ClipConfig(probe(damaged).num_frames, (16, 16), augmentation=AugmentationConfig(cached_crops=2))
    sizes = {"ch": 32, "out_ch": 3, "in_channels": 3, "resolution": 16, "z_channels": 4, "num_res_blocks": 1}
    codec = LatentCodec(AutoencoderKL(sizes | {"attn_resolutions": [], "ch_mult": [1, 1]}, embed_dim=4))
    cache = ClipCache.create(tmp_path / "cache", {})
    assert cache_clips(cache, [ClipRecord(damaged, "a", key="a.avi")] * 2, config, 0, codec) == 0
    assert caplog.text.count("cached a damaged video") == 1


def tiny_gif(path, side, frames):
    """A few hundred bytes that claim `frames` pictures of side x side pixels."""
    data = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes([255, 0, 0, 0, 0, 255])
    for _ in range(frames):
        control, where = b"\x21\xf9\x04\x04\x0a\x00\x00\x00", struct.pack("<HHHHB", 0, 0, 1, 1, 0)
        data += control + b"\x2c" + where + b"\x02\x02\x44\x01\x00"
    path.write_bytes(data + b"\x3b")
    return path


def test_frames_are_made_small_one_by_one(tmp_path, monkeypatch):
    path, sizes = tiny_gif(tmp_path / "a.gif", 1500, 8), []
    original = reading.resize_crop
    monkeypatch.setattr(
        reading, "resize_crop", lambda video, *rest: sizes.append(video.shape) or original(video, *rest)
    )
    assert load_clip(path, 8, (32, 32)).shape == (3, 8, 32, 32)
    assert sizes == [(1, 1500, 1500, 3)] * 8


def test_too_much_memory_is_refused_before_it_is_taken(tmp_path):
    with pytest.raises(VideoError, match=r"not a readable video|too large"):
        probe(tiny_gif(tmp_path / "huge.gif", 65535, 2))
    path = tiny_gif(tmp_path / "a.gif", 2000, 2)
    with pytest.raises(VideoError, match=r"4.5 GiB; read fewer or smaller"):
        read_frames(path, [0, 1] * 200)


@pytest.mark.parametrize("name", ["a\0b.mp4", "x" * 300 + ".mp4", "\ud800.gif"])
def test_impossible_names_are_refused_before_writing(tmp_path, name):
    with pytest.raises(VideoError, match="is no name of a file"):
        write_video(tmp_path / name, pixels(2), fps=5)
    assert list(tmp_path.iterdir()) == []
