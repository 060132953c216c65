"""Pixels -> files: what players show again, what is refused, montages."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lvdm.errors import UserError, VideoError
from lvdm.video import contact_sheet, probe, read_animation, read_frames, side_by_side, text_strip, write_video
from tests.lvdm.videos import grey, pixels


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


def test_a_png_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    frames, move = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), os.replace
    write_video(tmp_path / "frames", frames, fps=8)

    def full(source, target):
        if Path(target) == tmp_path / "frames" and not str(source).endswith(".old"):
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(VideoError, match="No space left"):
        write_video(tmp_path / "frames", frames[:1], fps=8, overwrite=True)
    assert len(list((tmp_path / "frames").iterdir())) == 2 and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    write_video(tmp_path / "frames", frames[:1], fps=8, overwrite=True)
    assert len(list((tmp_path / "frames").iterdir())) == 1 and len(list(tmp_path.iterdir())) == 1


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
        ("a.mp4", pixels(2).numpy(), 8, "not a ndarray"),
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


@pytest.mark.parametrize("height", [14, 16, 21, 26])
@pytest.mark.parametrize(("first", "second"), [("its", "features"), ("R", "of:"), ("in", "striped")])
def test_words_of_a_label_stand_apart(first, second, height):
    inked = [(text_strip(text, 120, height) < 200).any(2).any(0) for text in (first + second, f"{first} {second}")]
    joined, apart = (max(map(len, _gaps(ink))) for ink in inked)
    assert apart >= 2 and apart > joined


def _gaps(ink):
    """Columns without ink between those with it, as one string for each gap."""
    return "".join("#" if column else "." for column in ink).strip(".").split("#")


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
