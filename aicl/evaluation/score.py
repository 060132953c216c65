"""Scoring a folder of generated videos, against a folder of real ones where a metric needs them."""

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from aicl.evaluation.benchmark import Benchmark
from aicl.evaluation.estimates import describe, estimate, estimates_by_seed, lines_beside, own_rates, shares_by_label
from aicl.evaluation.evaluators.classifier import plain_label
from aicl.evaluation.generated import Generated
from aicl.evaluation.metric import Evaluator, Metric, Observed, TextEvaluator
from aicl.evaluation.observe import ObservationStore, View, look, look_at_texts, texts_seen
from aicl.evaluation.results import Protocol, Result
from aicl.evaluation.sample import Clip
from lvdm.errors import ConfigError, DataError, VideoError
from lvdm.hashing import file_hash, text_hash
from lvdm.video import ShortRule, load_clip, probe, to_pixels

_SAME = 0.01  # rates that differ by less, as a share, are one rate


@dataclass(frozen=True)
class ClipReading:
    """Which frames are compared, in every video: `frames` of them, `stride` apart or at `fps`, from the middle.

    One of stride and fps is given. size: (height, width) that videos are scaled to cover and cropped to. allow_short:
    slow down videos that are too short, where otherwise they are an error. Raises ConfigError for what is not positive.
    """

    frames: int
    size: tuple[int, int]
    stride: float | None = None
    fps: float | None = None
    allow_short: bool = False

    def __post_init__(self) -> None:
        for name, value in (("frames", self.frames), ("stride", self.stride), ("fps", self.fps)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value:g}: it must be positive")
        if min(self.size) < 1:
            raise ConfigError(f"size is {self.size[1]}x{self.size[0]}: both sides must be positive")
        if (self.stride is None) == (self.fps is None):
            raise ConfigError("give either a stride or a rate (fps) at which frames are taken")

    def read(self, path: str | os.PathLike[str]) -> Tensor:
        """Frames (3, t, h, w) in [-1, 1]. Raises VideoError."""
        short: ShortRule = "stretch" if self.allow_short else "error"
        try:
            return load_clip(path, self.frames, self.size, fps=self.fps, stride=self.stride, short=short)
        except VideoError as error:
            if str(path) in str(error):
                raise
            remedy = "take fewer frames (--frames) or allow short videos (--allow-short)"
            if self.fps is not None:  # a rate has no stride to be lowered
                short_of = f"{self.frames} frames at {self.fps:g} a second"
                raise VideoError(f"{path}: is shorter than {short_of}; {remedy}") from error
            raise VideoError(f"{path}: {error}, {remedy}") from error

    def __str__(self) -> str:
        """In words, for protocols and caches."""
        step = f"stride {self.stride:g}" if self.stride else f"{self.fps:g} fps"
        short = ", short ones slowed" if self.allow_short else ""
        return f"{self.frames} frames, {step}, from the middle{short}; antialiased bilinear, centre crop to {self.size}"


class _Files:
    """Videos of a folder, read in one way: the part of a benchmark that `look` needs."""

    def __init__(self, reading: ClipReading) -> None:
        self._reading, self._hashes = reading, dict[Path, str]()

    def view(self, path: Path) -> View:
        """The view of a file."""
        if path not in self._hashes:
            self._hashes[path] = file_hash(path)
        return View(self._hashes[path], clip=Clip(str(path), "", path=path))

    def load(self, clips: Sequence[Clip]) -> tuple[Tensor, list[float]]:
        """Their pixels, uint8 (n, frames, h, w, 3), and own rates."""
        paths = [clip.path for clip in clips if clip.path is not None]
        return torch.stack([to_pixels(self._reading.read(path)) for path in paths]), [probe(p).fps for p in paths]


