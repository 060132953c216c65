"""WebVid captions whose actions UCF-101's training classes do not have (IV-A), references by eq. 8 from the rest.

Which captions are asked for is written to a list (JSONL: key, caption, verbs), so that others can use the same ones.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from aicl.evaluation.benchmark import FileBenchmark, register_benchmark
from aicl.evaluation.sample import MAX_REFERENCES, Clip, Sample
from aicl.reference_retrieval import VerbIndex
from aicl.verbs import verbs
from lvdm.data import ClipRecord, read_split, read_webvid, sample_rng
from lvdm.data.ucf101 import ACTIONS, caption
from lvdm.errors import ConfigError, DataError
from lvdm.files import atomic_path
from lvdm.outside import check_text, hinted, read_json_lines

_NUMBERS = 2**33  # see `ucf101`
_ATTEMPTS = 1000  # draws of a video that shares no verb with a caption


class WebVidBenchmark(FileBenchmark):
    """`prompts` captions, each with its own video as the real one. Videos of one caption count as one video.

    path: the folder of the page folders; captions: WebVid's CSV; split: that of UCF-101 whose seen classes' verbs are
    left out; selection: the list of chosen captions, which is used where it exists and written where not. Raises
    DataError where the data has too few such captions, or not the videos of an existing list.
    """

    paper: str | None = "webvid"

    def __init__(
        self,
        device: torch.device | str,
        path: str,
        captions: str,
        split: str,
        selection: str,
        frames: int,
        fps: float,
        size: tuple[int, int],
        prompts: int = 1000,
    ) -> None:
        super().__init__(device, frames, fps, size)
        if prompts < 2:
            raise ConfigError(f"benchmark.prompts is {prompts}: it must be at least 2")
        records = _distinct(read_webvid(captions, path))
        found = [
            tuple(verbs(record.caption)) for record in tqdm(records, desc="reading captions", unit="caption", delay=3)
        ]
        place = Path(selection)
        if place.is_file():
            chosen = _read(place, records)
        else:
            chosen = choose(found, trained_verbs(split), prompts, str(captions))
            _write(place, [(records[i], found[i]) for i in chosen])
        taken = set(chosen)
        keys = {records[i].key for i in chosen}  # a video with several captions is never its own reference
        rest = [i for i in range(len(records)) if i not in taken and records[i].key not in keys]
        self._asked = [(records[i], found[i]) for i in chosen]
        self._rest = [records[i] for i in rest]
        self._index = VerbIndex.of_records(self._rest, [found[i] for i in rest])
        self.count, self._list = len(chosen), place.name

    def __str__(self) -> str:
        return f"WebVid, {self.count} captions with verbs that no training class of UCF-101 has"

    def samples(self, seed: int, start: int, stop: int) -> list[Sample]:
        """See `Benchmark`. Raises DataError beyond `count`."""
        if stop > len(self._asked):
            raise DataError(f"{self}: sample {stop - 1} is asked for, set videos={self.count} or fewer")
        return [self._sample(seed, number) for number in range(start, stop)]

    def real(self, count: int | None) -> list[Clip]:
        """The videos of the captions, or of the first `count` of them."""
        if count is not None and count > len(self._asked):
            raise DataError(f"{self} has as many real videos, {count} are wanted: ask for fewer with real=...")
        return [_clip(record) for record, _ in self._asked[:count]]

    def _sample(self, seed: int, number: int) -> Sample:
        record, own = self._asked[number]
        rng = sample_rng(seed, _NUMBERS + number)
        noise, draw = int(rng.integers(2**53)), int(rng.integers(2**31))
        chosen = self._index.select(record.caption, MAX_REFERENCES, draw)
        references = tuple(_clip(self._rest[choice.index]) for choice in chosen)
        return Sample(number, noise, record.caption, None, references, self._wrong(rng, own), _clip(record))

    def _wrong(self, rng: np.random.Generator, own: tuple[str, ...]) -> tuple[Clip, ...]:
        """Videos that share a verb among themselves and none with the caption; fewer than asked for give none."""
        for _ in range(_ATTEMPTS):
            first = int(rng.integers(len(self._rest)))
            theirs = self._index.verbs[first]
            if not theirs or set(theirs) & set(own):
                continue
            others = [c.index for c in self._index.positives(first, len(self._rest), rng)]
            others = [i for i in others if not set(self._index.verbs[i]) & set(own)][: MAX_REFERENCES - 1]
            if len(others) == MAX_REFERENCES - 1:
                return tuple(_clip(self._rest[i]) for i in (first, *others))
        return ()


def trained_verbs(split: str) -> frozenset[str]:
    """The verbs of the captions of UCF-101's seen classes."""
    unseen = read_split(split)
    return frozenset(verb for label in ACTIONS if label not in unseen for verb in verbs(caption(label)))


def choose(found: list[tuple[str, ...]], excluded: frozenset[str], count: int, where: str) -> list[int]:
    """`count` captions, drawn evenly, without an excluded verb, each leaving MAX_REFERENCES others that share a verb.

    found: the verbs of all captions. Raises DataError where there are too few.
    """
    left = Counter(verb for own in found for verb in set(own))  # captions that are not chosen, by verb
    needed: set[str] = set()  # by the references of captions chosen before
    chosen: list[int] = []
    for i in np.random.default_rng(0).permutation(len(found)).tolist():
        own = set(found[i])
        if len(chosen) == count or not own or own & excluded:
            continue
        enough = {verb for verb in own if left[verb] > MAX_REFERENCES}
        if not enough or any(verb in needed and verb not in enough for verb in own):
            continue
        left.subtract(own)
        needed.add(max(enough, key=lambda verb: (left[verb], verb)))
        chosen.append(i)
    if len(chosen) < count:
        raise DataError(
            f"{where} has {len(chosen)} captions whose verbs UCF-101's training classes lack and {MAX_REFERENCES} "
            f"other videos share, {count} are wanted: give a larger part of WebVid, or set benchmark.prompts"
        )
    return sorted(chosen)


def _distinct(records: list[ClipRecord]) -> list[ClipRecord]:
    """The first video of each caption: WebVid has series of near copies under one caption."""
    return list({record.caption: record for record in reversed(records)}.values())[::-1]


def _clip(record: ClipRecord) -> Clip:
    return Clip(record.key, record.caption, path=Path(record.path))


def _write(path: Path, rows: list[tuple[ClipRecord, tuple[str, ...]]]) -> None:
    lines = [json.dumps({"key": r.key, "caption": r.caption, "verbs": own}, ensure_ascii=False) for r, own in rows]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read(path: Path, records: list[ClipRecord]) -> list[int]:
    places = {record.key: i for i, record in enumerate(records)}
    with hinted("this is no list of WebVid captions: delete it, and a new one is made"):
        rows = [(f"{path}: line {line}: 'key'", row.get("key")) for line, row in read_json_lines(path, DataError)]
        keys = [check_text(key, where, DataError) for where, key in rows]
    if missing := [key for key in keys if key not in places]:
        raise DataError(
            f"{len(missing)} of the {len(keys)} videos of {path} are not there, such as {missing[0]}: fetch them, or "
            "give another place for a list of your own with benchmark.selection=..."
        )
    return [places[key] for key in keys]


register_benchmark("webvid", WebVidBenchmark)
