"""Files <-> pixels: which frames come back, from which files, and how bad files are named."""

import os
import wave
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lvdm.errors import ConfigError, UserError, VideoError
from lvdm.video import (
    check_video,
    contact_sheet,
    frame_indices,
    frame_step,
    load_clip,
    probe,
    read_animation,
    read_frames,
    reading,
    resize_crop,
    side_by_side,
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
    yield folder / "empty.mp4", "not a readable video"
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


# -- writing --------------------------------------------------------------------------------------------------------


def test_mp4_round_trip(tmp_path):
    scene = torch.zeros(12, 33, 47, 3, dtype=torch.uint8)  # odd sides, a coloured square that moves
    scene[..., 2] = torch.linspace(0, 255, 47).to(torch.uint8)
    for index in range(12):
        scene[index, 8:20, index : index + 16] = torch.tensor([220, 30, 90], dtype=torch.uint8)
    path = write_video(tmp_path / "deep" / "a.mp4", scene, fps=7.5)
    info = probe(path)
    assert (info.num_frames, round(info.fps, 6), info.height, info.width) == (12, 7.5, 34, 48)
    back = read_frames(path, range(12)).int()
    assert (back[:, :33, :47] - scene.int()).abs().float().mean() < 4
    assert (back[:, 33] - back[:, 32]).abs().float().mean() < 6  # the added row repeats its neighbour
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]


def test_gif_keeps_colours_and_time(tmp_path):
    scene = pixels(10)
    scene[:, 16:, 24:] = torch.tensor([200, 40, 10], dtype=torch.uint8)
    path = write_video(tmp_path / "a.gif", scene, fps=8)
    with Image.open(path) as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
            shown = torch.from_numpy(np.array(image.convert("RGB"))).int()
            assert (shown - scene[index].int()).abs().float().mean() < 3
        assert image.n_frames == 10 and image.info["loop"] == 0
    assert sum(durations) == 1250


def test_gif_dithers_colours_that_its_palette_lacks(tmp_path):
    ramp = torch.linspace(0, 255, 128)
    scene = torch.stack([*torch.meshgrid(ramp, ramp, indexing="ij"), 255 - ramp.expand(128, -1)], -1).byte()[None]
    with Image.open(write_video(tmp_path / "a.gif", scene, fps=8)) as image:
        shown = torch.from_numpy(np.array(image.convert("RGB"))).float()
    means = [x.unflatten(0, (16, 8)).unflatten(2, (16, 8)).mean((1, 3)) for x in (shown, scene[0].float())]
    assert (means[0] - means[1]).abs().max() < 5


def test_png_folder(tmp_path):
    scene = pixels(3, 5, 7)
    path = write_video(tmp_path / "frames", scene, fps=8)
    files = sorted(path.iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    assert torch.equal(torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]), scene)
    write_video(path, scene[:2], fps=8, overwrite=True)
    assert len(list(path.iterdir())) == 2
    (path / "notes.md").write_text("mine")
    with pytest.raises(VideoError, match="not a folder of PNG"):
        write_video(path, scene, fps=8, overwrite=True)
    assert (path / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "frames"])
def test_results_are_overwritten_only_on_request(tmp_path, name):
    write_video(tmp_path / name, pixels(2), fps=8)
    with pytest.raises(VideoError, match="exists already"):
        write_video(tmp_path / name, pixels(3), fps=8)
    write_video(tmp_path / name, pixels(3), fps=8, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_bad_pixels_and_endings_are_refused(tmp_path):
    for path, video, fps, reason in (
        ("a.wmv", pixels(2), 8, "'.wmv'"),
        ("a.mp4", pixels(2).float(), 8, "uint8"),
        ("a.mp4", pixels(2)[0], 8, "(t, h, w, 3)"),
        ("a.mp4", pixels(2)[:0], 8, "(t, h, w, 3)"),
        ("a.mp4", pixels(2), 0, "frame rate"),
    ):
        with pytest.raises(VideoError) as caught:
            write_video(tmp_path / path, video, fps)
        assert reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    for name in ("a.gif", "frames"):
        with pytest.raises(UserError, match="No space left"):
            write_video(tmp_path / name, pixels(2), fps=8)
    assert list(tmp_path.iterdir()) == []


# -- montage --------------------------------------------------------------------------------------------------------


def test_side_by_side():
    tall, small = pixels(5, 40, 30), pixels(3, 20, 30)
    plain = side_by_side([tall, small])
    assert plain.shape == (5, 40, 30 + 4 + 60, 3) and plain.dtype == torch.uint8
    assert torch.equal(plain[:, :, :30], tall)
    assert torch.equal(plain[3:, :, 34:], plain[2:3, :, 34:].expand(2, -1, -1, -1))  # the shorter one holds
    labelled = side_by_side([tall, small], ["reference", "a label that is much too long for its video"])
    strip = labelled.shape[1] - 40
    assert strip >= 14 and torch.equal(labelled[:, strip:], plain)
    assert labelled[0, :strip, :30].min() < 128 and labelled[0, :strip, 34:].min() < 128  # text is there
    assert torch.equal(labelled[0, :strip, 30:34], torch.full_like(labelled[0, :strip, 30:34], 255))
    with pytest.raises(VideoError, match="labels"):
        side_by_side([tall], ["a", "b"])
    with pytest.raises(VideoError, match="at least one frame"):
        side_by_side([])


def test_contact_sheet():
    sheet = contact_sheet([pixels(9, 20, 30), pixels(2, 20, 30)], ["one", "two"], frames=3)
    assert sheet.width == 3 * 30 + 2 * 4
    array = np.array(sheet)
    strip = (sheet.height - 4) // 2 - 20
    assert [array[strip + 15, x, 0] for x in (20, 54, 88)] == [grey(0), grey(4), grey(8)]
    assert contact_sheet([pixels(2, 20, 30)]).size == (64, 20)


@pytest.mark.parametrize("name", ["a.webm", "a.webp"])
def test_webm_and_webp_keep_frames_time_and_bytes(tmp_path, name):
    scene = torch.stack([torch.full((32, 48, 3), 20 + 20 * i, dtype=torch.uint8) for i in range(6)])
    path = write_video(tmp_path / name, scene, fps=8)
    if name == "a.webm":
        assert (probe(path).num_frames, probe(path).fps, probe(path).width) == (6, 8, 48)
        frames = read_frames(path, range(6))
    else:
        frames, rate = read_animation(path)
        assert rate == pytest.approx(8, abs=0.05)
    assert frames.shape == scene.shape and (frames.int() - scene.int()).abs().max() <= 6
    again = write_video(tmp_path / f"b{path.suffix}", scene, fps=8)
    assert again.read_bytes() == path.read_bytes()  # the same pixels make the same file
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(VideoError, match="cannot be read"):
        read_animation(path)
