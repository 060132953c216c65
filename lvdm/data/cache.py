"""Latents and text features on disk, so that training need not run the autoencoder and the text encoder.

A cache holds, for each video and each of its fixed augmentations (`AugmentationConfig.cached_crops`), the mean and
standard deviation of the latent posterior. Training draws the posterior's noise itself, from the sample's seed, exactly
as it does when it encodes files; files can be read in the same `cached_crops` mode. So with the same models in the same
precision, the losses from a cache and from files are the same (up to the last digits, which depend on how many clips
are encoded at once).

    cache.json                what was cached: clip settings, seed, fingerprints of the models
    clips/ab/abcd...          one safetensors file for each (video key, cached_crop): mean, std and the first frame
    clips/ab/abcd...broken    in place of a video that cannot be read: why, as JSON
    text/ab/abcd...           one for each caption: context

Each file carries the checksum of its tensors and whose they are (the video's key, the cached crop and what the video's
file is known by, or the caption), verified whenever it is read, and appears whole or not at all: writing can be
interrupted and continued, also by several processes. Caches of any age have these, but for what files are known by,
which was nothing or their size alone, and for the marks of broken videos, which used to be a line of text.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lvdm.checkpoints.integrity import tensor_bytes, tensors_hash
from lvdm.errors import ConfigError, DataError, VideoError
from lvdm.files import atomic_path, write_json
from lvdm.finite import is_finite
from lvdm.hashing import FileIdentity
from lvdm.outside import check_text, checked, checked_path, hinted, parse_json, read_object

_FORMAT = 1
_BROKEN = ".broken"
_FILL_IN = "run aicl cache again, which fills in what is missing"
_REMAKE = "run aicl cache --verify, which makes anew what changed, or give each set of videos a cache of its own"
_REPAIR = "run aicl cache --verify, which makes damaged ones anew"


@dataclass(frozen=True)
class CachedClip:
    """Posterior of the scaled latents, mean and std float32 (c, t, h, w); the clip's rate (1/s); its first frame as
    uint8 (h, w, 3), which image-to-video models need; what the video file that it was made of is known by, None in
    caches that do not say."""

    mean: Tensor
    std: Tensor
    fps: float
    first_frame: Tensor
    source: FileIdentity | None = None


def fingerprint(module: nn.Module, *settings: Any) -> str:
    """A short hash of a module's weights (as float32, whatever precision they are stored in) and of `settings`."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value.float() if value.is_floating_point() else value))
    return digest.hexdigest()[:16]


# What settings and their values were called when older caches were written.
_PRESENT_NAMES = {"view": "augmentation", "variants": "cached_crops"}
_PRESENT_VALUES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


_NETWORKS = {"codec": "autoencoder", "text": "text encoder"}  # settings that say by what it was encoded
# A cache's settings -> where a config says them; the longest of those that fit is meant.
_SAID_BY = {
    "changes.changes": "references.changes",
    "changes.count": "references.cached_changes",
    "changes": "references.changes",
    "clip": "data.clip",
    "seed": "run.seed",
}


def _present_names(settings: Any) -> Any:
    """The settings of a cache of any age, in the words of today."""
    if isinstance(settings, Mapping):
        return {_PRESENT_NAMES.get(name, name): _present_names(value) for name, value in settings.items()}
    return _PRESENT_VALUES.get(settings, settings) if isinstance(settings, str) else settings