def choose_reading(videos: Sequence[Generated], real: Sequence[Path], **changes: Any) -> ClipReading:
    """How to read generated and real videos: all frames, at the size of the first video, with `changes` to that.

    Raises VideoError for videos of unequal length where the changes do not say how many frames to take, ConfigError
    where rates differ, between the two sets or within one, and `fps` does not say at which they are compared.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    first = probe(videos[0].path)
    values: dict[str, Any] = {"frames": first.num_frames, "size": (first.height, first.width)}
    shown = {video.reference for video in videos if video.reference is not None and video.reference.is_file()}
    if "fps" not in changes:
        for path in (*(video.path for video in videos), *real, *sorted(shown)):
            rate = probe(path).fps
            if abs(rate / first.fps - 1) > _SAME:
                raise ConfigError(
                    f"{videos[0].path} has {first.fps:g} frames a second and {path} {rate:g}: say with --fps at which "
                    "rate they are compared"
                )
        changes.setdefault("stride", 1.0)
    if "frames" not in changes:
        other = next((v.path for v in videos if probe(v.path).num_frames != first.num_frames), None)
        if other is not None:
            raise VideoError(
                f"{videos[0].path} has {first.num_frames} frames and {other} {probe(other).num_frames}: say with "
                "--frames how many to measure of each"
            )
        if "fps" in changes:  # as many as last as long
            values["frames"] = int((first.num_frames - 1) * changes["fps"] / first.fps + 1e-6) + 1
    return ClipReading(**values | changes)


def score(
    row: str,
    videos: Sequence[Generated],
    real: Sequence[Path],
    reading: ClipReading,
    evaluators: Mapping[str, Evaluator],
    metrics: Sequence[Metric],
    *,
    cache: str | os.PathLike[str] = "outputs/observations",
    batch_size: int = 16,
    allow_few: bool = False,
) -> Result:
    """Measure what evaluators and manifest allow; the result says what is left out and why.

    allow_few: measure sets of fewer videos than a metric needs. Raises UserError for videos that cannot be read or
    compared.
    """
    if len(videos) < 2:
        one = f"'{row}' has {'a single video' if videos else 'no videos'}"
        raise DataError(f"{one}, which gives no estimate: two are the least, and most metrics need far more")
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}: it must be at least 1")
    missing = {
        m.name: f"no {' or '.join(sorted(absent))} is given"
        for m in metrics
        if (absent := m.roles() - evaluators.keys())
    }
    possible = [metric for metric in metrics if metric.name not in missing]
    whole = _observe(videos, real, reading, evaluators, possible, cache, batch_size, allow_few)
    missing |= {m.name: f"there is no {lacks[0]}" for m in possible if (lacks := m.missing(whole))}
    measured = [metric for metric in possible if metric.name not in missing]
    networks, versions = describe(evaluators, measured)
    seeds = [video.seed for video in videos]
    protocol = Protocol(
        data="a folder of videos",
        generated=len(videos),
        real=len(real),
        frames=reading.frames,
        size=reading.size,
        seeds=[] if None in seeds else sorted({int(seed) for seed in seeds if seed is not None}),
        prompts=text_hash(video.prompt for video in videos),
        real_list=text_hash(file_hash(path) for path in real),
        stride=reading.stride,
        fps=reading.fps,
        filter=str(reading),
        networks=networks,
        versions=versions,
    )
    return Result(
        row,
        {"folder": str(videos[0].path.parent)},
        {metric.name: estimate(metric, whole) for metric in measured},
        protocol,
        lines_beside(measured, whole),
        estimates_by_seed(measured, [whole]),
        shares_by_label(measured, whole),
        rates={
            "generated": own_rates(whole.videos),
            "real": [] if whole.real is None else own_rates(whole.real.videos),
            "compared": [] if reading.fps is None else [reading.fps],
        },
        missing=missing,
        videos=text_hash(file_hash(video.path) for video in videos),
    )


def _observe(
    videos: Sequence[Generated],
    real: Sequence[Path],
    reading: ClipReading,
    evaluators: Mapping[str, Evaluator],
    metrics: Sequence[Metric],
    cache: str | os.PathLike[str],
    batch_size: int,
    allow_few: bool,
) -> Observed:
    """Let the evaluators look at everything, and gather what they saw."""
    store, files = ObservationStore(Path(cache), str(reading)), _Files(reading)
    used = {role: e for role, e in evaluators.items() if any(role in metric.roles() for metric in metrics)}
    views = {"videos": [files.view(video.path) for video in videos], "real": [files.view(path) for path in real]}
    views |= _references(videos, files)
    real_labels = _classes(videos, real)
    if real_labels is not None:
        views |= _targets(videos, real, real_labels, files)
    roles = frozenset(used)
    everything = [View(v.content, v.clip, v.path, roles) for side in views.values() for v in side]
    benchmark = cast(Benchmark, files)  # views that are clips need its `load` alone
    look(store, everything, benchmark, used, batch_size=batch_size, say=lambda text: None)
    seen = {
        side: {
            f"{role}.{name}": value
            for role, evaluator in used.items()
            for name, value in store.read(evaluator, [view.content for view in found]).items()
        }
        for side, found in views.items()
        if found
    }
    prompts, labels = [video.prompt for video in videos], [video.label for video in videos]
    readers = [e for e in used.values() if isinstance(e, TextEvaluator)]
    for reader in readers:
        look_at_texts(store, reader, prompts)
    classes = None if None in labels else [str(label) for label in labels]
    known: dict[str, Any] = {
        "pool": None if classes is None else sorted(set(classes)),
        "classifier": evaluators.get("classifier"),
        "allow_few": allow_few,
    }
    return Observed(
        videos=seen["videos"],
        reference=seen.get("reference", {}),
        other=seen.get("other", {}),
        target=seen.get("target", {}),
        texts={f"{e.role}.{n}": v for e in readers for n, v in texts_seen(store, e, prompts).items()},
        prompts=prompts,
        labels=classes,
        real=Observed(seen["real"], labels=real_labels, **known) if real else None,
        **known,
    )


def _classes(videos: Sequence[Generated], real: Sequence[Path]) -> list[str] | None:
    """The class of each real video, where real ones lie in folders that are called as the videos' classes, else None.

    In any spelling: "PlayingGuitar" is the folder of "playing guitar".
    """
    labels = {plain_label(video.label): video.label for video in videos if video.label is not None}
    found = [labels.get(plain_label(path.parent.name)) for path in real]
    return [label for label in found if label is not None] if real and None not in found else None


def _targets(
    videos: Sequence[Generated], real: Sequence[Path], labels: Sequence[str], files: _Files
) -> dict[str, list[View]]:
    """A real clip of each video's class, another one for the next of that class; never the reference that was shown."""
    found: list[View] = []
    turns: Counter[str] = Counter()
    for video in videos:
        shown = video.reference if video.reference is not None and video.reference.is_file() else None
        clips = [files.view(path) for path, label in zip(real, labels) if label == video.label]
        clips = [view for view in clips if shown is None or view.content != files.view(shown).content]
        if not clips:
            return {}
        found.append(clips[turns[str(video.label)] % len(clips)])
        turns[str(video.label)] += 1
    return {"target": found}


def _references(videos: Sequence[Generated], files: _Files) -> dict[str, list[View]]:
    """Each video's own reference, and another one, where all have references and there are different ones.

    Only warns of references that are gone.
    """
    if any(video.reference is None for video in videos):
        return {}
    references = [video.reference for video in videos if video.reference is not None]
    if lost := [path for path in references if not path.is_file()]:
        warnings.warn(f"{lost[0]} is not there: nothing is compared with references", stacklevel=4)
        return {}
    found = {"reference": [files.view(path) for path in references]}
    others = [_other(videos, index) for index in range(len(videos))]
    numbers = [other for other in others if other is not None]
    if len(numbers) == len(videos):
        found["other"] = [files.view(references[other]) for other in numbers]
    return found


def _other(videos: Sequence[Generated], index: int) -> int | None:
    """The next video with another reference and, where its class is known, another class; None where there is none."""
    own = videos[index]
    for number in range(index + 1, index + len(videos)):
        other = videos[number % len(videos)]
        if other.reference != own.reference and (own.label is None or other.label != own.label):
            return number % len(videos)
    return None
