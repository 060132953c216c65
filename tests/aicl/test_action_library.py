"""A library of clips: made, added to, asked in every way, and what it refuses."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from aicl.action_embeddings import Embedder
from aicl.action_library import ActionLibrary, add_clips
from aicl.cli.search import draw_sheet
from aicl.evaluation.row import Row
from aicl.puppets.benchmark import PuppetBenchmark
from aicl.puppets.retrieval import found_actions
from lvdm.data.clips import ClipRecord
from lvdm.errors import ConfigError, DataError
from lvdm.video import write_video
from tests.aicl.test_pipeline import tiny_pipeline

CAPTIONS = ["a man is running", "a woman is dancing", "a dog runs", "someone is dancing", "a lake at night"]


@pytest.fixture(scope="module")
def embedder():
    return Embedder(tiny_pipeline())


def moving(seed: int, frames: int = 6) -> torch.Tensor:
    """A bright square that moves over a ground of its own colour."""
    random = np.random.default_rng(seed)
    colour, start, step = random.integers(0, 255, 3), random.integers(0, 20, 2), random.integers(-2, 3, 2)
    video = np.tile(colour.astype(np.uint8), (frames, 32, 32, 1))
    for number, frame in enumerate(video):
        y, x = (start + number * step) % 24
        frame[y : y + 8, x : x + 8] = 255 - colour
    return torch.from_numpy(video)


@pytest.fixture(scope="module")
def made(embedder, tmp_path_factory):
    """(folder of the library, records): five clips with captions, and a recoded copy of the second."""
    root = tmp_path_factory.mktemp("library")
    records = []
    for number, caption in enumerate(CAPTIONS):
        records.append(ClipRecord(write_video(root / f"clips/{number}.mp4", moving(number), fps=4), caption))
    copy = write_video(root / "clips/copy.mp4", moving(1).clamp(max=253), fps=4)
    records.append(ClipRecord(copy, "two people are dancing"))
    assert add_clips(root / "library", records, embedder) == (6, [])
    return root / "library", records


def names(found):
    return [each.path.name for each in found]


def test_verbs_need_no_model_and_copies_are_left_out(made):
    library = ActionLibrary.open(made[0])
    assert library.actions() == {"dance": 3, "run": 2}
    found = library.search("a horse runs", k=5)
    assert sorted(names(found)) == ["0.mp4", "2.mp4"] and found[0].reason == "its caption shares 'run' with the text"
    for seed in range(4):
        dancing = names(library.search("a robot dances", k=5, seed=seed))
        assert len(dancing) == 2 and "3.mp4" in dancing  # of 1.mp4 and its copy, one
    assert len(library.search("a robot dances", k=5, alike=1.1)) == 3
    with pytest.raises(
        DataError, match="no clip of the library shares a verb with 'a man is skiing': it has dance, run"
    ):
        library.search("a man is skiing", by="verbs")


def test_an_example_finds_itself_first_and_its_copy_not_again(made, embedder):
    library = ActionLibrary.open(made[0])
    for way in ("motion", "appearance"):
        found = library.search(clip=moving(3), by=way, k=3, embedder=embedder)
        assert found[0].path.name == "3.mp4" and found[0].score > 0.95 and way in found[0].reason
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    found = names(library.search(clip=made[1][1].path, k=6, embedder=embedder, exclude=[made[1][1].path]))
    assert found[0] == "copy.mp4" and "1.mp4" not in found  # motion, where there is a clip
    text = library.search("a dog runs", by="text", k=2, embedder=embedder)
    assert text[0].path.name == "2.mp4" and text[0].score == pytest.approx(1, abs=1e-4)
    assert library.way("a man is skiing") == "text" and library.way("he dances") == "verbs"


def test_adding_goes_on_where_it_stopped_and_reads_what_changed(made, embedder, tmp_path):
    clips = tmp_path / "clips"
    shutil.copytree(made[0].parent / "clips", clips)
    records = [ClipRecord(clips / record.path.name, record.caption) for record in made[1]]
    folder = tmp_path / "library"

    def stop(batches):
        yield batches[0]
        raise KeyboardInterrupt

    assert add_clips(folder, records[:2], embedder) == (2, [])
    with pytest.raises(KeyboardInterrupt):
        add_clips(folder, records, embedder, stop, batch_size=2)
    assert len(ActionLibrary.open(folder)) == 4  # what was encoded before the interruption is kept
    (clips / "broken.mp4").write_bytes(b"no video")
    added, refused = add_clips(folder, [*records, ClipRecord(clips / "broken.mp4", "a man is running")], embedder)
    assert added == 2 and len(refused) == 1 and "broken.mp4" in refused[0]
    assert add_clips(folder, records, embedder) == (0, [])
    write_video(clips / "0.mp4", moving(9), fps=4, overwrite=True)
    assert add_clips(folder, records, embedder) == (1, [])
    (clips / "2.mp4").unlink()
    library = ActionLibrary.open(folder)
    assert len(library) == 5 and library.search(clip=moving(9), k=1, embedder=embedder)[0].path == clips / "0.mp4"


def test_another_caption_of_a_clip_takes_the_place_of_the_first(made, embedder, tmp_path):
    clip = ClipRecord(made[1][0].path, "a person is moving")
    folder = tmp_path / "library"
    assert add_clips(folder, [clip], embedder) == (1, [])
    captioned = [ClipRecord(clip.path, "a man is skiing"), ClipRecord(clip.path, "a man goes down a hill")]
    assert add_clips(folder, captioned, embedder) == (1, [])
    assert ActionLibrary.open(folder).actions() == {"ski": 1}
    assert ActionLibrary.open(folder).search("a panda is skiing")[0].caption == "a man is skiing"
    assert add_clips(folder, captioned, embedder) == (0, [])


def test_it_says_what_does_not_fit(made, embedder, tmp_path):
    folder, records = made
    library = ActionLibrary.open(folder)
    for arguments, message in (
        ({}, "needs a text or an example clip"),
        ({"text": "he runs", "by": "motion"}, "by motion needs the model that made the library"),
        ({"clip": moving(1), "embedder": object()}, r"must be an Embedder, such as Embedder\(pipe\), got"),
        ({"text": "he runs", "by": "motion", "embedder": embedder}, "by motion needs an example clip"),
        ({"clip": moving(0), "by": "text", "embedder": embedder}, "by text needs a text"),
        ({"text": "he runs", "by": "colour"}, "by is 'colour': choose from verbs, text, motion, appearance"),
        ({"text": "he runs", "k": 0}, "k is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            library.search(**arguments)
    other = tiny_pipeline()
    with torch.no_grad():
        next(other.prism.parameters()).add_(1)
    with pytest.raises(DataError, match="was made with another model"):
        add_clips(folder, records, Embedder(other))
    with pytest.raises(ConfigError, match="made with another model"):
        library.search(clip=moving(0), embedder=Embedder(other))
    with pytest.raises(DataError, match=r"is no library of clips: make one with aicl index"):
        ActionLibrary.open(tmp_path)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match=r"mine\.txt is a file, and a library to search is a folder: make one with"):
        ActionLibrary.open(tmp_path / "mine.txt")
    with pytest.raises(DataError, match="not empty: choose another folder"):
        add_clips(tmp_path, records, embedder)
    with pytest.raises(DataError, match=r"mine\.txt is a file, and a library is a folder"):
        add_clips(tmp_path / "mine.txt", records, embedder)
    other.remove_adapter()
    with pytest.raises(ConfigError, match="there is no adapter"):
        Embedder(other)


def test_a_damaged_part_is_one_sentence(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "library")
    part = tmp_path / "library/parts/00000.safetensors"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"00000\.safetensors is damaged.*remove this file and run aicl index again"):
        ActionLibrary.open(tmp_path / "library")


def test_a_sheet_shows_every_clip(made, tmp_path):
    found = ActionLibrary.open(made[0]).search("he runs", k=2)
    draw_sheet(tmp_path / "sheet.png", found, height=32)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 8 * 32 and sheet.height > 2 * 32


def test_the_puppet_world_chooses_references_from_a_library(embedder, tmp_path):
    embedder.pipe.save_pretrained(tmp_path / "model")
    benchmark = PuppetBenchmark("cpu", size=32, frames=4, library={"model": str(tmp_path / "model"), "clips": 1})
    samples = benchmark.samples(0, 0, 3)
    assert all(set(s.chosen) == {"random", "verbs", "text", "motion", "appearance"} for s in samples)
    row = Row("verbs", model="m", adapter="m", references=1, chosen_by="verbs")
    assert all(row.shown(sample)[0].label == sample.label for sample in samples)
    assert found_actions(samples)["verbs"] == 1
    assert samples[0].chosen == benchmark.samples(0, 0, 1)[0].chosen  # of seed and number alone
    with pytest.raises(ConfigError, match="chosen_by needs references"):
        Row("none", model="m", chosen_by="verbs")
