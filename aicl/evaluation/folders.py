"""Scoring a folder of generated videos, against a folder of real ones where a measure needs them."""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aicl.evaluation import frechet, intervals, motion
from aicl.evaluation.accuracy import TransformersClassifier, puppet_verdict, top1
from aicl.evaluation.appearance import appearance_hits, similarity_margin
from aicl.evaluation.clip_scores import FrameTextEncoder, Pairs, clip_consistency, frame_consistency
from aicl.evaluation.features import Backbone, FeatureCache
from aicl.evaluation.intervals import Estimate
from aicl.evaluation.motion import FlowModel, dynamic_degree, motion_histogram, motion_similarity, video_flow
from aicl.evaluation.protocol import Protocol, Result
from aicl.evaluation.weights import file_hash, text_hash
from aicl.puppets.actions import INDEX
from aicl.puppets.captions import parse
from aicl.puppets.classifier import PuppetClassifier
from aicl.puppets.scene_parameters import BACKGROUNDS, COLOURS
from lvdm.data import read_folder
from lvdm.errors import ConfigError, DataError, VideoError
from lvdm.video import VIDEO_ENDINGS, load_clip, probe

MANIFEST = "manifest.jsonl"  # lists the videos of a folder


@dataclass(frozen=True)
class Generated:
    """A generated video: its file, prompt, and where known its class, the reference that was shown, and its seed."""

    path: Path
    prompt: str
    label: str | None = None
    reference: Path | None = None
    seed: int | None = None


@dataclass(frozen=True)
class ClipReading:
    """Which frames are measured, in every video: `frames` of them, `stride` apart or at `fps`, from the middle.

    Without both, the stride is 1. size: (height, width) that videos are scaled to cover and cropped to. allow_short:
    slow down videos that are too short, where otherwise they are an error. Raises ConfigError for what is not positive.
    """

    frames: int
    size: tuple[int, int]
    stride: float | None = None
    fps: float | None = None
    allow_short: bool = False

    def __post_init__(self) -> None:
        if self.stride is None and self.fps is None:
            object.__setattr__(self, "stride", 1.0)
        for name, value in (("frames", self.frames), ("stride", self.stride), ("fps", self.fps)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value:g}: it must be positive")
        if min(self.size) < 1:
            raise ConfigError(f"size is {self.size[1]}x{self.size[0]}: both sides must be positive")

    def __call__(self, path: str | os.PathLike) -> Tensor:
        """Frames (3, t, h, w) in [-1, 1]. Raises VideoError."""
        short = "stretch" if self.allow_short else "error"
        try:
            return load_clip(path, self.frames, self.size, fps=self.fps, stride=self.stride, short=short)
        except VideoError as error:
            known = str(path) in str(error)
            raise VideoError(str(error) if known else f"{path}: {error}, take fewer frames or allow short") from error

    def __str__(self) -> str:
        """In words, for protocols and caches."""
        step = f"stride {self.stride:g}" if self.stride else f"{self.fps:g} fps"
        short = ", short ones slowed" if self.allow_short else ""
        return f"{self.frames} frames, {step}, from the middle{short}; antialiased bilinear, centre crop to {self.size}"


@dataclass
class Networks:
    """What measures; a measure whose network is None is left out. flow: Lucas-Kanade or RAFT, by its `flow_name`."""

    fvd: Backbone | None = None
    clip: FrameTextEncoder | None = None
    classifier: TransformersClassifier | None = None
    puppet_classifier: PuppetClassifier | None = None
    puppet_hash: str = ""
    flow: FlowModel = motion.lucas_kanade
    flow_name: str = "Lucas-Kanade"

    def hashes(self) -> dict[str, str]:
        """SHA-256 by name."""
        named = [network for network in (self.fvd, self.clip, self.classifier) if network is not None]
        found = {network.name: network.hash for network in named}
        return found | ({"puppet-classifier": self.puppet_hash} if self.puppet_classifier is not None else {})


def read_generated(folder: str | os.PathLike, manifest: str | os.PathLike | None = None) -> list[Generated]:
    """The generated videos of a folder.

    With a manifest (.jsonl), by default manifest.jsonl in the folder where that is there: its lines, {"file": ...,
    "caption": ..., "label": ..., "reference": ...}, the last two optional, files relative to the folder. Without: every
    video with the JSON file that aicl sample writes beside it, else with a caption in a .txt file. Raises
    DataError for what is missing, other than references of aicl sample: folders are copied without them, and its paths
    may be relative to another folder.
    """
    folder = Path(folder)
    own = folder / MANIFEST
    if manifest is not None or own.is_file():
        return list(_listed(folder, Path(manifest or own)))
    sampled = [video for path in sorted(folder.glob("*.json")) if (video := _sampled(path)) is not None]
    return sampled or [Generated(Path(r.path), r.caption, r.label) for r in read_folder(folder)]


