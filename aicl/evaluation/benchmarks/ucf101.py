"""UCF-101's ten unseen classes (IV-A): uniform prompts, references of the same class.

UCF-101 has 25 groups of clips for each class, "v_Archery_g07_c03.avi" being the third of group 7; clips of a group show
one scene. References come from some groups and real videos from the others, so no reference shares a scene with the
videos that results are compared with. By default references come from groups 1 to 7, the test list of the data set's
first split.
"""

import re
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import torch

from aicl.evaluation.benchmark import FileBenchmark, register_benchmark
from aicl.evaluation.sample import MAX_REFERENCES, Clip, Sample
from aicl.pseudo_words import gerund, made_up_phrase
from lvdm.data import ClipRecord, read_split, read_ucf101, sample_rng
from lvdm.data.ucf101 import ACTIONS, SUBJECTS
from lvdm.errors import ConfigError, DataError

_GROUP = re.compile(r"_g(\d{2,})_c\d+$")
_NUMBERS = 2**32  # keeps the draws of an evaluation apart from those of a training with the same seed


class UCF101Benchmark(FileBenchmark):
    """The `unseen` classes of a split. names: "made_up" puts a pseudo-word in place of the action, anew in each prompt.

    Raises DataError for a class without clips of reference groups or of others, ConfigError for settings out of range.
    """

    paper: str | None = "ucf101"

    def __init__(
        self,
        device: torch.device | str,
        path: str,
        split: str,
        frames: int,
        fps: float,
        size: tuple[int, int],
        reference_groups: tuple[int, int] = (1, 7),
        names: Literal["real", "made_up"] = "real",
    ) -> None:
        super().__init__(device, frames, fps, size)
        low, high = reference_groups
        if not 1 <= low <= high:
            raise ConfigError(f"benchmark.reference_groups is [{low}, {high}]: give the first and the last group")
        if names not in ("real", "made_up"):
            raise ConfigError(f"benchmark.names is '{names}': choose real or made_up")
        self.names = names
        records = read_ucf101(path, "unseen", read_split(split))
        self.pool = tuple(dict.fromkeys(record.label for record in records if record.label))
        self._groups = (low, high)
        self._references: dict[str, dict[int, list[Clip]]] = {label: {} for label in self.pool}
        self._real: dict[str, list[Clip]] = {label: [] for label in self.pool}
        for record in records:
            label, group = str(record.label), _group(record)
            clip = Clip(record.key, record.caption, label, bare=record.caption, path=Path(record.path))
            if low <= group <= high:
                self._references[label].setdefault(group, []).append(clip)
            else:
                self._real[label].append(clip)
        for label in self.pool:
            clips = sum(map(len, self._references[label].values()))
            if clips < MAX_REFERENCES or not self._real[label]:
                raise DataError(
                    f"{path}: {label} has {clips} clips in groups {low} to {high}, for references, and "
                    f"{len(self._real[label])} in others, to compare with: {MAX_REFERENCES} and 1 are needed; choose "
                    "other groups with benchmark.reference_groups"
                )
        self._taken = frozenset(word for action in ACTIONS.values() for word in re.findall(r"[a-z]+", action))

    def __str__(self) -> str:
        names = ", pseudo-words for actions" if self.names == "made_up" else ""
        low, high = self._groups
        return f"UCF-101, {len(self.pool or ())} unseen classes, references of groups {low} to {high}{names}"

    def samples(self, seed: int, start: int, stop: int) -> list[Sample]:
        """See `Benchmark`; the classes take turns, and the references of a sample are of different groups if they can.

        The target is one of the real videos, and wrong references are of one other class, where there is one.
        """
        return [self._sample(seed, number) for number in range(start, stop)]

    def real(self, count: int | None) -> list[Clip]:
        """All real videos, or `count` of them, as many of each class as possible."""
        order = {label: np.random.default_rng(0).permutation(len(clips)) for label, clips in self._real.items()}
        turns = [
            self._real[label][order[label][turn]]
            for turn in range(max(map(len, self._real.values())))
            for label in self._real
            if turn < len(self._real[label])
        ]
        if count is not None and count > len(turns):
            raise DataError(f"{self} has {len(turns)} real videos, {count} are wanted: ask for fewer with real=...")
        return sorted(turns[:count], key=lambda clip: clip.key)

    def _sample(self, seed: int, number: int) -> Sample:
        rng = sample_rng(seed, _NUMBERS + number)
        pool = self.pool or ()
        place = number % len(pool)
        label, other = pool[place], None
        if len(pool) > 1:
            other = pool[(place + 1 + int(rng.integers(len(pool) - 1))) % len(pool)]
        noise = int(rng.integers(2**53))
        target = self._real[label][int(rng.integers(len(self._real[label])))]
        references, wrong = self._draw(rng, label), () if other is None else self._draw(rng, other)
        words, prompt = ACTIONS[label], target.caption
        if self.names == "made_up":
            words = gerund(made_up_phrase(Random(int(rng.integers(2**53))), self._taken))
            prompt = f"{SUBJECTS.get(label, 'A person is')} {words}"
        return Sample(number, noise, prompt, label, references, wrong, target, words)

    def _draw(self, rng: np.random.Generator, label: str) -> tuple[Clip, ...]:
        """MAX_REFERENCES clips, of as many groups as possible."""
        groups = [list(clips) for clips in self._references[label].values()]
        for clips in groups:
            rng.shuffle(clips)
        order = rng.permutation(len(groups))
        turns = [groups[i][turn] for turn in range(MAX_REFERENCES) for i in order if turn < len(groups[i])]
        return tuple(turns[:MAX_REFERENCES])


def _group(record: ClipRecord) -> int:
    match = _GROUP.search(Path(record.path).stem)
    if match is None:
        raise DataError(f"{record.path}: is not named like UCF-101's v_Archery_g07_c03.avi, so its group is unknown")
    return int(match[1])


register_benchmark("ucf101", UCF101Benchmark)
