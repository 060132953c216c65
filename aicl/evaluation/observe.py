"""The second stage: what evaluators see, kept by the content of each video and the version and weights of evaluators.

    FOLDER/<role>-<hash of evaluator and reading>/<hash of the contents>.safetensors

A file holds what was seen of one batch, a row a video, and lists their contents, so files stay few and each video is
found by itself. A damaged file counts as missing.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from aicl.evaluation.benchmark import Benchmark
from aicl.evaluation.lossless import read_lossless
from aicl.evaluation.metric import Evaluator, TextEvaluator
from aicl.evaluation.sample import Clip
from aicl.evaluation.time_left import TimeLeft
from lvdm.errors import DataError, VideoError
from lvdm.files import atomic_path
from lvdm.finite import is_finite
from lvdm.hashing import file_hash, text_hash
from lvdm.video import frame_indices, resize_crop, to_frames

RATE = "rate"  # of each video's own frames (1/s), kept beside what is seen of it
_READERS = 8  # threads
_TEXT = "text"


@dataclass(frozen=True)
class View:
    """A video to look at: a clip of the benchmark, or a generated file. content: what identifies what it shows.

    roles: of the evaluators that are to look.
    """

    content: str
    clip: Clip | None = None
    path: Path | None = None
    roles: frozenset[str] = field(default_factory=frozenset)


def generated_view(path: Path, roles: Iterable[str]) -> View:
    """That of a file of the first stage. Raises CheckpointError where it is gone."""
    return View(file_hash(path), path=path, roles=frozenset(roles))


class ObservationStore:
    """A folder of what evaluators saw; reading: in words, which frames of a video they look at, and at what size."""

    def __init__(self, folder: Path, reading: str) -> None:
        self.folder, self.reading = folder, reading
        self._index: dict[Path, dict[str, tuple[Path, int]]] = {}

    def missing(self, evaluator: Evaluator, contents: Iterable[str], kind: str = "") -> set[str]:
        """The contents that the evaluator has not seen."""
        known = self._known(self._place(evaluator, kind))
        return {content for content in contents if content not in known}

    def add(self, evaluator: Evaluator, contents: Sequence[str], seen: Mapping[str, Tensor], kind: str = "") -> None:
        """Keep what was seen of these contents, tensors (n, ...). Raises DataError where a value is not finite."""
        if broken := [name for name, value in seen.items() if not is_finite(value)]:
            raise DataError(
                f"{evaluator.name} sees {broken[0]} that are not finite: look at the videos, and get its weights again"
            )
        place = self._place(evaluator, kind)
        path = place / f"{text_hash(contents)[:24]}.safetensors"
        tensors = {name: value.detach().cpu().contiguous() for name, value in seen.items()}
        with atomic_path(path) as temporary:
            save_file(
                tensors, temporary, metadata={"contents": json.dumps(list(contents)), "evaluator": evaluator.name}
            )
        self._known(place).update({content: (path, row) for row, content in enumerate(contents)})

    def read(self, evaluator: Evaluator, contents: Sequence[str], kind: str = "") -> dict[str, Tensor]:
        """What was seen of these contents, in order. Raises DataError where one is missing."""
        known = self._known(self._place(evaluator, kind))
        if missing := [content for content in contents if content not in known]:
            raise DataError(f"{len(missing)} videos have not been looked at by {evaluator.name}: measure again")
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for position, content in enumerate(contents):
            path, row = known[content]
            wanted.setdefault(path, []).append((position, row))
        parts: dict[str, list[Tensor]] = {}
        order: list[int] = []
        for path, rows in wanted.items():
            order += [position for position, _ in rows]
            for name, value in load_file(path).items():
                parts.setdefault(name, []).append(value[[row for _, row in rows]])
        back = torch.tensor(order).argsort()
        return {name: torch.cat(values)[back] for name, values in parts.items()}

    def refresh(self) -> None:
        """Look at the folder again: other processes have written to it."""
        self._index.clear()

    def _place(self, evaluator: Evaluator, kind: str) -> Path:
        what = [evaluator.name, evaluator.hash, str(evaluator.version), *([kind] if kind else [self.reading])]
        return self.folder / f"{evaluator.role}{kind and '-' + kind}-{text_hash(what)[:24]}"

    def _known(self, place: Path) -> dict[str, tuple[Path, int]]:
        if place not in self._index:
            found: dict[str, tuple[Path, int]] = {}
            for path in sorted(place.glob("*.safetensors")):
                for row, content in enumerate(_contents(path)):
                    found[content] = (path, row)
            self._index[place] = found
        return self._index[place]


def _contents(path: Path) -> list[str]:
    """Those that a file lists; none where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return [str(content) for content in json.loads((file.metadata() or {})["contents"])]
    except (SafetensorError, KeyError, ValueError, OSError):
        return []


