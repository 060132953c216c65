"""Files <-> pixels: which frames come back, from which files, and how bad files are named."""

import os
import wave
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from lvdm.errors import ConfigError, VideoError
from lvdm.video import (
    check_video,
    frame_indices,
    frame_step,
    load_clip,
    probe,
    read_frames,
    reading,
    resize_crop,
    to_frames,
    to_pixels,
    write_video,
)
from tests.lvdm.videos import encode, grey, pixels, rotated, trimmed, truncated

needs_decord = pytest.mark.skipif(reading.decord is None, reason="decord exists on x86-64 only")
VARIABLE = np.cumsum([0, *np.random.default_rng(0).integers(20, 90, 39)]).tolist()


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("mp4") / "plain.mp4")


def levels(frames: torch.Tensor) -> list[int]:
    """The grey level at the centre of each frame."""
    return [int(frame[frame.shape[0] // 2, frame.shape[1] // 2, 0]) for frame in frames]


def assert_are(frames: torch.Tensor, indices: list[int]) -> None:
    """Neighbouring frames differ by 6 levels, coding by at most 2."""
    assert all(abs(level - grey(index)) <= 2 for level, index in zip(levels(frames), indices, strict=True))


FILES = {
    "plain.mp4": {},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1"}},
    "variable.mp4": {"times": VARIABLE},
    "variable.mkv": {"times": VARIABLE},
    "odd.mp4": {"size": (31, 45)},
    "frames_out_of_order.avi": {"codec": "mpeg4", "options": {"qmin": "1", "qmax": "2"}},
    "no_count.ts": {},
    "no_count.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
}


@pytest.mark.parametrize("name", FILES)
def test_every_container_gives_the_frames_that_were_asked_for(tmp_path, name):
    path = encode(tmp_path / name, **FILES[name])
    info = check_video(path)
    assert (info.num_frames, info.height, info.width) == (40, *FILES[name].get("size", (32, 48)))
    expected = 39 * 1000 / VARIABLE[-1] if "times" in FILES[name] else 25
    assert info.fps == pytest.approx(expected, rel=1e-2)
    indices = [39, 0, 17, 5, 17, 38, 26]
    frames = read_frames(path, indices)
    assert frames.dtype == torch.uint8
    assert_are(frames, indices)
    assert torch.equal(frames, read_frames(path, indices, "pyav"))
    assert torch.equal(frames, read_frames(path, range(40), "pyav")[indices])


@needs_decord
@pytest.mark.parametrize("name", ["plain.mp4", "variable.mp4", "variable.mkv", "no_count.webm"])
def test_decord_and_pyav_give_the_same_frames(tmp_path, name):
    path = encode(tmp_path / name, **FILES[name] | {"size": (48, 64)})  # decord refuses 32x48
    indices = np.random.default_rng(1).permutation(40).tolist()
    assert torch.equal(read_frames(path, indices, "decord"), read_frames(path, indices, "pyav"))


@needs_decord
def test_decord_is_not_used_where_it_returns_wrong_frames(tmp_path, mp4):
    for path in (
        encode(tmp_path / "a.avi", codec="mpeg4"),
        encode(tmp_path / "a.ts"),
        encode(tmp_path / "open_gop.mp4", **FILES["open_gop.mp4"]),
        rotated(mp4, tmp_path / "r.mp4", 1),
        trimmed(mp4, tmp_path / "t.mp4", 400, 800),
    ):
        with pytest.raises(VideoError, match="decord"):
            read_frames(path, [0], "decord")


def test_without_decord_everything_is_read_with_pyav(mp4, monkeypatch):
    expected = read_frames(mp4, [3, 30])
    monkeypatch.setattr(reading, "decord", None)
    assert torch.equal(read_frames(mp4, [3, 30]), expected)
    with pytest.raises(VideoError, match="not installed"):
        read_frames(mp4, [3], "decord")


@pytest.mark.parametrize(("turns", "corner"), [(1, (0, -1)), (2, (-1, -1)), (3, (-1, 0))])
def test_rotated_videos_come_upright(tmp_path, mp4, turns, corner):
    path = rotated(mp4, tmp_path / "rotated.mp4", turns)
    info, frames = probe(path), read_frames(path, [4, 20])
    assert frames.shape[1:3] == (info.height, info.width) == ((48, 32) if turns % 2 else (32, 48))
    assert_are(frames, [4, 20])
    corners = {(y, x): int(frames[0, y, x, 0]) for y in (0, -1) for x in (0, -1)}
    assert max(corners, key=corners.get) == corner
    assert sorted(corners.values())[2] < 100 < corners[corner]


def test_an_edit_list_hides_frames(tmp_path, mp4):
    path = trimmed(mp4, tmp_path / "trimmed.mp4", start=400, duration=800)  # frames 10 to 29 at 25 fps
    assert check_video(path).num_frames == 20
    assert_are(read_frames(path, [0, 7, 19]), [10, 17, 29])


def test_a_gif_is_read(tmp_path):
    path = write_video(tmp_path / "a.gif", pixels(9), fps=10)
    assert probe(path).num_frames == 9
    assert_are(read_frames(path, [8, 2]), [8, 2])


def bad_files(folder, mp4):
    early_header = encode(folder / "early.mp4", container={"movflags": "faststart"})
    (folder / "text.mp4").write_text("not a video\n" * 50)
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    yield truncated(mp4, folder / "no_header.mp4", 0.5), "not a readable video"
    yield truncated(early_header, folder / "cut.mp4", 0.85), "cut off"
    yield truncated(encode(folder / "whole.avi", codec="mpeg4"), folder / "cut.avi", 0.9), "cut off"
    yield folder / "text.mp4", "not a readable video"
    yield folder / "empty.mp4", "is empty; fetch it again"
    yield folder / "folder.mp4", "is a folder"
    yield folder / "missing.mp4", "is not there"
    yield silent_wave(folder / "sound.wav"), "no video stream"
    yield no_frames(folder / "none.mp4"), "no video"
    yield no_frames(folder / "none.avi"), "no video frames"


def silent_wave(path):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    return path


def no_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        container.start_encoding()
    return path


def test_bad_files_give_one_sentence(tmp_path, mp4):
    for path, reason in bad_files(tmp_path, mp4):
        for function in (probe, check_video, lambda path: read_frames(path, [0])):
            with pytest.raises(VideoError) as caught:
                function(path)
            message = str(caught.value)
            assert message.startswith(str(path)) and reason in message and "\n" not in message, message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path, mp4):
    path = tmp_path / "secret.mp4"
    path.write_bytes(mp4.read_bytes())
    path.chmod(0)
    with pytest.raises(VideoError, match="permission denied"):
        probe(path)


def test_damage_in_the_middle_is_found(tmp_path):
    path = encode(tmp_path / "a.mp4", container={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    data[-600:-300] = bytes(300)
    path.write_bytes(data)
    assert probe(path).num_frames == 40
    with pytest.raises(VideoError, match="re-encode"):
        check_video(path)


def test_an_index_beyond_the_end(mp4):
    for index in (40, -1):
        with pytest.raises(VideoError, match=f"no frame {index}, only 0 to 39"):
            read_frames(mp4, [0, index])


# -- which frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "count", "options", "expected"),
    [
        (100, 4, {"position": 0.0}, [0, 1, 2, 3]),
        (100, 4, {"position": 1.0}, [96, 97, 98, 99]),
        (101, 3, {"stride": 10}, [40, 50, 60]),
        (100, 4, {"target_fps": 10, "position": 0.0}, [0, 3, 6, 9]),  # 30 -> 10 fps
        (100, 4, {"target_fps": 20, "position": 0.0}, [0, 1, 3, 4]),  # 30 -> 20 fps: every 1.5th
        (100, 4, {"target_fps": 60, "position": 0.0}, [0, 0, 1, 1]),  # 30 -> 60 fps: each twice
        (7, 4, {"stride": 4, "position": 0.9}, [0, 2, 4, 6]),  # too short: the whole video, once
        (3, 5, {"stride": 1}, [0, 0, 1, 1, 2]),  # fewer frames than asked for
        (1, 3, {"stride": 2}, [0, 0, 0]),
        (7, 4, {"stride": 4, "short": "hold"}, [0, 4, 6, 6]),
        (7, 4, {"stride": 4, "short": "loop"}, [0, 4, 1, 5]),
        (7, 1, {"stride": 4}, [3]),
    ],
)
def test_frame_indices(total, count, options, expected):
    assert frame_indices(total, count, source_fps=30, **options) == expected


def test_frame_indices_stay_inside_for_any_rate():
    rng = np.random.default_rng(0)
    for _ in range(300):
        total, count = rng.integers(1, 200), rng.integers(1, 40)
        fps, target, position = rng.uniform(5, 60), rng.uniform(1, 70), rng.random()
        short = str(rng.choice(["stretch", "hold", "loop"]))
        indices = frame_indices(total, count, source_fps=fps, target_fps=target, position=position, short=short)
        assert len(indices) == count and min(indices) >= 0 and max(indices) < total
        step = frame_step(total, count, source_fps=fps, target_fps=target, short=short)
        if (count - 1) * step <= total - 1:  # fits: evenly spaced up to rounding
            assert all(abs(b - a - step) < 1 + 1e-6 for a, b in pairwise(indices))


def test_frame_indices_refuse_what_cannot_be():
    with pytest.raises(ConfigError, match="not both"):
        frame_indices(10, 2, source_fps=30, stride=2, target_fps=10)
    with pytest.raises(VideoError, match="spans 13 frames but the video has 7"):
        frame_indices(7, 4, source_fps=30, stride=4, short="error")
    for options in ({"stride": 0}, {"target_fps": -1}):
        with pytest.raises(ConfigError, match="positive"):
            frame_indices(7, 4, source_fps=30, **options)


# -- pixels ---------------------------------------------------------------------------------------------------------


def test_ranges_are_inverse_to_each_other():
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3)
    frames = to_frames(every)
    assert frames.shape == (3, 2, 16, 16) and frames.min() == -1 and frames.max() == 1
    assert torch.equal(to_pixels(frames), every)
    assert to_pixels(torch.tensor([-7.0, 7.0]).view(2, 1, 1, 1)).flatten().tolist() == [0, 255]
    batch = torch.rand(2, 3, 4, 5, 6) * 2 - 1
    assert to_pixels(batch).shape == (2, 4, 5, 6, 3)
    assert torch.equal(to_pixels(batch)[1], to_pixels(batch[1]))


def test_resize_crop_covers_and_places():
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 64, 1).expand(1, 32, 64, 3).contiguous()
    left, centre, right = (resize_crop(ramp, (32, 32), (0.5, x)) for x in (0.0, 0.5, 1.0))
    assert torch.equal(left, ramp[:, :, :32]) and torch.equal(right, ramp[:, :, 32:])
    assert torch.equal(centre, ramp[:, :, 16:48])
    tall = ramp.transpose(1, 2)
    assert torch.equal(resize_crop(tall, (32, 32), (1.0, 0.0)), tall[:, 32:])
    for size in ((7, 5), (16, 16), (33, 65), (100, 11)):
        assert resize_crop(ramp, size).shape == (1, *size, 3)


def test_resizing_is_antialiased_and_keeps_the_mean():
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    small = resize_crop(stripes, (16, 16))
    assert (small.float() - 100).abs().max() < 8


# -- load_clip ------------------------------------------------------------------------------------------------------


def test_load_clip(mp4):
    clip = load_clip(mp4, num_frames=4, size=(16, 16), fps=5, position=0.0)
    assert clip.shape == (3, 4, 16, 16)
    assert_are(to_pixels(clip), [0, 5, 10, 15])
    assert to_pixels(load_clip(mp4, 4, (16, 16), crop=(0.0, 0.0)))[0, 0, 0, 0] > 200  # the white corner
