"""Videos (or their cached latents) -> training samples, by global sample number."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lvdm.data.cache import ClipCache
from lvdm.data.clips import ClipRecord
from lvdm.data.sampling import (
    Augmentation,
    AugmentationConfig,
    PairSampler,
    SampledClip,
    TrainingSample,
    candidates,
    uniform_sampler,
)
from lvdm.data.self_pairs import CachedChanges
from lvdm.errors import ConfigError, DataError, VideoError
from lvdm.sizes import check_sizes
from lvdm.video import ShortRule, damage, open_video, to_frames

_ATTEMPTS = 100  # replacements for one sample before the data set counts as broken


@dataclass(frozen=True)
class ClipConfig:
    """What a training clip is: `num_frames` of `size` (h, w) pixels, at a target `fps` or a frame `stride` (1 if
    neither is given); `short` is the rule of `frame_indices` for short videos; `augmentation` is what varies."""

    RENAMED: ClassVar[dict[str, str]] = {"view": "augmentation"}

    num_frames: int
    size: tuple[int, int]
    fps: float | None = None
    stride: float | None = None
    short: ShortRule = "stretch"
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        if self.fps is not None and self.stride is not None:
            raise ConfigError(
                "a clip has a frame stride or a target fps, not both: set data.clip.stride or fps to null"
            )
        if self.num_frames < 1 or min(self.size) < 1:
            raise ConfigError(
                f"a clip of {self.num_frames} frames and size {self.size} is empty: both must be positive"
            )
        for name in ("fps", "stride"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"data.clip.{name} is {value}: it must be above 0")
        check_sizes(self, "data.clip")


def read_clip(
    record: ClipRecord, augmentation: Augmentation, config: ClipConfig, damaged: list[str] | None = None
) -> tuple[Tensor, float]:
    """The clip as uint8 pixels (t, h, w, 3), and its frame rate (1/s). Raises VideoError for a broken file, and for one
    of a single frame where a clip has several: frames that are all the same would teach that nothing moves.

    A sentence about frames that decode with errors is appended to `damaged`.
    """
    video = open_video(record.path)
    if video.info.num_frames == 1 < config.num_frames:
        raise VideoError(f"{record.path}: a single frame shows no motion; give a video in its place or remove it")
    frames: list[int] = []
    indices, fps = video.choose(config.num_frames, config.fps, config.stride, augmentation.position, config.short)
    pixels = video.read(indices, size=config.size, crop=augmentation.crop, damaged=frames)
    if frames and damaged is not None:
        damaged.append(damage(record.path, frames))
    if augmentation.flip:
        pixels = pixels.flip(2)
    return pixels, fps


def cache_settings(config: ClipConfig, seed: int, changes: CachedChanges | None = None) -> dict[str, Any]:
    """What a cache must have been made with to stand in for reading files with `config` and `seed`, and for changing
    clips as `changes` says.

    Raises ConfigError for a config without fixed augmentations.
    """
    if config.augmentation.cached_crops is None:
        raise ConfigError(
            "a cache holds fixed augmentations: set data.clip.augmentation.cached_crops to how many each video gets"
        )
    return {"clip": asdict(config), "seed": seed} | ({} if changes is None else {"changes": asdict(changes)})


class ClipDataset(Dataset[dict[str, Any]]):
    """Training samples, indexed by global sample number (any non-negative integer).

    An item has: number, noise_seed (int), timestep_u in [0, 1), caption, fps (1/s, of the clip), skipped, damaged; with
    references also reference_captions (list of k) and reference_fps (list of k). And its clips,
    - from files: frames float [-1, 1] (c, t, h, w), references (k, c, t, h, w), and reference_changed, a list of k:
      which of them have yet to be changed, on the device, with `change_clips`;
    - from a cache: the posterior latent_mean and latent_std (c, t, h/f, w/f) and first_frame (c, h, w) in [-1, 1], the
      same with reference_ in front and (k, ...), and, if texts are cached, context (tokens, d), reference_context.

    A video that cannot be read is replaced by the next draw of the same generator. It is not tried again, in any
    worker; `skipped` lists the errors met while making this item, so that the main process can count and report them.
    `damaged` does so for videos that were used though some of their frames decode with errors.

    Args:
        pair_sampler: chooses the target and its references, see `lvdm.data.sampling`.
        known_broken: keys of records that are not even tried (from aicl check-data).
        changes: what the cache must hold for references that the pair sampler wants changed.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        config: ClipConfig,
        pair_sampler: PairSampler = uniform_sampler,
        seed: int = 0,
        cache: ClipCache | None = None,
        known_broken: Iterable[str] = (),
        changes: CachedChanges | None = None,
    ):
        if not records:
            raise DataError("the data set lists no videos: check its path and its captions file")
        self.records, self.config, self.pair_sampler, self.seed, self.cache = records, config, pair_sampler, seed, cache
        self.changes = changes
        if cache is not None:
            cache.require(cache_settings(config, seed, changes))
        known = set(known_broken)
        self._broken = torch.tensor([record.key in known for record in records]).share_memory_()  # by all workers

    def check_cached(self) -> None:
        """Raise DataError where the cache lacks a video or a caption of the data set, as when the set has grown since.

        Otherwise a training would end when it first draws one. Of each video the entry that is made last is asked for.
        """
        crops = self.config.augmentation.cached_crops
        if self.cache is None or crops is None:
            return
        changes = self.changes
        last = crops - 1 if changes is None else changes.entry(crops - 1, changes.count - 1, crops)
        used = [record for record, broken in zip(self.records, self._broken.tolist()) if not broken]
        captions = {record.caption for record in used} if self.cache.settings.get("text") else ()
        self.cache.check_complete(dict.fromkeys(record.key for record in used), last, sorted(captions))

    def sample(self, number: int) -> TrainingSample:
        """What sample `number` is, leaving out the videos known to be broken by now."""
        for draw in islice(self._candidates(number), _ATTEMPTS):
            if not any(self._broken[clip.index] for clip in (draw.target, *draw.references)):
                return draw
        raise DataError(self._too_many_broken(number))

    def __getitem__(self, number: int) -> dict[str, Any]:
        skipped: list[str] = []
        for draw in islice(self._candidates(number), _ATTEMPTS):
            clips = [draw.target, *draw.references]
            if any(self._broken[clip.index] for clip in clips):
                continue
            parts: list[dict[str, Any]] = []
            damaged: list[str] = []
            for clip in clips:
                try:
                    again = self.cache is None and parts and replace(clip, changed=None) == clips[0]
                    # a self-pair is read from its file once
                    parts.append(parts[0] if again else self._load(clip, damaged))
                except VideoError as error:
                    self._broken[clip.index] = True
                    skipped.append(str(error))
                    break
            else:
                return self._item(draw, parts, {"skipped": skipped, "damaged": damaged})
        raise DataError(self._too_many_broken(number))

    def _candidates(self, number: int) -> Iterator[TrainingSample]:
        cached_changes = 1 if self.changes is None else self.changes.count
        augmentation = self.config.augmentation
        return candidates(self.seed, number, self.records, self.pair_sampler, augmentation, cached_changes)

    def _too_many_broken(self, number: int) -> str:
        return (
            f"sample {number}: no readable videos in {_ATTEMPTS} draws, {int(self._broken.sum())} of "
            f"{len(self.records)} are broken; check the data set with aicl check-data"
        )

    def _load(self, clip: SampledClip, damaged: list[str]) -> dict[str, Any]:
        record = self.records[clip.index]
        caption = self.records[clip.index if clip.told_by is None else clip.told_by].caption
        if self.cache is None:
            pixels, fps = read_clip(record, clip.augmentation, self.config, damaged)
            return {"frames": to_frames(pixels), "fps": fps, "caption": caption}
        crops = self.config.augmentation.cached_crops
        if clip.cached_crop is None or crops is None:
            raise ConfigError(f"{self.cache.folder}: holds fixed augmentations, which this sample has not")
        entry = clip.cached_crop
        if clip.changed is not None:
            if self.changes is None:
                raise ConfigError(f"{self.cache.folder}: holds no changed clips, which these references need")
            entry = self.changes.entry(clip.cached_crop, clip.changed, crops)
        cached = self.cache.read_clip(record.key, entry, record.path)
        part = {"latent_mean": cached.mean, "latent_std": cached.std, "fps": cached.fps, "caption": caption}
        part["first_frame"] = to_frames(cached.first_frame[None])[:, 0]
        if self.cache.settings.get("text"):
            part["context"] = self.cache.read_text(caption)
        return part

    def _item(self, draw: TrainingSample, parts: list[dict[str, Any]], errors: dict[str, list[str]]) -> dict[str, Any]:
        target, *references = parts
        item: dict[str, Any] = {"number": draw.number, "timestep_u": draw.timestep_u, "noise_seed": draw.noise_seed}
        item |= target | errors
        if references:
            for name, value in target.items():
                values = [reference[name] for reference in references]
                item[_REFERENCE_NAMES[name]] = torch.stack(values) if isinstance(value, Tensor) else values
            if self.cache is None:
                item["reference_changed"] = [clip.changed is not None for clip in draw.references]
        return item


_REFERENCE_NAMES = {
    "frames": "references",
    "caption": "reference_captions",
    "fps": "reference_fps",
    "latent_mean": "reference_latent_mean",
    "latent_std": "reference_latent_std",
    "first_frame": "reference_first_frame",
    "context": "reference_context",
}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items -> batch: tensors and numbers stacked on a new first dimension (number, noise_seed int64; timestep_u
    float64; fps float32), captions as lists (reference captions: a list of k for each sample), skipped and damaged
    joined."""
    batch: dict[str, Any] = {}
    for name, value in items[0].items():
        values = [item[name] for item in items]
        if name in ("skipped", "damaged"):
            batch[name] = [error for errors in values for error in errors]
        elif isinstance(value, Tensor):
            batch[name] = torch.stack(values)
        elif name in ("fps", "reference_fps"):
            batch[name] = torch.tensor(values, dtype=torch.float32)
        elif name in ("number", "noise_seed"):
            batch[name] = torch.tensor(values, dtype=torch.int64)
        elif name == "timestep_u":
            batch[name] = torch.tensor(values, dtype=torch.float64)
        else:
            batch[name] = values
    return batch
