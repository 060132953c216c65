"""Verbs from captions, eq. 8, index files and the pair_sampler of training triples."""

import numpy as np
import pytest

from aicl.reference_retrieval import (
    RetrievedReference,
    VerbIndex,
    VerbPairSampler,
    build_library,
    load_library,
    save_library,
)
from aicl.verbs import contains, inflections, lemma, phrase, verbs
from lvdm.data.clips import ClipRecord
from lvdm.errors import DataError

CAPTIONS = {
    "Young woman running on the beach at sunset": "run",
    "A man walks his dog in the park": "walk",
    "Close up of chef slicing vegetables on a wooden board": "slice",
    "Aerial view of waves crashing on the rocky shore": "crash",
    "Ocean waves at sunset": "",
    "A man in a running suit stands near the lake": "stand",
    "Empty swimming pool in the backyard of a luxury villa": "",
    "Tall modern building in the city center, timelapse": "",
    "A smiling woman dancing in the rain": "smile dance",
    "Kids play football in the yard": "play",
    "Two girls dance in the park": "dance",
    "People walking on a crowded street in Tokyo": "walk",
    "He is skateboarding down the hill": "skateboard",
    "A boy jumped into the pool": "jump",
    "Man dressed in black on a white background": "",
    "Mountain landscape covered with snow": "",
    "Businesswoman typing on laptop in office": "type",
    "A dog jumps over a fence": "jump",
    "The sun sets over the ocean": "set",
    "Happy family having breakfast in the kitchen": "",
    "The girl has long hair and is looking at the camera": "look",
    "She can swim very fast": "swim",
    "Morning fog over the forest": "",
    "Beautiful wedding ceremony by the sea": "",
    "Bride and groom kissing and hugging": "kiss hug",
    "The chef cuts and fries the onions": "cut fry",
    "Washing machine in a laundry room": "",
    "A woman washing dishes in the sink": "wash",
    "Breakdancing teenager on the street": "breakdance",
    "Hand of a man turning the pages of an old book": "turn",
    "Boats sail across the lake": "sail",
    "Horses gallop through the field": "gallop",
    "Flowers field in spring": "",
    "City lights at night from above": "",
    "Students listen to the teacher in the classroom": "listen",
    "A cat slowly climbs a tree": "climb",
    "Portrait of an old man smoking a pipe": "smoke",
    "The meeting room of a big company": "",
    "Shopping mall in Dubai, United Arab Emirates": "",
    "Group of friends laughing and drinking beer in a bar": "laugh drink",
    "Potter making a clay pot on a spinning wheel": "make",
    "Eagle flying high in the blue sky": "fly",
    "Isolated red apple on a white background": "",
    "Tourist taking photos of the temple": "take",
    "A person is playing guitar": "play",
    "Cars are driving on the highway, 4k": "drive",
    "Fisherman sits in a boat and waits": "sit wait",
    "Boxing gloves on a table": "",
    "Beijing, China - skyline of the city": "",
    "Swans swimming in a pond": "swim",
    "Woman doing yoga on the beach": "do-yoga",
    "Man doing push-ups in a gym": "do-push-ups",
    "Does not matter": "",
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_verbs_of_real_captions(caption):
    assert [verb.replace(" ", "-") for verb in verbs(caption)] == CAPTIONS[caption].split()


def test_every_inflection_is_known():
    assert inflections("run") == {"run", "runs", "ran", "running"}
    for verb in ("run", "swim", "ride", "dance", "breakdance"):
        assert {lemma(form) for form in inflections(verb)} - {verb, None} == set()


def test_phrases_of_uniform_captions():
    assert phrase("A person is playing the guitar.") == "play guitar"
    assert phrase("A person is doing tai chi") == "do tai chi"
    assert phrase("A person is outdoors") is None
    assert phrase("A dog is playing guitar") is None
    assert contains("A panda does tai chi", ["do tai chi", "play guitar"]) == ("do tai chi",)
    assert contains("A panda plays a guitarist", ["play guitar"]) == ()


LIBRARY = [
    "A person is playing guitar",
    "A person is playing guitar",
    "A person is playing violin",
    "Young woman running on the beach",
    "A dog runs and jumps over a fence",
    "Mountain lake in the fog",
]


def test_select_shares_an_action_and_never_takes_the_target():
    index = VerbIndex(LIBRARY)
    assert index.without_action == [5]
    drawn = {tuple(index.select("A horse ran across the field", 1, seed)) for seed in range(20)}
    assert drawn == {(RetrievedReference(3, "run"),), (RetrievedReference(4, "run"),)}
    assert [c.index for c in index.select(LIBRARY[3], 1, 0, exclude=[3])] == [4]
    assert index.select("dogs run", 2, 7) == index.select("dogs run", 2, 7)


def test_a_video_with_several_captions_counts_once_and_is_never_its_own_reference():
    captions = ["A man runs", "Someone is running", "A dog runs", "A dog jumps", "A boy jumps", "A girl is dancing"]
    index = VerbIndex([*captions, "A girl jumps", "She dances"], videos=["a", "a", "b", "b", "c", "c", "d", "d"])
    assert (index.num_videos, list(index.counts().items())) == (4, [("jump", 3), ("dance", 2), ("run", 2)])
    assert index.targets(1).tolist() == list(range(8)) and index.targets(2).tolist() == [3, 4, 6]
    for seed in range(20):
        assert [c.index for c in index.select("A horse runs", 1, seed, exclude=[0])] == [2]
        assert {index.video[c.index] for c in index.select("A horse runs", 2, seed)} == {0, 1}
        chosen = index.select("A man runs, jumps and dances", 4, seed)
        assert all(c.action in index.verbs[c.index] for c in chosen) and len({c.index for c in chosen}) == 4
    of_phrases = VerbIndex(["plays guitar"] * 2, actions=[(), ()], phrases=["play guitar"] * 2)
    assert of_phrases.targets(1).tolist() == [0, 1] and of_phrases.targets(2).tolist() == []


def test_select_prefers_the_whole_phrase_and_says_so():
    index = VerbIndex(LIBRARY)
    chosen = index.select("A robot plays the guitar", 3, seed=0)
    assert {c.index for c in chosen[:2]} == {0, 1}
    assert [c.action for c in chosen] == ["play guitar", "play guitar", "play"]
    index = VerbIndex([*LIBRARY, "A person is playing piano", "A person is playing drums"])
    for seed in range(20):
        chosen = index.select("A robot plays the guitar", 3, seed)
        assert {c.index for c in chosen[:2]} == {0, 1} and len(chosen) == 3 and chosen[2].index in (2, 6, 7)


def test_select_says_why_it_cannot():
    index = VerbIndex(LIBRARY)
    with pytest.raises(DataError, match="names no action"):
        index.select("Mountain lake", 1, 0)
    with pytest.raises(DataError, match=r"2 of the 6 videos share an action \(run\)"):
        index.select("a man is running", 3, 0)
    with pytest.raises(DataError, match="0 of the 6"):
        index.select("a man is swimming", 1, 0)


def test_the_pair_sampler_draws_triples_from_its_generator():
    pair_sampler = VerbPairSampler(VerbIndex(LIBRARY), num_references=1)
    assert pair_sampler.unused == 1  # the lake
    triples = [pair_sampler(np.random.default_rng(seed), LIBRARY) for seed in range(60)]
    assert triples == [pair_sampler(np.random.default_rng(seed), LIBRARY) for seed in range(60)]
    assert {tuple(triple) for triple in triples} == {(0, 1), (1, 0), (2, 0), (2, 1), (3, 4), (4, 3)}
    with pytest.raises(DataError, match="index it anew"):
        pair_sampler(np.random.default_rng(0), LIBRARY[:2])
    with pytest.raises(DataError, match="no pairs"):
        VerbPairSampler(VerbIndex(["Mountain lake", "A dog runs"]))


def test_index_file_keeps_everything(tmp_path):
    records = [ClipRecord(tmp_path / "videos" / f"{i}.mp4", caption) for i, caption in enumerate(LIBRARY)]
    save_library(tmp_path / "index.json", build_library(records))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "index.json").rename(moved / "index.json")
    library = load_library(moved / "index.json")
    assert library.paths[0] == moved / "videos" / "0.mp4"  # paths are relative to the index
    assert (library.index.verbs, library.index.phrases) == (VerbIndex(LIBRARY).verbs, VerbIndex(LIBRARY).phrases)
    assert library.select("a cat is jumping", 1, 0) == [(moved / "videos" / "4.mp4", LIBRARY[4], "jump")]


def test_index_file_that_is_none(tmp_path):
    with pytest.raises(DataError, match="make an index of references with aicl index"):
        load_library(tmp_path / "missing.json")
    (tmp_path / "other.json").write_text('{"format": 9, "videos": []}')
    with pytest.raises(DataError, match="format 9"):
        load_library(tmp_path / "other.json")
    (tmp_path / "broken.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="must be an object"):
        load_library(tmp_path / "broken.json")
