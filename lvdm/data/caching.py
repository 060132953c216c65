"""Filling a latent cache: videos and captions through the frozen encoders of a base model."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lvdm.bases.loading import is_base
from lvdm.checkpoints.folder import read_model_config, read_part
from lvdm.checkpoints.strict import load_strict
from lvdm.data.cache import CachedClip, ClipCache, fingerprint
from lvdm.data.clips import ClipRecord
from lvdm.data.dataset import ClipConfig, read_clip
from lvdm.data.sampling import cached_augmentation
from lvdm.data.self_pairs import CachedChanges, change_clips
from lvdm.data.sharing import collate_shared
from lvdm.errors import ConfigError, VideoError
from lvdm.hashing import FileIdentity
from lvdm.models.codec import LatentCodec
from lvdm.models.components import Components, build_components
from lvdm.models.text import TextEncoder
from lvdm.video import to_frames, to_pixels

log = logging.getLogger(__name__)

_CAPTIONS = 64  # encoded at once


def load_encoders(folder: str | os.PathLike[str], device: torch.device | str) -> Components:
    """Only the codec and the text encoder of a model folder, in float32. Raises CheckpointError.

    Raises ConfigError for a model of diffusers, whose trainings read no cache.
    """
    folder = Path(folder)
    if is_base(folder):
        raise ConfigError(
            f"{folder} is a model of diffusers, of which no latents are cached: train on the videos, without data.cache"
        )
    config = read_model_config(folder)
    components = build_components(config, ("codec", "text"), device=device, dtype=torch.float32, init="meta")
    for part, module in components.modules().items():
        load_strict(module, read_part(folder, part, device, torch.float32), f"the entries of {part} in {folder}")
    return components.eval()


def encoder_settings(codec: LatentCodec, text: TextEncoder | None, precision: str) -> dict[str, Any]:
    """What `ClipCache.require` compares to be sure that a cache came from these models, run in this precision."""
    return {
        "codec": fingerprint(codec.autoencoder, codec.scale, codec.shift),
        "text": fingerprint(text) if text is not None else None,
        "precision": precision,
    }


def check_encoders(folder: str | os.PathLike[str], codec: LatentCodec, text: TextEncoder | None = None) -> None:
    """Raise ConfigError if the cache in `folder` was made with other models than these, in float32.

    Texts are compared only if both are there.
    """
    found, other = ClipCache(folder).settings, []
    if found.get("codec") != fingerprint(codec.autoencoder, codec.scale, codec.shift):
        other.append("autoencoder")
    if text is not None and found.get("text") not in (None, fingerprint(text)):
        other.append("text encoder")
    if other:
        raise ConfigError(
            f"{folder}: was made with another {' and '.join(other)} than this base model's; "
            "train on the model that aicl cache was given, or make another cache"
        )


def cache_clips(
    cache: ClipCache,
    records: Sequence[ClipRecord],
    config: ClipConfig,
    seed: int,
    codec: LatentCodec,
    *,
    precision: torch.dtype = torch.float32,
    batch_size: int = 1,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int, int, int], None] = lambda done, total, broken: None,
    changes: CachedChanges | None = None,
) -> int:
    """Cache every augmentation of every video that is not yet cached, and of those that were broken and are other files
    now; returns how many were broken in this call.

    With `changes` as many changed versions of each cached crop follow as it says, see `CachedChanges.entry`.
    `part` = (rank, world size) does every world-size-th of all augmentations, as far as they are left. The codec is
    cast to `precision` and run under autocast, as training runs it. Raises ConfigError where crops are not fixed.
    """
    if config.augmentation.cached_crops is None:
        raise ConfigError(
            "a cache holds fixed augmentations: set data.clip.augmentation.cached_crops to how many each video gets"
        )
    crops, entries = config.augmentation.cached_crops, []
    for crop in range(crops):
        entries.append(crop)
        if changes is not None:  # beside the crop that they are made of, so that it is read once
            entries += [changes.entry(crop, version, crops) for version in range(changes.count)]
    videos = {record.key: record for record in records}.values()  # a video may be listed with several captions
    everything = [(record, entry) for record in videos for entry in entries]
    left = [
        (record, entry)
        for record, entry in everything[part[0] :: part[1]]
        if not cache.has_clip(record.key, entry, record.path)
    ]
    clips = _AugmentedClips(left, config, seed, changes)
    loader = DataLoader(clips, batch_size=batch_size, num_workers=workers, collate_fn=partial(collate_shared, list))
    device = next(codec.parameters()).device
    codec.to(precision)
    done = broken = 0
    damaged: dict[str, str] = {}  # key -> the first sentence about frames that decode with errors
    progress(done, len(left), broken)
    for batch in loader:
        for item in batch:
            if item["damaged"] and item["key"] not in damaged:
                damaged[item["key"]] = item["damaged"][0]
                log.warning("cached a damaged video (%d so far): %s", len(damaged), item["damaged"][0])
        readable = [item for item in batch if item["error"] is None]
        for item in batch:
            if item["error"] is not None:
                cache.write_broken(item["key"], item["entry"], item["error"], item["source"])
                broken += 1
        if readable:
            frames = torch.stack([to_frames(item["pixels"]) for item in readable]).to(device)
            for i, item in enumerate(readable):
                if changes is not None and item["change_seed"] is not None:
                    frames[i : i + 1] = change_clips(frames[i : i + 1], [item["change_seed"]], changes.changes)
            first = to_pixels(frames[:, :, :1])[:, 0].cpu()
            with _autocast(device, precision):
                posterior = codec.posterior(frames)
            for i, item in enumerate(readable):
                mean, std = posterior.mean[i].cpu(), posterior.std[i].cpu()
                clip = CachedClip(mean, std, item["fps"], first[i], item["source"])
                cache.write_clip(item["key"], item["entry"], clip)
        done += len(batch)
        progress(done, len(left), broken)
    return broken


@torch.no_grad()
def cache_texts(
    cache: ClipCache, captions: Sequence[str], text: TextEncoder, *, precision: torch.dtype = torch.float32
) -> int:
    """Cache the features of the captions, and of the empty one, that are not yet cached; returns their number."""
    left = [caption for caption in sorted({"", *captions}) if not cache.has_text(caption)]
    device = next(text.parameters()).device
    text.to(precision)
    for batch in _slices(left, _CAPTIONS):
        with _autocast(device, precision):
            contexts = text.encode(batch)
        for caption, context in zip(batch, contexts.cpu()):
            cache.write_text(caption, context)
    return len(left)


def remove_damaged(
    cache: ClipCache, records: Sequence[ClipRecord], config: ClipConfig, changes: CachedChanges | None = None
) -> int:
    """Verify all entries of the records; returns how many were damaged and removed, to be made again."""
    entries = (config.augmentation.cached_crops or 0) * (1 if changes is None else 1 + changes.count)
    removed = 0
    for record in records:
        removed += sum(cache.remove_damaged_clip(record.key, entry, record.path) for entry in range(entries))
        removed += cache.remove_damaged_text(record.caption)
    return removed


class _AugmentedClips(Dataset[dict[str, Any]]):
    """Augmented clips as uint8, or the reason why there is none; `change_seed` is that of a change still to be made.

    Entries of one crop that follow each other are read from the file once."""

    def __init__(
        self, entries: Sequence[tuple[ClipRecord, int]], config: ClipConfig, seed: int, changes: CachedChanges | None
    ):
        self.entries, self.config, self.seed, self.changes = entries, config, seed, changes
        self._last: tuple[tuple[str, int], dict[str, Any]] | None = None  # (key, crop) and what was read of it

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record, entry = self.entries[index]
        crops = self.config.augmentation.cached_crops
        cached_crop, change_seed = entry, None
        if self.changes is not None and crops is not None and entry >= crops:
            cached_crop = (entry - crops) // self.changes.count
            digest = sha256(f"{self.seed}:{entry}:{record.key}".encode()).digest()
            change_seed = int.from_bytes(digest[:7], "little")
        if self._last is None or self._last[0] != (record.key, cached_crop):
            self._last = (record.key, cached_crop), self._read(record, cached_crop)
        return {"key": record.key, "entry": entry, "change_seed": change_seed} | self._last[1]

    def _read(self, record: ClipRecord, cached_crop: int) -> dict[str, Any]:
        damaged: list[str] = []
        item = {"error": None, "damaged": damaged, "source": FileIdentity.of(record.path)}
        augmentation = cached_augmentation(self.config.augmentation, self.seed, record.key, cached_crop)
        try:
            pixels, fps = read_clip(record, augmentation, self.config, damaged)
        except VideoError as error:
            return item | {"error": str(error)}
        return item | {"pixels": pixels, "fps": fps}


def _autocast(device: torch.device, precision: torch.dtype) -> torch.autocast | nullcontext[None]:
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def _slices(items: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), length):
        yield items[start : start + length]
