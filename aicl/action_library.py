"""A searchable library of clips: made once by `aicl index`, added to, and asked by text, motion or an example clip.

    FOLDER/library.json               what made the vectors, and where the videos lie
    FOLDER/parts/00000.safetensors    some videos: their vectors, and in the metadata their captions and verbs

A part appears whole or not at all and is never changed, so that adding can be interrupted at any time and goes on where
it stopped. A video that was changed since is read again, into a later part, and the later part counts.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from aicl.reference_retrieval import VerbIndex
from lvdm.config import from_mapping
from lvdm.data.clips import ClipRecord
from lvdm.errors import ConfigError, DataError
from lvdm.files import atomic_path, json_text, locked, write_json
from lvdm.outside import checked, metadata_object, open_tensors, read_object

if TYPE_CHECKING:
    from aicl.action_embeddings import Embedder

Way = Literal["verbs", "text", "motion", "appearance"]
WAYS: tuple[Way, ...] = get_args(Way)
FORMAT_VERSION = 1
ABOUT, PARTS, METADATA = "library.json", "parts", "aicl_library"
_VECTORS = ("text", "motion", "appearance")
_PART = 64  # videos of a part: what a kill costs at most
_ALIKE = 0.97  # the cosines, of motion and of appearance, from which on two clips are nearly the same
_CENTRED = 8  # videos, from which on what all have in common is taken off their vectors


@dataclass(frozen=True)
class Found:
    """A clip of a library, and why it was chosen: `reason` is a sentence, `score` a cosine (1 for a shared verb)."""

    path: Path
    caption: str
    score: float
    reason: str


@dataclass(frozen=True)
class _Video:
    """An entry of a part. stamp: the file's bytes and time of change (us), by which it is known again."""

    path: str
    caption: str
    verbs: list[str]
    phrase: str | None
    stamp: list[int]


