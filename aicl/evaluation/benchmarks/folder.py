"""Anybody's videos: a folder with captions and, where known, labels.

References share the label, or an action by eq. 8 where there are no labels. They come from a folder of their own, or
else the clips of each label (or all clips) take turns at being a reference and being real.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from aicl.evaluation.benchmark import FileBenchmark, register_benchmark
from aicl.evaluation.sample import MAX_REFERENCES, Clip, Sample
from aicl.reference_retrieval import VerbIndex
from lvdm.data import ClipRecord, read_folder, sample_rng
from lvdm.errors import DataError

_NUMBERS = 2**34  # see `ucf101`


class FolderBenchmark(FileBenchmark):
    """The captions of the real videos are the prompts, in turn. path, captions: as `lvdm.data.read_folder` takes them.

    references, reference_captions: another such folder. name: what the data set is called in tables. Raises DataError
    for a folder that cannot be read, and for a prompt with too few references.
    """

    def __init__(
        self,
        device: torch.device | str,
        path: str,
        frames: int,
        fps: float,
        size: tuple[int, int],
        captions: str | None = None,
        references: str | None = None,
        reference_captions: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(device, frames, fps, size)
        self._name = name or Path(path).name
        self._shown_name = "" if references is None else f", shown videos of {Path(references).name}"
        records = read_folder(path, captions)
        if references is None:
            self._asked, shown = _in_turn(records)
        else:
            self._asked, shown = records, read_folder(references, reference_captions)
        labels = {record.label for record in (*self._asked, *shown)}
        self._labelled = None not in labels
        if self._labelled:
            self.pool = tuple(sorted(str(record) for record in {record.label for record in self._asked}))
        self._shown = shown
        self._index = VerbIndex.of_records(shown)

    def __str__(self) -> str:
        kind = f"{len(self.pool)} labels" if self.pool else "references by eq. 8"
        return f"{self._name}, {len(self._asked)} prompts, {kind}{self._shown_name}"

    def samples(self, seed: int, start: int, stop: int) -> list[Sample]:
        """See `Benchmark`; after the last prompt comes the first again, with other references and noise."""
        return [self._sample(seed, number) for number in range(start, stop)]

    def real(self, count: int | None) -> list[Clip]:
        """The videos of the prompts, or the first `count` of a random order."""
        different = list({record.key: record for record in reversed(self._asked)}.values())[::-1]
        if count is not None and count > len(different):
            raise DataError(f"{self} has {len(different)} real videos, {count} are wanted: set real lower")
        order = np.random.default_rng(0).permutation(len(different))[:count]
        return [_clip(different[i]) for i in sorted(order.tolist())]

    def _sample(self, seed: int, number: int) -> Sample:
        record = self._asked[number % len(self._asked)]
        rng = sample_rng(seed, _NUMBERS + number)
        noise, draw = int(rng.integers(2**53)), int(rng.integers(2**31))
        itself = {i for i, other in enumerate(self._shown) if other.path == record.path}
        if self._labelled:
            own = [i for i, other in enumerate(self._shown) if other.label == record.label and i not in itself]
            if (count := len({self._shown[i].key for i in own})) < MAX_REFERENCES:
                raise DataError(
                    f"{self._name} has {count} references of '{record.label}', {MAX_REFERENCES} are needed: add "
                    "videos, or give a folder of references with benchmark.references=..."
                )
            chosen = self._different(rng, own)
        else:
            found = self._index.select(record.caption, MAX_REFERENCES, draw, exclude=itself)
            chosen = [choice.index for choice in found]
        references = tuple(_clip(self._shown[i]) for i in chosen)
        return Sample(number, noise, record.caption, record.label, references, self._wrong(rng, record), _clip(record))

    def _wrong(self, rng: np.random.Generator, record: ClipRecord) -> tuple[Clip, ...]:
        """Clips of one other label, or that share no verb with the prompt; none where there are too few."""
        groups: dict[str, list[int]] = defaultdict(list)
        own = set(VerbIndex([record.caption]).verbs[0])
        for i, other in enumerate(self._shown):
            if self._labelled:
                if other.label != record.label:
                    groups[str(other.label)].append(i)
            elif not own & set(self._index.verbs[i]):
                for verb in self._index.verbs[i][:1]:
                    groups[verb].append(i)
        videos = {name: {self._shown[i].key for i in members} for name, members in groups.items()}
        names = sorted(name for name, keys in videos.items() if len(keys) >= MAX_REFERENCES)
        if not names:
            return ()
        chosen = self._different(rng, groups[names[int(rng.integers(len(names)))]])
        return tuple(_clip(self._shown[i]) for i in chosen)

    def _different(self, rng: np.random.Generator, numbers: list[int]) -> list[int]:
        """MAX_REFERENCES of these records, drawn, of as many videos: one may have several captions."""
        drawn = [numbers[i] for i in rng.permutation(len(numbers))]
        return list({self._shown[i].key: i for i in reversed(drawn)}.values())[::-1][:MAX_REFERENCES]


def _in_turn(records: list[ClipRecord]) -> tuple[list[ClipRecord], list[ClipRecord]]:
    """Every other video of each label, from the first on, and the rest: real ones and references."""
    real: list[ClipRecord] = []
    references: list[ClipRecord] = []
    turns: dict[str | None, dict[str, int]] = defaultdict(dict)  # a video with several captions has one turn
    for record in records:
        turn = turns[record.label].setdefault(record.key, len(turns[record.label]))
        (references if turn % 2 else real).append(record)
    return real, references


def _clip(record: ClipRecord) -> Clip:
    return Clip(record.key, record.caption, record.label, path=Path(record.path))


register_benchmark("folder", FolderBenchmark)