class ClipCache:
    """A cache folder, opened for reading and adding. Raises DataError if there is none."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = checked_path(folder, DataError)
        with hinted(f"{folder}: is not a latent cache; make one with aicl cache"):
            about = read_object(self.folder / "cache.json", DataError)
            if missing := [name for name in ("settings", "format") if name not in about]:
                raise DataError(f"its cache.json does not say the {missing[0]}")
        settings, version = about["settings"], about["format"]
        if not isinstance(settings, dict):
            raise DataError(f"{folder}: its cache.json is damaged (settings is no mapping); make the cache anew")
        if version != _FORMAT:
            raise DataError(f"{folder}: has cache format {version}, this library reads {_FORMAT}; make the cache anew")
        self.settings: dict[str, Any] = _present_names(settings)

    @classmethod
    def create(cls, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> "ClipCache":
        """Start a cache made with `settings` (a JSON mapping), or continue one.

        Raises ConfigError if the folder holds a cache with other settings.
        """
        if not (Path(folder) / "cache.json").exists():
            write_json(Path(folder) / "cache.json", {"format": _FORMAT, "settings": dict(settings)})
        cache = cls(folder)
        cache.require(settings)
        return cache

    def require(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError where the cache was made with something else than these settings (some or all of them)."""
        wanted = _present_names(json.loads(json.dumps(dict(settings))))
        if other := [each for name, value in wanted.items() for each in _others(name, self.settings.get(name), value)]:
            raise ConfigError(
                f"{self.folder}: was made {' and '.join(other)}; change the setting or make another cache"
            )

    def has_clip(self, key: str, cached_crop: int, video: Path | None = None) -> bool:
        """Whether the augmentation is settled: cached, or known to be broken.

        video: the file of this key, where it is at hand. A mark that it is broken holds for that file alone,
        and for none if there was none, or none that might be read.
        """
        path = self._clip_path(key, cached_crop)
        mark = path.with_suffix(_BROKEN)
        if not mark.exists() or video is None:
            return path.exists() or mark.exists()
        try:
            source = _read_mark(mark, key, cached_crop)[1]
        except VideoError:  # damaged
            return False
        return source is not None and source.may_be(video)

    def check_complete(self, keys: Iterable[str], cached_crop: int, captions: Iterable[str]) -> None:
        """Raise DataError where augmentation `cached_crop` of one of these videos is not settled, or one of these
        captions is missing."""
        wanted: dict[Path, list[tuple[str, str]]] = {}  # each folder is listed once, which is quick for many files
        for path, what in (
            *((self._clip_path(key, cached_crop), key) for key in keys),
            *((self._text_path(caption), f"the caption '{caption}'") for caption in captions),
        ):
            wanted.setdefault(path.parent, []).append((path.stem, what))
        lacking: list[str] = []
        for folder, entries in wanted.items():
            present = {Path(name).stem for name in os.listdir(folder)} if folder.is_dir() else set()
            lacking += [what for stem, what in entries if stem not in present]
        if lacking:
            others = f" (nor are {len(lacking) - 1} others)" if len(lacking) > 1 else ""
            raise DataError(f"{lacking[0]} is not in the cache {self.folder}{others}; {_FILL_IN}")

    def why_broken(self, key: str, cached_crop: int) -> str | None:
        """What was wrong with the video when this augmentation was to be cached; None if nothing is known."""
        mark = self._clip_path(key, cached_crop).with_suffix(_BROKEN)
        return _read_mark(mark, key, cached_crop)[0] if mark.exists() else None

    def has_text(self, caption: str) -> bool:
        """Whether the features of this caption are cached."""
        return self._text_path(caption).exists()

    def write_clip(self, key: str, cached_crop: int, clip: CachedClip) -> None:
        """Store one crop of the video that is known as `key`; its latents in float32."""
        tensors = {"mean": clip.mean.float(), "std": clip.std.float(), "first_frame": clip.first_frame}
        about = {"key": key, "cached_crop": str(cached_crop), "fps": repr(clip.fps)}
        about |= {} if clip.source is None else clip.source.entries()
        path = self._clip_path(key, cached_crop)
        _write(path, tensors, about)
        path.with_suffix(_BROKEN).unlink(missing_ok=True)  # of a file that was mended since

    def write_broken(self, key: str, cached_crop: int, reason: str, source: FileIdentity | None = None) -> None:
        """Record that the video cannot be read, so that it is neither tried again nor taken for not yet cached."""
        mark = {"key": key, "cached_crop": cached_crop, "reason": reason}
        mark |= {} if source is None else source.entries()
        write_json(self._clip_path(key, cached_crop).with_suffix(_BROKEN), mark)

    def write_text(self, caption: str, context: Tensor) -> None:
        """Store the features (tokens, d) of a caption, in their own precision."""
        _write(self._text_path(caption), {"context": context}, {"caption": caption})

    def read_clip(self, key: str, cached_crop: int, video: Path | None = None) -> CachedClip:
        """Raises VideoError if the video was broken, or the entry is damaged or another clip's, DataError if it is not
        there.

        video: the file of this key, where it is at hand: DataError if the entry was made of another one of this name.
        """
        path = self._clip_path(key, cached_crop)
        mark = path.with_suffix(_BROKEN)
        if mark.exists():
            reason, source = _read_mark(mark, key, cached_crop)
            self._check_source(source, video)
            raise VideoError(reason)
        clip = _read_clip(path, key, cached_crop)
        self._check_source(clip.source, video)
        return clip

    def read_text(self, caption: str) -> Tensor:
        """The features (tokens, d) of a caption. Raises VideoError if damaged or another's, DataError if not there."""
        return _read_text(self._text_path(caption), caption)

    def remove_damaged_clip(self, key: str, cached_crop: int, video: Path | None = None) -> bool:
        """Verify an entry and remove it if it is damaged, another clip's or of another file than `video`, so that it is
        made again; True if so."""
        path = self._clip_path(key, cached_crop)
        mark = path.with_suffix(_BROKEN)
        wrong_mark = _remove_damaged(mark, lambda: self._check_source(_read_mark(mark, key, cached_crop)[1], video))
        wrong = _remove_damaged(path, lambda: self._check_source(_read_clip(path, key, cached_crop).source, video))
        return wrong or wrong_mark

    def remove_damaged_text(self, caption: str) -> bool:
        """The same for the features of a caption."""
        path = self._text_path(caption)
        return _remove_damaged(path, lambda: _read_text(path, caption))

    def _check_source(self, source: FileIdentity | None, video: Path | None) -> None:
        if video is not None and source is not None and not source.may_be(video):
            raise DataError(
                f"{video}: is another file than the one of this name that {self.folder} was made of; {_REMAKE}"
            )

    def _clip_path(self, key: str, cached_crop: int) -> Path:
        return self._path("clips", f"{cached_crop}:{key}")

    def _text_path(self, caption: str) -> Path:
        return self._path("text", caption)

    def _path(self, kind: str, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self.folder / kind / digest[:2] / f"{digest}.safetensors"


def _others(name: str, found: Any, wanted: Any) -> list[str]:
    """In words, how a setting is not as wanted: of a mapping, the entries that differ."""
    if found == wanted:
        return []
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        keys = {**wanted, **found}
        return [each for key in keys for each in _others(f"{name}.{key}", found.get(key), wanted.get(key))]
    if name in _NETWORKS:  # known by a hash, which says nothing to people
        return [
            f"with another {_NETWORKS[name]}" if found and wanted else f"with{'' if found else 'out'} {name} features"
        ]
    for prefix, said in _SAID_BY.items():
        if name == prefix or name.startswith(f"{prefix}."):
            name = said + name.removeprefix(prefix)
            break
    return [f"without {name}" if isinstance(wanted, Mapping) else f"with {name} = {found}, not {wanted}"]


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path, durable=False) as temporary:
        save_file(tensors, temporary, metadata=about | {"checksum": tensors_hash(tensors)})