class ActionLibrary:
    """The videos of a library with their vectors. `identity` says what made these."""

    def __init__(
        self,
        paths: Sequence[Path],
        index: VerbIndex,
        vectors: dict[str, NDArray[np.float32]],
        identity: dict[str, Any] | None = None,
    ) -> None:
        """vectors: of length 1, (n, d) each, under "text", "motion" and "appearance"."""
        self.paths, self.index, self.identity = list(paths), index, identity or {}
        centred = len(self.paths) >= _CENTRED
        self._means = {name: v.mean(0, keepdims=True) if centred else 0 * v[:1] for name, v in vectors.items()}
        self._vectors = {name: _unit(v - self._means[name]) for name, v in vectors.items()}
        self._searchers: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "ActionLibrary":
        """Read a library; videos that are no longer there are left out. Raises DataError for what is none."""
        folder = Path(folder)
        about = _about(folder)
        known = _entries(folder)
        present = [(video, vectors) for video, vectors in known.values() if (folder / video.path).is_file()]
        if not present:
            raise DataError(f"{folder} holds no videos that are still there: add some with aicl index")
        videos = [video for video, _ in present]
        paths = [Path(os.path.normpath(folder / video.path)) for video in videos]
        index = VerbIndex([v.caption for v in videos], [v.verbs for v in videos], [v.phrase for v in videos], paths)
        stacked = {name: np.stack([vectors[name] for _, vectors in present]) for name in _VECTORS}
        return cls(paths, index, stacked, about["identity"])

    def actions(self) -> dict[str, int]:
        """How many videos show each verb, most frequent first."""
        return self.index.counts()

    def search(
        self,
        text: str | None = None,
        *,
        clip: Any = None,
        by: Way | None = None,
        k: int = 4,
        embedder: "Embedder | None" = None,
        seed: int = 0,
        exclude: Iterable[Path] = (),
        alike: float = _ALIKE,
    ) -> list[Found]:
        """Up to k clips, the best first, none nearly the same as one before it (both cosines from `alike` up).

        by: "verbs" takes clips that share a verb with the text, in an order drawn from `seed`; "text" compares
        captions; "motion" and "appearance" compare with `clip`, a video in any form that a reference may have. None:
        motion where there is a clip, else verbs where the text names one that the library has, else text.
        embedder: makes the vectors of text or clip, for all but verbs. exclude: files that are not wanted.
        Raises ConfigError for a search that lacks what it takes, DataError where nothing fits.
        """
        by = by or self.way(text, clip)
        if by not in WAYS:
            raise ConfigError(f"by is {by!r}: choose from {', '.join(WAYS)}")
        if k < 1:
            raise ConfigError(f"k is {k}: ask for at least one clip")
        without = {os.path.realpath(path) for path in exclude}
        barred = {number for number, path in enumerate(self.paths) if os.path.realpath(path) in without}
        ranked = self._shared(text, seed) if by == "verbs" else self._near(by, text, clip, embedder)
        chosen: list[int] = []
        found: list[Found] = []
        for number, score, reason in ranked:
            if number in barred or any(self.nearly_the_same(number, other, alike) for other in chosen):
                continue
            chosen.append(number)
            found.append(Found(self.paths[number], self.index.captions[number], score, reason))
            if len(found) == k:
                break
        if not found:
            raise DataError("no clip of the library fits: search by another way, or add clips with aicl index")
        return found

    def nearly_the_same(self, one: int, other: int, alike: float = _ALIKE) -> bool:
        """Whether two videos have nearly the same motion and appearance, as copies and recodings of a file have."""
        names = ("motion", "appearance")
        return all(float(self._vectors[name][one] @ self._vectors[name][other]) >= alike for name in names)

    def way(self, text: str | None, clip: Any = None) -> Way:
        """What a search compares where it does not say: see `search`. Raises ConfigError without text and clip."""
        if clip is not None:
            return "motion"
        if text is None:
            raise ConfigError("a search needs a text or an example clip")
        return "verbs" if self.index.shared(text) else "text"

    def _shared(self, text: str | None, seed: int) -> Iterable[tuple[int, float, str]]:
        """Videos that share a whole phrase with the text, then those that share a verb, each in a drawn order."""
        if text is None:
            raise ConfigError("a search by verbs needs a text")
        groups = self.index.shared(text)
        if not groups:
            raise DataError(
                f"no clip of the library shares a verb with '{text}': it has {', '.join(list(self.actions())[:8])}"
            )
        rng = np.random.default_rng(seed)
        for members in groups:
            for number in rng.permutation(sorted(members)).tolist():
                yield number, 1.0, f"its caption shares '{members[number]}' with the text"

    def _near(
        self, by: Way, text: str | None, clip: Any, embedder: "Embedder | None"
    ) -> Iterable[tuple[int, float, str]]:
        """All videos by their cosine with what is asked for, the nearest first."""
        if embedder is None:
            raise ConfigError(f"a search by {by} needs the model that made the library: name it")
        if not hasattr(embedder, "identity"):
            raise ConfigError(f"embedder must be an Embedder, such as Embedder(pipe), got a {type(embedder).__name__}")
        if self.identity and embedder.identity() != self.identity:
            raise ConfigError(
                "the library was made with another model: search with that one (--model, or --base and --adapter), or "
                "index the clips anew"
            )
        if by == "text":
            if text is None:
                raise ConfigError("a search by text needs a text")
            query, what = embedder.texts([text]), "its caption is {:.2f} alike to the text"
        else:
            if clip is None:
                raise ConfigError(f"a search by {by} needs an example clip")
            motion, appearance = embedder.clips([clip])
            query = motion if by == "motion" else appearance
            what = f"its {by} is {{:.2f}} alike to the example's (1 is the same)"
        scores, numbers = self._searcher(by).search(_unit(query - self._means[by]), len(self))
        for score, number in zip(scores[0].tolist(), numbers[0].tolist()):
            yield number, score, what.format(score)

    def _searcher(self, by: str) -> Any:
        """The exact FAISS index of one kind of vectors, made when it is first asked."""
        if by not in self._searchers:
            try:
                import faiss  # an extra: only searches by vectors need it
            except ModuleNotFoundError as error:
                raise ConfigError(
                    "a search by text, motion or appearance needs FAISS: pip install 'aicl[library]'"
                ) from error
            vectors = self._vectors[by]
            self._searchers[by] = faiss.IndexFlatIP(vectors.shape[1])
            self._searchers[by].add(vectors)
        return self._searchers[by]


