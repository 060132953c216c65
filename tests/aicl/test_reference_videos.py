"""A reference in every form that a call takes, and one sentence for every other."""

import numpy as np
import pytest
import torch
from PIL import Image

from aicl import Reference
from aicl.reference_videos import check_reference, read_clip, reference_rows
from lvdm.errors import ConfigError, VideoError
from lvdm.video import frame_files, write_video
from tests.aicl.test_pipeline import PROMPT, generate, pixels, tiny_pipeline

SIZE = (32, 32)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_every_form_of_the_same_frames_gives_the_same_video(pipe, tmp_path):
    video = pixels(0)
    folder = write_video(tmp_path / "frames", video, fps=4)
    images = [Image.fromarray(frame) for frame in video.numpy()]
    expected = generate(pipe, references=[video])
    forms = [video, video.numpy(), images, list(video), tuple(video.numpy()), folder, str(folder)]
    for form in [*forms, Reference(video), [Reference(folder)], pipe.encode_references(folder, PROMPT)]:
        assert torch.equal(generate(pipe, references=form), expected)
    reversed_colours = video.numpy()[..., ::-1]  # such as OpenCV's, a view that torch does not take
    assert torch.equal(generate(pipe, references=reversed_colours), generate(pipe, references=video.flip(-1)))
    assert torch.equal(generate(pipe, references=[images, folder]), generate(pipe, references=[video, video]))


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path):
    video = pixels(3, frames=12)
    for number, frame in enumerate(video.numpy()):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")  # 10 after 9, not after 1
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    assert [path.stem for path in frame_files(tmp_path)] == [f"frame{number}" for number in range(12)]
    clip = read_clip(Reference(tmp_path), 12, SIZE, fps=8)
    assert torch.equal(clip, read_clip(Reference(video), 12, SIZE, fps=8))
    assert read_clip(Reference(tmp_path), 4, (16, 48), fps=8).shape == (3, 4, 16, 48)


def test_captions_and_weights_belong_to_their_reference(pipe):
    two = [Reference(pixels(0), "a blue person runs", weight=1.0), Reference(pixels(1), weight=0.0)]
    alone = generate(pipe, references=Reference(pixels(0), "a blue person runs"))
    assert (generate(pipe, references=two).int() - alone.int()).abs().max() <= 1
    even = generate(pipe, references=[pixels(0), pixels(1)])
    assert torch.equal(generate(pipe, references=[Reference(pixels(i), weight=3.0) for i in range(2)]), even)
    assert not torch.equal(generate(pipe, references=[Reference(pixels(0), weight=3.0), pixels(1)]), even)


def test_shorthand_of_the_command_line_and_of_prompts_files(tmp_path):
    half = Reference.of("a.mp4@0.5")
    assert (str(half.video), half.weight, half.caption) == ("a.mp4", 0.5, None)
    odd = tmp_path / "a@2"
    odd.touch()
    assert Reference.of(str(odd)).video == odd  # a file of that name is meant, if there is one
    written = Reference.of({"video": "a.mp4", "caption": "a man runs", "weight": 2})
    assert (str(written.video), written.caption, written.weight) == ("a.mp4", "a man runs", 2.0)
    assert Reference.of(half) is half


def test_rows_are_shared_or_one_each():
    shared = reference_rows(["a.mp4", "b.mp4"], count=3)
    assert [[each.name for each in row] for row in shared] == [["a.mp4", "b.mp4"]]
    apart = reference_rows([["a.mp4"], ["b.mp4"]], count=2)
    assert [[each.name for each in row] for row in apart] == [["a.mp4"], ["b.mp4"]]
    assert reference_rows((), count=2) == [] and len(reference_rows("a.mp4", count=2)) == 1


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (7, "references must be one or a list of them, got 7"),
        ([7], "a reference must be a file, a folder of frames, pixels or motion features, got 7"),
        ([{"a.mp4"}], "pixels or motion features, got a set"),
        ([["a.mp4"], []], "every prompt needs the same number of references"),
        ([["a.mp4"], ["b.mp4"], ["c.mp4"]], "2 prompts need one list of references or 2, got 3"),
        ("", "the name of a reference is empty"),
        ("a\0.mp4", "has a NUL character"),
        ("a\udcff.mp4", "has half a character"),
    ],
)
def test_anything_else_is_one_sentence(references, message):
    with pytest.raises(ConfigError, match=message):
        reference_rows(references, count=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reference("a.mp4", weight=-1), "the weight of reference a.mp4 is -1: it must be from 0 up"),
        (lambda: Reference("a.mp4", weight=float("nan")), "must be from 0 up and finite"),
        (lambda: Reference("a.mp4", caption="a\0"), "the caption of a reference"),
        (lambda: Reference.of({"video": 3}, "line 1"), "line 1.video must be a file or a folder, got 3"),
        (lambda: Reference.of({"vidoe": "a"}, "line 1"), "did you mean 'video'"),
        (lambda: Reference.of({"caption": "a"}, "line 1"), "missing key 'video' in line 1"),
        (lambda: check_reference(Reference(np.zeros((4, 8, 8, 3), int))), "must be uint8"),
        (
            lambda: check_reference(Reference(np.full((4, 8, 8, 3), "no"))),
            "pixels must be numbers, got an array of <U2",
        ),
        (lambda: check_reference(Reference([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))])), "one size"),
    ],
)
def test_what_is_no_reference_is_one_sentence(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_folders_that_show_no_action(tmp_path):
    with pytest.raises(VideoError, match="holds no images"):
        check_reference(Reference(tmp_path))
    (tmp_path / "clip.MP4").touch()
    with pytest.raises(VideoError, match=r"holds videos, such as clip\.MP4"):
        check_reference(Reference(tmp_path))
    (tmp_path / "clip.MP4").unlink()
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(VideoError, match="a single frame shows no action"):
        check_reference(Reference(tmp_path))
    (tmp_path / "two.png").write_text("no image")
    with pytest.raises(VideoError, match=r"two\.png cannot be read"):
        read_clip(Reference(tmp_path), 2, SIZE, fps=8)


def test_features_of_different_prompts_go_together(pipe):
    prompts = [PROMPT, "a blue person jumps"]
    parts = [pipe.encode_references(pixels(i), prompt) for i, prompt in enumerate(prompts)]
    direct = generate(pipe, prompts, [[pixels(0)], [pixels(1)]])
    assert (generate(pipe, prompts, [[part] for part in parts]).int() - direct.int()).abs().max() <= 1
    with pytest.raises(ConfigError, match="at the same places"):
        generate(pipe, prompts, [[parts[0]], [pixels(1)]])
    with pytest.raises(ConfigError, match="the weights of references must be the same"):
        generate(pipe, prompts, [[pixels(0)], [Reference(pixels(1), weight=2.0)]])


def test_an_animated_image_is_a_reference(tmp_path):
    scene = torch.stack([torch.full((32, 32, 3), 20 * i, dtype=torch.uint8) for i in range(8)])
    path = write_video(tmp_path / "a.webp", scene, fps=8)
    clip = read_clip(Reference(path), 4, SIZE, fps=4)
    assert clip.shape == (3, 4, *SIZE) and (clip.diff(dim=1).mean((0, 2, 3)) > 0.2).all()  # every other frame
