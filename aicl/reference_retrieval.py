"""Reference selection: videos that share an action with a caption (eq. 8, III-D1), and an index of them on disk."""

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aicl.verbs import contains, phrase, verbs
from lvdm.config import from_mapping
from lvdm.data.clips import ClipRecord
from lvdm.errors import DataError
from lvdm.files import write_json
from lvdm.outside import checked, checked_path, hinted, read_object

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RetrievedReference:
    """A chosen reference: the video's number in the index, and the action that it shares with the caption."""

    index: int
    action: str


class VerbIndex:
    """Which of a list of captioned videos show which action.

    An action is a verb, whatever its form, or for uniform captions ("A person is playing guitar") the whole phrase.
    `without_action` lists the captions that name none: their videos are never references. Pass `actions` and `phrases`
    to skip the reading of captions where that was done before. `videos` says, for each caption, which video it is about
    (any values; None: each about another): a video with several captions is counted once, is drawn as often as others,
    and is never its own reference.
    """

    def __init__(
        self,
        captions: Sequence[str],
        actions: Sequence[Sequence[str]] | None = None,
        phrases: Sequence[str | None] | None = None,
        videos: Sequence[Hashable] | None = None,
    ):
        self.captions = list(captions)
        numbers: dict[Hashable, int] = {}
        names = range(len(self.captions)) if videos is None else videos
        self.video = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
        self.num_videos = len(numbers)
        self.verbs = [tuple(verbs(caption)) for caption in captions] if actions is None else [tuple(a) for a in actions]
        self.phrases = [phrase(caption) for caption in captions] if phrases is None else list(phrases)
        self._by_verb = _members(self.verbs)
        self._by_phrase = _members([() if p is None else (p,) for p in self.phrases])
        self.without_action = [i for i, (v, p) in enumerate(zip(self.verbs, self.phrases)) if not v and p is None]

    def __len__(self) -> int:
        return len(self.captions)

    @classmethod
    def of_records(cls, records: Sequence[ClipRecord], actions: Sequence[Sequence[str]] | None = None) -> "VerbIndex":
        """The index of a manifest's records, of which those with one key are about one video."""
        return cls([record.caption for record in records], actions, videos=[record.key for record in records])

    def counts(self) -> dict[str, int]:
        """How many videos show each verb, most frequent first."""
        sizes = ((verb, self._count(rows)) for verb, rows in self._by_verb.items())
        return dict(sorted(sizes, key=lambda item: (-item[1], item[0])))

    def select(self, caption: str, k: int, seed: int, exclude: Iterable[int] = ()) -> list[RetrievedReference]:
        """Draw k different videos that share an action with `caption` (eq. 8), never one of `exclude`.

        Videos that show a whole phrase of the caption ("play guitar") come first; only where these are too few, ones
        that share a verb ("play") follow. Each choice says which it was. Raises DataError if k cannot be had.
        """
        chosen = self._draw(self._groups(caption), k, np.random.default_rng(seed), exclude)
        if len(chosen) < k:
            named = (*contains(caption, self._by_phrase), *verbs(caption))
            if not named:
                raise DataError(
                    f"'{caption}' names no action to look for: write one ('... is dancing') or give references"
                )
            raise DataError(
                f"{len(chosen)} of the {self.num_videos} videos share an action ({', '.join(named)}) with '{caption}', "
                f"{k} are wanted: ask for fewer references or add videos to the library"
            )
        return chosen

    def shared(self, caption: str) -> list[dict[int, str]]:
        """Videos that share an action with a caption, as number -> action: a whole phrase first, then a verb only.

        Empty groups are left out, so that a caption that shares nothing gives an empty list.
        """
        groups: list[dict[int, str]] = []
        taken: set[int] = set()
        for group in self._groups(caption):
            members = {number: action for action, rows in group.items() for number in rows.tolist()}
            new = {number: action for number, action in members.items() if number not in taken}
            taken |= new.keys()
            groups += [new] if new else []
        return groups

    def positives(self, target: int, k: int, rng: np.random.Generator) -> list[RetrievedReference]:
        """Like `select` for the caption of one of the index's own videos, up to k of them, drawn with `rng`."""
        own = self.phrases[target]
        groups = [
            {} if own is None else {own: self._by_phrase[own]},
            {v: self._by_verb[v] for v in self.verbs[target]},
        ]
        return self._draw(groups, k, rng, (target,))

    def targets(self, k: int) -> np.ndarray:
        """Captions whose video has at least k others sharing one of their verbs or their phrase, as indices."""
        by_verb = {verb: self._count(rows) for verb, rows in self._by_verb.items()}
        by_phrase = {name: self._count(rows) for name, rows in self._by_phrase.items()}
        return np.array(
            [
                i
                for i, (v, p) in enumerate(zip(self.verbs, self.phrases))
                if any(by_verb[verb] > k for verb in v) or (p is not None and by_phrase[p] > k)
            ],
            dtype=np.int64,
        )

    def _groups(self, caption: str) -> list[dict[str, np.ndarray]]:
        """Action -> captions that show it: the phrases that a caption contains, and its verbs."""
        return [
            {p: self._by_phrase[p] for p in contains(caption, self._by_phrase)},
            {v: self._by_verb[v] for v in verbs(caption) if v in self._by_verb},
        ]

    def _count(self, rows: np.ndarray) -> int:
        """How many videos some captions are about."""
        return len(np.unique(self.video[rows])) if self.num_videos < len(self) else len(rows)

    def _draw(
        self, groups: Sequence[dict[str, np.ndarray]], k: int, rng: np.random.Generator, exclude: Iterable[int]
    ) -> list[RetrievedReference]:
        """Up to k videos, evenly from the union of the first group's members, then of the next group's."""
        taken = {int(self.video[number]) for number in exclude}
        chosen: list[RetrievedReference] = []
        for group in groups:
            if len(chosen) == k or not group:
                continue
            rows = np.unique(np.concatenate(list(group.values())))
            rows = rows[~np.isin(self.video[rows], list(taken))]
            if self.num_videos < len(self):  # one caption of each video
                rows = np.sort(rows[np.unique(self.video[rows], return_index=True)[1]])
            for number in rng.choice(rows, size=min(k - len(chosen), len(rows)), replace=False).tolist():
                action = next(name for name, members in group.items() if _has(members, number))
                taken.add(int(self.video[number]))
                chosen.append(RetrievedReference(number, action))
        return chosen


