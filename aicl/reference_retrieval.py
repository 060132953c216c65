"""Reference selection: videos that share an action with a caption (eq. 8, III-D1), and an index of them on disk."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aicl.verbs import contains, phrase, verbs
from lvdm.data.clips import ClipRecord
from lvdm.errors import DataError
from lvdm.files import write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RetrievedReference:
    """A chosen reference: the video's number in the index, and the action that it shares with the caption."""

    index: int
    action: str


class VerbIndex:
    """Which of a list of captioned videos show which action.

    An action is a verb, whatever its form, or for uniform captions ("A person is playing guitar") the whole phrase.
    `without_action` lists the videos whose captions name none: they are never references. Pass `actions` and
    `phrases` to skip the reading of captions where that was done before.
    """

    def __init__(
        self,
        captions: Sequence[str],
        actions: Sequence[Sequence[str]] | None = None,
        phrases: Sequence[str | None] | None = None,
    ):
        self.captions = list(captions)
        self.verbs = [tuple(verbs(caption)) for caption in captions] if actions is None else [tuple(a) for a in actions]
        self.phrases = [phrase(caption) for caption in captions] if phrases is None else list(phrases)
        self._by_verb = _members(self.verbs)
        self._by_phrase = _members([() if p is None else (p,) for p in self.phrases])
        self.without_action = [i for i, (v, p) in enumerate(zip(self.verbs, self.phrases)) if not v and p is None]

    def __len__(self) -> int:
        return len(self.captions)

    def counts(self) -> dict[str, int]:
        """How many videos show each verb, most frequent first."""
        return dict(sorted(((v, len(i)) for v, i in self._by_verb.items()), key=lambda item: (-item[1], item[0])))

    def select(self, caption: str, k: int, seed: int, exclude: Iterable[int] = ()) -> list[RetrievedReference]:
        """Draw k different videos that share an action with `caption` (eq. 8), never one of `exclude`.

        Videos that show a whole phrase of the caption ("play guitar") come first; only where these are too few, ones
        that share a verb ("play") follow. Each choice says which it was. Raises DataError if k cannot be had.
        """
        groups = [
            {p: self._by_phrase[p] for p in contains(caption, self._by_phrase)},
            {v: self._by_verb[v] for v in verbs(caption) if v in self._by_verb},
        ]
        chosen = _draw(groups, k, np.random.default_rng(seed), exclude)
        if len(chosen) < k:
            named = (*contains(caption, self._by_phrase), *verbs(caption))
            if not named:
                raise DataError(
                    f"'{caption}' names no action to look for: write one ('... is dancing') or give references"
                )
            raise DataError(
                f"{len(chosen)} of the {len(self)} videos share an action ({', '.join(named)}) with '{caption}', "
                f"{k} are wanted: ask for fewer references or add videos to the library"
            )
        return chosen

    def positives(self, target: int, k: int, rng: np.random.Generator) -> list[RetrievedReference]:
        """Like `select` for the caption of one of the index's own videos, up to k of them, drawn with `rng`."""
        own = self.phrases[target]
        groups = [
            {} if own is None else {own: self._by_phrase[own]},
            {v: self._by_verb[v] for v in self.verbs[target]},
        ]
        return _draw(groups, k, rng, (target,))

    def targets(self, k: int) -> np.ndarray:
        """Videos that have at least k others sharing one of their verbs or their phrase, as indices."""
        return np.array(
            [
                i
                for i, (v, p) in enumerate(zip(self.verbs, self.phrases))
                if any(len(self._by_verb[verb]) > k for verb in v) or (p is not None and len(self._by_phrase[p]) > k)
            ],
            dtype=np.int64,
        )


