"""Verbs from captions, eq. 8, index files and the picker of training triples."""

import pytest

from aicl.verbs import inflections, verbs

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
    "Does not matter": "",
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_verbs_of_real_captions(caption):
    assert [verb.replace(" ", "-") for verb in verbs(caption)] == CAPTIONS[caption].split()