class VerbPairSampler:
    """Training triples for `lvdm.data`: a target, and k references that share a verb with its caption (eq. 8).

    Targets are drawn evenly from the videos that have k such positives. Raises DataError if there are none.
    """

    def __init__(self, index: VerbIndex, num_references: int = 1):
        self.index, self.num_references = index, num_references
        targets = index.targets(num_references)
        self._targets = targets[np.argsort(index.video[targets], kind="stable")]  # captions of one video side by side
        _, self._first, self._several = np.unique(index.video[self._targets], return_index=True, return_counts=True)
        if not len(targets):
            raise DataError(
                f"none of the {len(index)} captions shares a verb with {num_references} others: the data has no pairs; "
                "references.kind = self pairs every video with itself"
            )

    @property
    def unused(self) -> int:
        """Number of videos that are never a target, for want of a verb or of positives."""
        return self.index.num_videos - len(self._first)

    def __call__(self, rng: np.random.Generator, records: Sequence[ClipRecord], number: int = 0) -> list[int]:
        """[target, reference, ...] as indices of `records`, which must be the videos of the index."""
        if len(records) != len(self.index):
            raise DataError(f"the verb index has {len(self.index)} videos, the data set {len(records)}: index it anew")
        video = rng.integers(len(self._first))
        caption = rng.integers(self._several[video]) if self._several[video] > 1 else 0
        target = int(self._targets[self._first[video] + caption])
        return [target, *(choice.index for choice in self.index.positives(target, self.num_references, rng))]


@dataclass(frozen=True)
class _IndexedVideo:
    """An entry of an index file."""

    path: str
    caption: str
    verbs: list[str]
    phrase: str | None = None


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
    actions = [verbs(caption) for caption in progress([record.caption for record in records])]
    return Library([Path(record.path) for record in records], VerbIndex.of_records(records, actions))


def save_library(path: str | os.PathLike[str], library: Library) -> None:
    """Write an index file (JSON); video paths are stored relative to it, so both can move together."""
    folder, index = Path(path).resolve().parent, library.index
    rows = zip(library.paths, index.captions, index.verbs, index.phrases)
    videos = [
        {"path": os.path.relpath(Path(file).resolve(), folder), "caption": caption, "verbs": v, "phrase": p}
        for file, caption, v, p in rows
    ]
    write_json(path, {"format": FORMAT_VERSION, "videos": videos})


def load_library(path: str | os.PathLike[str]) -> Library:
    """Read an index file. Raises DataError if it is missing, not one, or of another format version."""
    path = checked_path(path, DataError)
    with hinted("make an index of references with aicl index"):
        content = read_object(path, DataError)
        if "format" not in content or not isinstance(content.get("videos"), list):
            raise DataError(f"{path} is not an index of references")
    if content["format"] != FORMAT_VERSION:
        version = content["format"]
        raise DataError(
            f"{path} has index format {version}, this version reads {FORMAT_VERSION}: index the videos anew"
        )
    videos = [
        from_mapping(
            _IndexedVideo, checked(video, dict, f"{path}: video {number}", DataError), f"{path}: video {number}"
        )
        for number, video in enumerate(content["videos"])
    ]
    folder = path.resolve().parent
    paths = [Path(os.path.normpath(folder / checked_path(video.path, DataError))) for video in videos]
    captions, verbs, phrases = ([getattr(video, name) for video in videos] for name in ("caption", "verbs", "phrase"))
    return Library(paths, VerbIndex(captions, verbs, phrases, videos=paths))


def _members(labels: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """label -> the numbers of the videos that have it, ascending."""
    members: dict[str, list[int]] = {}
    for i, own in enumerate(labels):
        for label in own:
            members.setdefault(label, []).append(i)
    return {label: np.array(numbers, dtype=np.int64) for label, numbers in members.items()}


def _has(members: np.ndarray, number: int) -> bool:
    position = int(np.searchsorted(members, number))
    return position < len(members) and int(members[position]) == number