def list_videos(folder: str | os.PathLike) -> list[Path]:
    """All videos below a folder, sorted. Raises DataError if there are none."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: is not a folder; give a folder of videos")
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in VIDEO_ENDINGS)
    if not found:
        raise DataError(f"{folder} holds no videos with an ending of {', '.join(VIDEO_ENDINGS)}")
    return found


def default_reading(videos: Sequence[Generated], **changes: Any) -> ClipReading:
    """All frames, at the size of the first video, with `changes` to that.

    Raises VideoError for videos of unequal length where the changes do not say how many frames to take.
    """
    info = probe(videos[0].path)
    values = {"frames": info.num_frames, "size": (info.height, info.width)}
    changes = {name: value for name, value in changes.items() if value is not None}
    if "frames" not in changes:
        other = next((v.path for v in videos if probe(v.path).num_frames != info.num_frames), None)
        if other is not None:
            raise VideoError(
                f"{videos[0].path} has {info.num_frames} frames and {other} {probe(other).num_frames}: say with "
                "--frames how many to measure of each"
            )
    return ClipReading(**values | changes)


def score(
    row: str,
    videos: Sequence[Generated],
    real: Sequence[Path],
    reading: ClipReading,
    networks: Networks,
    *,
    pairs: Pairs = "consecutive",
    cache: str | os.PathLike = "outputs/features",
    batch_size: int = 16,
    allow_few: bool = False,
    device: torch.device | str = "cpu",
) -> Result:
    """Measure all that networks and manifest allow. Without `real` videos there is no FVD, nor a line of theirs.

    allow_few: compute a Frechet distance of fewer videos than features. Raises UserError for videos that cannot be read
    or compared.
    """
    if len(videos) < 2:
        raise DataError(f"{len(videos)} videos give no estimate: generate more")
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}: it must be at least 1")
    compare = all(video.reference is not None for video in videos)
    measured = _measure([v.path for v in videos], videos, reading, networks, pairs, batch_size, device, compare)
    measured |= _hits(measured, videos, networks)
    metrics = {name: intervals.mean(measured[name]) for name in ("cc", "fc", "dynamics") if name in measured}
    metrics |= {name: intervals.share(measured[name]) for name in ("acc", "looks") if name in measured}
    metrics |= _against_references(videos, measured, reading, networks, batch_size, device)
    lines: dict[str, float] = {"fc_static": 100.0} if networks.clip is not None else {}
    if real:
        of_real = _measure(real, None, reading, networks, pairs, batch_size, device, compare=False)
        lines |= {f"{name}_real": of_real[name].mean().item() for name in ("fc", "dynamics") if name in of_real}
    if real and networks.fvd is not None:
        store = FeatureCache(cache, networks.fvd, str(reading))
        features, real_features = (
            store.features(paths, reading, batch_size=batch_size) for paths in ([v.path for v in videos], real)
        )
        metrics["fvd"] = frechet.distance_with_interval(features, real_features, allow_few=allow_few)
        lines |= frechet.floor_lines(real_features, len(videos), allow_few=allow_few)
    protocol = Protocol(
        data="a folder of videos",
        generated=len(videos),
        real=len(real),
        frames=reading.frames,
        size=reading.size,
        seeds=sorted({video.seed for video in videos if video.seed is not None}),
        prompts=text_hash(video.prompt for video in videos),
        real_list=text_hash(file_hash(path) for path in real),
        stride=reading.stride,
        fps=reading.fps,
        filter=str(reading),
        networks=networks.hashes(),
        settings={"fc_pairs": pairs, "flow": networks.flow_name},
    )
    files = text_hash(file_hash(video.path) for video in videos)
    return Result(row, {"folder": str(videos[0].path.parent)}, metrics, protocol, lines, videos=files)


def _batches(paths: Sequence[Path], reading: ClipReading, size: int, device: torch.device | str) -> Iterator[Tensor]:
    for start in range(0, len(paths), size):
        yield torch.stack([reading(path) for path in paths[start : start + size]]).to(device)


def _measure(
    paths: Sequence[Path],
    videos: Sequence[Generated] | None,
    reading: ClipReading,
    networks: Networks,
    pairs: Pairs,
    batch_size: int,
    device: torch.device | str,
    compare: bool,
) -> dict[str, Tensor]:
    """Per-video values; those that need a prompt or a class only for generated `videos`.

    `compare` keeps what videos are compared by, which is large: the features of all frames, and motion histograms.
    """
    parts: dict[str, list[Tensor]] = {}
    for number, frames in enumerate(_batches(paths, reading, batch_size, device)):
        batch = videos and videos[number * batch_size : (number + 1) * batch_size]
        flow = video_flow(frames, networks.flow)
        values = {"dynamics": dynamic_degree(flow)}
        if compare:
            values["motion"] = motion_histogram(flow)
        if networks.clip is not None:
            features = networks.clip.encode_frames(frames)
            values["fc"] = frame_consistency(features, pairs)
            if batch:
                values["cc"] = clip_consistency(networks.clip.encode_text([v.prompt for v in batch]), features)
            if compare:
                values["clip"] = features
        if batch and networks.puppet_classifier is not None:
            prediction = puppet_verdict(networks.puppet_classifier, frames)
            values |= {"classes": prediction.action, "looks_logits": prediction.looks}
        elif batch and networks.classifier is not None:
            values["classes"] = networks.classifier.scores(frames)
        for name, value in values.items():
            parts.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def _hits(measured: dict[str, Tensor], videos: Sequence[Generated], networks: Networks) -> dict[str, Tensor]:
    """Whether each video shows its class and, in the puppet world, its looks: where every manifest line says them."""
    found, labels = {}, [video.label for video in videos]
    if networks.puppet_classifier is not None:
        unknown = sorted({label for label in labels if label} - INDEX.keys())
        if unknown:
            raise DataError(f"the puppet world has no action '{unknown[0]}': labels are its names of actions")
        looks = [_looks(video.prompt) for video in videos]
        if all(None not in row for row in looks):
            found["looks"] = appearance_hits(measured["looks_logits"], torch.tensor(looks))
        if all(labels):
            found["acc"] = top1(measured["classes"], torch.tensor([INDEX[label] for label in labels]))
    elif networks.classifier is not None and all(labels):
        found["acc"] = top1(measured["classes"], networks.classifier.index(labels))
    return found


def _looks(prompt: str) -> list[int | None]:
    """The numbers of shirt, trousers and background in a prompt of the puppet world, None for what it leaves open."""
    said = parse(prompt)
    tables = ((said.shirt, COLOURS), (said.trousers, COLOURS), (said.background, BACKGROUNDS))
    return [None if word is None else list(table).index(word) for word, table in tables]


def _against_references(
    videos: Sequence[Generated],
    measured: dict[str, Tensor],
    reading: ClipReading,
    networks: Networks,
    batch_size: int,
    device: torch.device | str,
) -> dict[str, Estimate]:
    """Motion and looks against each video's own reference and against others, where all have references.

    Against others only where there are any: videos may all have been shown the same one. Only warns of references
    that are gone.
    """
    if any(video.reference is None for video in videos):
        return {}
    references = [video.reference for video in videos]
    if lost := [path for path in references if not path.is_file()]:
        warnings.warn(f"{lost[0]} is not there: nothing is compared with references", stacklevel=3)
        return {}
    shown = _measure(references, None, reading, networks, "consecutive", batch_size, device, compare=True)
    others = [_other(videos, index) for index in range(len(videos))]
    found = {"motion": intervals.mean(motion_similarity(measured["motion"], shown["motion"]))}
    if None not in others:
        found["motion_other"] = intervals.mean(motion_similarity(measured["motion"], shown["motion"][others]))
    if networks.clip is not None:
        own, other = similarity_margin(measured["clip"], shown["clip"])
        found["similarity"] = intervals.mean(own)
        if None not in others:
            found["similarity_others"] = intervals.mean(other)
    return found


def _other(videos: Sequence[Generated], index: int) -> int | None:
    """The next video with another reference and, where its class is known, another class; None where there is none."""
    own = videos[index]
    for number in range(index + 1, index + len(videos)):
        other = videos[number % len(videos)]
        if other.reference != own.reference and (own.label is None or other.label != own.label):
            return number % len(videos)
    return None


def _listed(folder: Path, manifest: Path) -> Iterator[Generated]:
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            path, prompt = folder / entry["file"], str(entry["caption"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{manifest}: line {number} is no {{"file": ..., "caption": ...}}') from error
        reference = entry.get("reference")
        for file in (path, *([folder / reference] if reference else [])):
            if not file.is_file():
                raise DataError(f"{manifest}: line {number} names {file}, which is not there")
        yield Generated(path, prompt, entry.get("label"), folder / reference if reference else None)


def _sampled(record: Path) -> Generated | None:
    """The video that aicl sample wrote beside a JSON file of this name, None for any other JSON file."""
    try:
        job = json.loads(record.read_text(encoding="utf-8"))["job"]
        prompt, seed, label = job["prompt"], job["seed"], job.get("label")
        # before version 0.2, references were paths under the name "refs"
        refs = job["refs"] if "refs" in job else [reference["video"] for reference in job["references"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    video = next((v for e in VIDEO_ENDINGS if (v := record.with_suffix(e)).is_file()), None)
    references = [Path(ref) for ref in refs if Path(ref).suffix.lower() in VIDEO_ENDINGS]
    return video and Generated(video, prompt, label, references[0] if references else None, seed)