def _read_clip(path: Path, key: str, cached_crop: int) -> CachedClip:
    what = f"cached crop {cached_crop} of {key}"
    tensors, about = _read(path, what, ("mean", "std", "first_frame"))
    crop = about.get("cached_crop", about.get("variant"))  # which older caches call it
    if (about.get("key"), crop) != (key, str(cached_crop)):
        raise VideoError(f"{path}: is the cache entry of {about.get('key')} (crop {crop}), not of {what}; {_REPAIR}")
    try:
        fps = float(about["fps"])
    except (KeyError, ValueError) as error:
        raise VideoError(f"{path}: the cache entry of {what} is damaged; {_REPAIR}") from error
    source = FileIdentity.from_entries(about)
    return CachedClip(tensors["mean"], tensors["std"], fps, tensors["first_frame"], source)


def _read_mark(path: Path, key: str, cached_crop: int) -> tuple[str, FileIdentity | None]:
    """Why a video is broken, and its file. Raises VideoError for a mark that is damaged or another clip's."""
    what = f"cached crop {cached_crop} of {key}"
    try:
        content = path.read_text(encoding="utf-8")
        if not content.startswith("{"):  # of an older cache: the reason alone
            return str(check_text(content.strip() or None, path, VideoError)), None
        mark = parse_json(content, path, VideoError)
        found, reason = (mark["key"], mark["cached_crop"]), str(checked(mark["reason"], str, path, VideoError))
        source = FileIdentity.from_entries(mark)
    except (OSError, UnicodeDecodeError, VideoError, KeyError) as error:
        raise VideoError(f"{path}: the mark of a broken video, {what}, is damaged; {_REPAIR}") from error
    if found != (key, cached_crop):
        raise VideoError(f"{path}: is the mark of {found[0]} (crop {found[1]}), not of {what}; {_REPAIR}")
    return reason, source


def _read_text(path: Path, caption: str) -> Tensor:
    what = f"the caption '{caption}'"
    tensors, about = _read(path, what, ("context",))
    if about.get("caption") != caption:
        raise VideoError(f"{path}: is the cache entry of '{about.get('caption')}', not of {what}; {_REPAIR}")
    return tensors["context"]


def _read(path: Path, what: str, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of an entry, which must have these `names`, and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise DataError(f"{what} is not in the cache; {_FILL_IN}") from error
    except (SafetensorError, OSError) as error:
        raise VideoError(f"{path}: the cache entry of {what} is damaged; {_REPAIR}") from error
    if tensors.keys() != set(names) or about.get("checksum") != tensors_hash(tensors):
        raise VideoError(f"{path}: the cache entry of {what} is damaged; {_REPAIR}")
    if not all(is_finite(tensor) for tensor in tensors.values()):
        raise VideoError(f"{path}: the cache entry of {what} holds NaN or infinity; {_REPAIR}")
    return tensors, about


def _remove_damaged(path: Path, read: Callable[[], object]) -> bool:
    try:
        if path.exists():
            read()
    except (VideoError, DataError):
        path.unlink(missing_ok=True)
        return True
    return False