def look(
    store: ObservationStore,
    views: Sequence[View],
    benchmark: Benchmark,
    evaluators: Mapping[str, Evaluator],
    *,
    batch_size: int,
    label: str = "",
    rank: int = 0,
    world_size: int = 1,
    say: Callable[[str], None] = print,
) -> int:
    """Let evaluators look at what they have not seen, or at this process's share; returns how many videos that was.

    Views of the same content are looked at once, by all roles that any of them names. Raises VideoError for videos
    that cannot be read or compared.
    """
    unique: dict[str, View] = {}
    for view in views:
        known = unique.get(view.content, view)
        unique[view.content] = View(view.content, view.clip, view.path, known.roles | view.roles)
    todo = {
        role: store.missing(evaluator, [view.content for view in unique.values() if role in view.roles])
        for role, evaluator in evaluators.items()
    }
    missing = set().union(*todo.values())
    everything = list(unique.values())
    batches = [everything[start : start + batch_size] for start in range(0, len(everything), batch_size)]
    mine = [[view for view in batch if view.content in missing] for batch in batches[rank::world_size]]
    mine = [batch for batch in mine if batch]
    if rank == 0:
        say(f"measuring: {len(missing)} of {len(unique)} videos have not been looked at{label and ' of ' + label}")
    total = sum(map(len, mine))
    clock = TimeLeft(total, say if rank == 0 else None, "measuring")
    with (
        ThreadPoolExecutor(_READERS) as readers,
        ThreadPoolExecutor(1) as ahead,  # reads the next batch while evaluators look at one
        tqdm(total=total, unit="video", disable=rank > 0 or not total) as bar,
    ):
        bar.set_description(f"measuring {label}".strip())
        waiting = ahead.submit(_pixels, mine[0], benchmark, readers) if mine else None
        for number, batch in enumerate(mine):
            assert waiting is not None
            pixels, rates = waiting.result()
            following = mine[number + 1 : number + 2]
            waiting = ahead.submit(_pixels, following[0], benchmark, readers) if following else None
            for role, evaluator in evaluators.items():
                rows = [i for i, view in enumerate(batch) if view.content in todo[role]]
                if rows:
                    chosen = pixels if len(rows) == len(batch) else pixels[rows]
                    seen = {n: v.float() for n, v in evaluator.observe(to_frames(chosen)).items()}
                    seen[RATE] = torch.tensor([rates[i] for i in rows])
                    store.add(evaluator, [batch[i].content for i in rows], seen)
            bar.update(len(batch))
            clock.done(len(batch))
    return total


def look_at_texts(
    store: ObservationStore, evaluator: TextEvaluator, prompts: Iterable[str], batch_size: int = 256
) -> None:
    """Let an evaluator read the prompts that it has not read."""
    texts = {text_hash([prompt]): prompt for prompt in prompts}
    missing = sorted(store.missing(evaluator, texts, _TEXT))
    for start in range(0, len(missing), batch_size):
        part = missing[start : start + batch_size]
        seen = evaluator.observe_text([texts[content] for content in part])
        store.add(evaluator, part, {name: value.float() for name, value in seen.items()}, _TEXT)


def texts_seen(store: ObservationStore, evaluator: TextEvaluator, prompts: Sequence[str]) -> dict[str, Tensor]:
    """What the evaluator read in each prompt, (n, ...)."""
    return store.read(evaluator, [text_hash([prompt]) for prompt in prompts], _TEXT)


def compared_frames(pixels: Tensor, rate: float, benchmark: Benchmark) -> Tensor:
    """A generated video as it is compared: uint8 (frames, *size, 3), from its middle, at the benchmark's rate.

    Raises VideoError for a video that is too short or too slow for that.
    """
    check_comparable_length(len(pixels), rate, benchmark)
    picked = frame_indices(len(pixels), benchmark.frames, source_fps=rate, target_fps=benchmark.fps, short="error")
    return resize_crop(pixels[picked], benchmark.size)


def check_comparable_length(count: int, rate: float, benchmark: Benchmark) -> None:
    """Raise VideoError unless `count` frames at `rate` hold the benchmark's frames at its rate, without repeats."""
    needed = (benchmark.frames - 1) * rate / benchmark.fps + 1
    if rate < benchmark.fps * 0.999 or count < needed - 1e-6:
        raise VideoError(
            f"videos of {count} frames at {rate:g} a second cannot be compared at {benchmark.frames} frames and "
            f"{benchmark.fps:g} a second: set benchmark.frames or benchmark.fps lower"
        )


@torch.no_grad()
def _pixels(batch: Sequence[View], benchmark: Benchmark, readers: ThreadPoolExecutor) -> tuple[Tensor, list[float]]:
    """All videos of a batch as they are compared, uint8 (n, frames, *size, 3), and their own rates."""

    def read(path: Path) -> tuple[Tensor, float]:
        pixels, rate = read_lossless(path)
        return compared_frames(pixels, rate, benchmark), rate

    files = readers.map(read, [view.path for view in batch if view.path is not None])
    clips = [view.clip for view in batch if view.path is None and view.clip is not None]
    pixels, rates = benchmark.load(clips) if clips else (torch.empty(0), [])
    drawn = iter(zip(pixels, rates))
    found = [next(drawn if view.path is None else files) for view in batch]
    device = pixels.device if len(clips) else "cpu"
    return torch.stack([one.to(device) for one, _ in found]), [rate for _, rate in found]