def add_clips(
    folder: str | os.PathLike[str],
    records: Sequence[ClipRecord],
    embedder: "Embedder",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    batch_size: int = 8,
) -> tuple[int, list[str]]:
    """Make a library, or add to it what it lacks or what changed, be it a video or its caption; returns how many videos
    were added, and what could not be read.

    Of a video with several captions the first is kept. Raises DataError for a library of another model, UserError
    while another process adds to it.
    """
    from aicl.reference_encoding import in_batches, of_readable
    from aicl.verbs import phrase, verbs

    folder = Path(folder)
    check_library_place(folder)
    with locked(folder, "is adding clips"):
        identity = json.loads(json_text(embedder.identity()))
        if (folder / ABOUT).is_file():
            if _about(folder)["identity"] != identity:
                raise DataError(f"{folder} was made with another model: add with that one, or choose another folder")
        else:
            write_json(folder / ABOUT, {"format": FORMAT_VERSION, "identity": identity})
        known = {path: (video.stamp, video.caption) for path, (video, _) in _entries(folder).items()}
        place = folder.resolve()
        listed: set[str] = set()
        new: list[_Video] = []
        for record in records:
            path = os.path.relpath(Path(record.path).resolve(), place)
            if path in listed:
                continue
            listed.add(path)
            status = Path(record.path).stat()
            stamp = [status.st_size, status.st_mtime_ns // 1000]
            if known.get(path) != (stamp, record.caption):
                new.append(_Video(path, record.caption, list(verbs(record.caption)), phrase(record.caption), stamp))
        refused: list[str] = []
        waiting: list[tuple[_Video, dict[str, NDArray[np.float32]]]] = []
        added = 0
        try:
            for batch in in_batches(new, batch_size, progress):
                rows, reasons = of_readable(batch, lambda videos: _embedded(videos, place, embedder))
                waiting += rows
                refused += reasons
                if len(waiting) >= _PART:
                    added += _write_part(folder, waiting)
                    waiting = []
        finally:  # what was encoded before Ctrl-C is kept
            added += _write_part(folder, waiting)
        return added, refused


def check_library_place(folder: str | os.PathLike[str]) -> None:
    """Raise DataError where something else than a library lies at its place."""
    folder = Path(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise DataError(f"{folder} is a file, and a library is a folder: choose another place, or a name with .json")
    if folder.exists() and any(folder.iterdir()) and not (folder / ABOUT).is_file():
        raise DataError(f"{folder} is no library of clips and not empty: choose another folder")


def _embedded(
    videos: Sequence[_Video], place: Path, embedder: "Embedder"
) -> list[tuple[_Video, dict[str, NDArray[np.float32]]]]:
    """Videos with their vectors. Raises VideoError where one cannot be read."""
    motion, appearance = embedder.clips([Path(os.path.normpath(place / video.path)) for video in videos])
    text = embedder.texts([video.caption for video in videos])
    rows = zip(videos, text, motion, appearance)
    return [(video, {"text": t, "motion": m, "appearance": a}) for video, t, m, a in rows]


def _write_part(folder: Path, rows: Sequence[tuple[_Video, dict[str, NDArray[np.float32]]]]) -> int:
    """Write a part of these videos under the next number; returns how many they are."""
    if not rows:
        return 0
    from safetensors.numpy import save_file

    numbers = [int(path.stem) for path in (folder / PARTS).glob("*.safetensors")]
    tensors = {name: np.stack([vectors[name] for _, vectors in rows]) for name in _VECTORS}
    metadata = {METADATA: json_text({"format": FORMAT_VERSION, "videos": [asdict(video) for video, _ in rows]})}
    with atomic_path(folder / PARTS / f"{max(numbers, default=-1) + 1:05d}.safetensors") as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return len(rows)


def _about(folder: Path) -> dict[str, Any]:
    """What a library says about itself. Raises DataError for a folder that is none, or of another format."""
    path = folder / ABOUT
    if folder.is_file():
        raise DataError(
            f"{folder} is a file, and a library to search is a folder: make one with aicl index DATA --out FOLDER"
        )
    if not path.is_file():
        raise DataError(f"{folder} is no library of clips: make one with aicl index DATA --out {folder}")
    about = read_object(path, DataError)
    if about.get("format") != FORMAT_VERSION or not isinstance(about.get("identity"), dict):
        raise DataError(f"{path} is of another version or damaged: index the clips anew, into another folder")
    return about


def _entries(folder: Path) -> dict[str, tuple[_Video, dict[str, NDArray[np.float32]]]]:
    """path -> video and its vectors, of all parts, a later part winning. Raises DataError for a damaged one."""
    found: dict[str, tuple[_Video, dict[str, NDArray[np.float32]]]] = {}
    for path in sorted((folder / PARTS).glob("[0-9]*.safetensors")):
        with open_tensors(path, DataError, remedy="remove this file and run aicl index again") as file:
            about = metadata_object(file.metadata(), METADATA, path, DataError)
            vectors = {name: file.get_tensor(name).numpy() for name in _VECTORS}
        rows = checked(about.get("videos"), list, path, DataError)
        if any(v.ndim != 2 or len(v) != len(rows) or not np.isfinite(v).all() for v in vectors.values()):
            raise DataError(f"{path} is damaged: remove this file and run aicl index again")
        for number, row in enumerate(rows):
            video = from_mapping(_Video, checked(row, dict, path, DataError), f"{path}: video {number}")
            found.pop(video.path, None)
            found[video.path] = video, {name: v[number] for name, v in vectors.items()}
    return found


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)
    return unit