class VerbPairSampler:
    """Training triples for `lvdm.data`: a target, and k references that share a verb with its caption (eq. 8).

    Targets are drawn evenly from the videos that have k such positives. Raises DataError if there are none.
    """

    def __init__(self, index: VerbIndex, num_references: int = 1):
        self.index, self.num_references = index, num_references
        self._targets = index.targets(num_references)
        if not len(self._targets):
            raise DataError(
                f"none of the {len(index)} captions shares a verb with {num_references} others: the data has no pairs; "
                "references.kind = self pairs every video with itself"
            )

    @property
    def unused(self) -> int:
        """Number of videos that are never a target, for want of a verb or of positives."""
        return len(self.index) - len(self._targets)

    def __call__(self, rng: np.random.Generator, records: Sequence[ClipRecord], number: int = 0) -> list[int]:
        """[target, reference, ...] as indices of `records`, which must be the videos of the index."""
        if len(records) != len(self.index):
            raise DataError(f"the verb index has {len(self.index)} videos, the data set {len(records)}: index it anew")
        target = int(self._targets[rng.integers(len(self._targets))])
        return [target, *(choice.index for choice in self.index.positives(target, self.num_references, rng))]


@dataclass(frozen=True)
class Library:
    """An index together with the files it is about."""

    paths: list[Path]
    index: VerbIndex

    def select(self, caption: str, k: int, seed: int) -> list[tuple[Path, str, str]]:
        """(video, its caption, the shared action) of k references for a prompt."""
        return [
            (self.paths[c.index], self.index.captions[c.index], c.action) for c in self.index.select(caption, k, seed)
        ]


def build_library(records: Sequence[ClipRecord], progress: Callable[[Iterable[str]], Iterable[str]] = iter) -> Library:
    """Read the actions of all captions; `progress` may wrap the iteration, such as tqdm does."""
    captions = [record.caption for record in records]
    actions = [verbs(caption) for caption in progress(captions)]
    return Library([Path(record.path) for record in records], VerbIndex(captions, actions))


def save_library(path: str | os.PathLike, library: Library) -> None:
    """Write an index file (JSON); video paths are stored relative to it, so both can move together."""
    folder, index = Path(path).resolve().parent, library.index
    rows = zip(library.paths, index.captions, index.verbs, index.phrases)
    videos = [
        {"path": os.path.relpath(Path(file).resolve(), folder), "caption": caption, "verbs": v, "phrase": p}
        for file, caption, v, p in rows
    ]
    write_json(path, {"format": FORMAT_VERSION, "videos": videos})


def load_library(path: str | os.PathLike) -> Library:
    """Read an index file. Raises DataError if it is missing, not one, or of another format version."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
        videos = content["videos"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has index format {version}, this version reads {FORMAT_VERSION}: index the videos anew"
            )
        folder = path.resolve().parent
        paths = [Path(os.path.normpath(folder / video["path"])) for video in videos]
        fields = ([video[name] for video in videos] for name in ("caption", "verbs", "phrase"))
        return Library(paths, VerbIndex(*fields))
    except OSError as error:
        raise DataError(f"index {path} cannot be read ({error.strerror}): make it with aicl index") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not an index of references: make one with aicl index") from error


def _members(labels: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """label -> the numbers of the videos that have it, ascending."""
    members: dict[str, list[int]] = {}
    for i, own in enumerate(labels):
        for label in own:
            members.setdefault(label, []).append(i)
    return {label: np.array(numbers, dtype=np.int64) for label, numbers in members.items()}


def _draw(
    groups: Sequence[dict[str, np.ndarray]], k: int, rng: np.random.Generator, exclude: Iterable[int]
) -> list[RetrievedReference]:
    """Up to k videos, evenly from the union of the first group's members, then of the next group's."""
    taken, chosen = set(exclude), []
    for group in groups:
        if len(chosen) == k or not group:
            continue
        pool = np.setdiff1d(np.concatenate(list(group.values())), np.array(sorted(taken), dtype=np.int64))
        for number in rng.choice(pool, size=min(k - len(chosen), len(pool)), replace=False).tolist():
            action = next(name for name, members in group.items() if _has(members, number))
            taken.add(number)
            chosen.append(RetrievedReference(number, action))
    return chosen


def _has(members: np.ndarray, number: int) -> bool:
    position = int(np.searchsorted(members, number))
    return position < len(members) and int(members[position]) == number
