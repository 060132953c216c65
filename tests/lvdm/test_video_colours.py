"""Colours of files: high dynamic range, and those that do not say how their colours are coded."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from lvdm.errors import VideoError
from lvdm.video import open_video, read_frames
from tests.lvdm.videos import oriented


@pytest.mark.parametrize(("transfer", "white"), [(16, 0.5807), (18, 0.75)])  # PQ, HLG: diffuse white by BT.2408
def test_high_dynamic_range_becomes_standard(tmp_path, transfer, white):
    path, steps = tmp_path / "hdr.mp4", np.round(np.append(np.linspace(0, 0.9, 7), white) * 65535).astype(np.uint16)
    image = np.repeat(np.repeat(steps, 16)[None], 32, 0)[..., None].repeat(3, 2)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 128, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = transfer, 9, 9, 1
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(image, format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    shown = read_frames(path, [3])[0, 16, 8::16].int()
    assert (shown - shown[:, :1]).abs().max() <= 2  # grey stays grey
    levels = shown[:, 0].tolist()
    assert levels[:7] == sorted(levels[:7]) and levels[0] < 3 and levels[6] > 250
    assert abs(levels[7] - 239) <= 3  # white is a little below the brightest, which highlights have


COLOURS = ((200, 40, 40), (40, 180, 60), (50, 60, 210))


def coloured(path, height, width, matrix, named=False):
    """Three vertical bars of COLOURS, coded with `matrix` (1: BT.709, 5: BT.601), which the file names or not."""
    bars = np.array(COLOURS, dtype=np.uint8).repeat(-(-width // 3), 0)[:width]
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.tile(bars, (height, 1, 1))), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "5", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.colorspace = frame.colorspace = matrix if named else 2
        for index in range(2):
            frame.pts, frame.time_base = index, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("height", "width", "matrix", "named"),
    [
        (720, 1280, 1, False),
        (578, 32, 1, False),
        (16, 1280, 1, False),
        (576, 1278, 5, False),
        (720, 1280, 5, True),
        (32, 48, 1, True),
    ],
)
def test_colours_of_a_file_that_names_no_matrix_are_taken_as_players_do(tmp_path, height, width, matrix, named):
    path = coloured(tmp_path / "a.mp4", height, width, matrix, named)
    shown = read_frames(path, [1])[0, height // 2, width // 6 :: width // 3][:3].int()
    assert (shown - torch.tensor(COLOURS)).abs().max() <= 4


def test_the_stored_size_decides_about_colours(tmp_path):
    stored = coloured(tmp_path / "stored.mp4", 32, 1280, 1)
    upright = read_frames(oriented(stored, tmp_path / "a.mp4", (0, 1, -1, 0)), [0])
    assert upright.shape[1:3] == (1280, 32)
    assert torch.equal(upright, read_frames(stored, [0]).transpose(1, 2).flip(2))


def test_decord_is_not_let_near_colours_that_it_takes_otherwise(tmp_path):
    assert open_video(coloured(tmp_path / "named.mp4", 720, 1280, 1, named=True)).plain
    path = coloured(tmp_path / "a.mp4", 720, 1280, 1)
    assert not open_video(path).plain
    with pytest.raises(VideoError, match="let the reader be 'auto'"):
        read_frames(path, [0], reader="decord")
