"""A study: its pairs, its plan and its answers, as an evaluator goes through them."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aicl.apps.user_study import media
from aicl.apps.user_study.pairs import Pair, Side, order, our_sides
from aicl.apps.user_study.store import QUESTIONS, Evaluator, Store, StoredPair
from lvdm.errors import DataError, VideoError
from lvdm.hashing import file_hash


@dataclass(frozen=True)
class View:
    """What an evaluator may see at a place of their order; nothing here tells which video is whose.

    `answers` maps questions to choices ("left", "right", "tie"), `answered` counts complete pairs.
    """

    code: str
    position: int
    total: int
    answered: int
    prompt: str
    answers: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether all questions about this pair are answered."""
        return len(self.answers) == len(QUESTIONS)

    @property
    def finished(self) -> bool:
        """Whether all questions about all pairs are answered."""
        return self.answered == self.total


class Study:
    """A study in `folder`: the database and the copies of its videos."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.store = Store(database_path(folder))

    @property
    def total(self) -> int:
        """How many pairs the study has."""
        return len(self.store.pairs)

    def join(self) -> View:
        """The first pair of a new evaluator, who gets a code."""
        return self.view(self.store.add_evaluator().code)

    def view(self, code: str, position: int | None = None) -> View:
        """An evaluator's pair at `position` in [0, total), or the first one that is not fully answered.

        Where all are, that is the last one. Raises DataError for an unknown code or position.
        """
        evaluator = self._evaluator(code)
        choices = self.store.choices(evaluator.number)
        numbers = order(self.store.settings.seed, evaluator.number, self.total)
        complete = [all((number, question) in choices for question in QUESTIONS) for number in numbers]
        if position is None:
            position = complete.index(False) if False in complete else self.total - 1
        number = self._pair_at(evaluator, position).number
        answers = {question: choices[number, question] for question in QUESTIONS if (number, question) in choices}
        return View(evaluator.code, position, self.total, sum(complete), self.store.pairs[number].prompt, answers)

    def answer(self, code: str, position: int, question: str, choice: str) -> None:
        """Keep an answer. Raises DataError for an unknown code, position, question or choice."""
        evaluator = self._evaluator(code)
        pair = self._pair_at(evaluator, position)
        self.store.save(evaluator.number, pair.number, question, choice, self._our_side(evaluator, pair))

    def video(self, code: str, position: int, side: Side) -> Path:
        """The copy that an evaluator sees on one side of a pair. Raises DataError for an unknown code or position."""
        evaluator = self._evaluator(code)
        pair = self._pair_at(evaluator, position)
        sha256 = pair.ours_sha256 if side == self._our_side(evaluator, pair) else pair.baseline_sha256
        return media.copy_path(videos_path(self.folder), sha256)

    def _evaluator(self, code: str) -> Evaluator:
        evaluator = self.store.find_evaluator(code)
        if evaluator is None:
            raise DataError(f"nobody has the code {code!r}; check it, or start anew")
        return evaluator

    def _pair_at(self, evaluator: Evaluator, position: int) -> StoredPair:
        if not 0 <= position < self.total:
            raise DataError(f"the study has no pair at position {position}; they are 0 to {self.total - 1}")
        return self.store.pairs[order(self.store.settings.seed, evaluator.number, self.total)[position]]

    def _our_side(self, evaluator: Evaluator, pair: StoredPair) -> Side:
        return our_sides(self.store.settings.seed, evaluator.number, self.total)[pair.number]


def database_path(folder: str | os.PathLike[str]) -> Path:
    """Where a study keeps its answers."""
    return Path(folder) / "study.sqlite"


def videos_path(folder: str | os.PathLike[str]) -> Path:
    """Where a study keeps its copies of the videos."""
    return Path(folder) / "videos"


def open_study(folder: str | os.PathLike[str]) -> Study:
    """Go on with a study. Raises DataError if there is none, or some of its videos' copies are missing."""
    study = Study(folder)
    videos = {sha256 for pair in study.store.pairs for sha256 in (pair.ours_sha256, pair.baseline_sha256)}
    missing = [video for video in videos if not media.copy_path(videos_path(folder), video).is_file()]
    if missing:
        raise DataError(f"{videos_path(folder)}: lacks {len(missing)} videos; give the pairs again to make them anew")
    return study


def prepare(
    folder: str | os.PathLike[str],
    pairs: Sequence[Pair],
    *,
    seed: int | None = None,
    ties: bool | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Study, int]:
    """Start the study of `pairs` in `folder`, or go on with it; copies that are missing are made.

    `seed` (default 0) and `ties` (default False) belong to the study: None takes those of an existing one.
    Returns the study and the number of pairs whose videos differ in size, length or frame rate.
    Raises DataError if the folder holds a study of other pairs, seed or ties, or two videos of a pair are the same
    file, and VideoError for a broken video.
    """
    stored = [_stored(number, pair) for number, pair in enumerate(pairs)]
    fingerprint = _fingerprint(stored)
    exists = Store.exists(database_path(folder))
    if exists:
        _check_same(Store(database_path(folder)), stored, fingerprint, seed, ties)
    unlike = 0
    for done, pair in enumerate(stored, 1):
        infos = [
            media.make_copy(source, sha256, videos_path(folder))
            for source, sha256 in ((pair.ours, pair.ours_sha256), (pair.baseline, pair.baseline_sha256))
        ]
        unlike += not media.look_alike(*infos)
        progress(done, len(stored))
    if not exists:
        Store.create(database_path(folder), stored, fingerprint=fingerprint, seed=seed or 0, ties=bool(ties))
    return open_study(folder), unlike


def _stored(number: int, pair: Pair) -> StoredPair:
    ours, baseline = (file_hash(path, VideoError) for path in (pair.ours, pair.baseline))
    if ours == baseline:
        raise DataError(f"{pair.ours} and {pair.baseline} are the same video; a pair needs two")
    return StoredPair(number, pair.prompt, pair.group, str(pair.ours), str(pair.baseline), ours, baseline)


def _fingerprint(pairs: Sequence[StoredPair]) -> str:
    """Stands for prompts, groups and videos in their order, wherever the files lie."""
    content = [[pair.prompt, pair.group, pair.ours_sha256, pair.baseline_sha256] for pair in pairs]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _check_same(
    store: Store, pairs: Sequence[StoredPair], fingerprint: str, seed: int | None, ties: bool | None
) -> None:
    settings = store.settings
    if settings.fingerprint != fingerprint:
        what = "another number of pairs"
        if len(pairs) == len(store.pairs):
            changed = next(new for new, old in zip(pairs, store.pairs) if _fingerprint([new]) != _fingerprint([old]))
            what = f"another pair {changed.number + 1} (the prompt, the group or a video of {changed.prompt!r} changed)"
        raise DataError(f"{store.path}: began with {what}; give those pairs, or another folder")
    for name, given, kept in (("seed", seed, settings.seed), ("ties", ties, settings.ties)):
        if given is not None and given != kept:
            raise DataError(f"{store.path}: the study began with {name} {kept}, not {given}; give another folder")
