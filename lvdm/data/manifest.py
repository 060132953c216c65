"""The `data` section of a config, and the manifest that it names."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from lvdm.config import check_at_least
from lvdm.data.clips import ClipRecord
from lvdm.data.dataset import ClipConfig
from lvdm.data.folder import MissingCaption, OnMissing, read_folder
from lvdm.data.ucf101 import Part, read_split, read_ucf101
from lvdm.data.webvid import read_webvid
from lvdm.errors import ConfigError, DataError
from lvdm.outside import hinted, read_object

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Which videos. `path` is the data set's folder; `captions` its CSV (webvid) or CSV/JSONL (folder; see
    `read_folder` for what is read without it); `split`, a file, and `part` choose classes of UCF-101, and say nothing
    about other kinds, of which all videos are taken.

    `default_caption` (folder) is the caption of videos that have none: "a person is moving", say, or an empty one.
    `on_missing_caption` (folder): without a default, "error" stops at the first of them, "skip" leaves them out and
    says how many they are.
    """

    kind: Literal["ucf101", "webvid", "folder"]
    path: str
    captions: str | None = None
    default_caption: str | None = None
    on_missing_caption: OnMissing = "error"
    split: str | None = None
    part: Part = "all"

    def __post_init__(self) -> None:
        if self.kind == "webvid" and self.captions is None:
            raise ConfigError("data.captions is missing: WebVid needs its CSV file")
        if self.part != "all" and self.kind == "ucf101" and self.split is None:
            raise ConfigError(f"data.part = {self.part} needs a data.split file, which says which classes are unseen")
        if self.default_caption is not None and self.kind != "folder":
            raise ConfigError(f"data.default_caption is for data.kind = folder: {self.kind} brings its captions")
        if self.on_missing_caption != "error" and self.kind != "folder":
            raise ConfigError(f"data.on_missing_caption is for data.kind = folder: {self.kind} brings its captions")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Manifest):
    """Section `data` of a config: a manifest, and what a training takes from it.

    `report` is the file that aicl check-data wrote: the videos that it lists as broken are never tried.
    `cache` is a folder of aicl cache. `workers` are loader processes for each device.
    """

    clip: ClipConfig
    report: str | None = None
    cache: str | None = None
    workers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, ("workers",), "data")


def read_records(manifest: Manifest) -> list[ClipRecord]:
    """What the manifest lists. Raises DataError or ConfigError."""
    if manifest.kind == "ucf101":
        unseen = read_split(manifest.split) if manifest.split else ()
        return read_ucf101(manifest.path, manifest.part, unseen)
    if manifest.part != "all":
        log.warning("data.part and data.split are for UCF-101: of data.kind = %s all videos are taken", manifest.kind)
    if manifest.kind == "webvid":
        return read_webvid(cast(str, manifest.captions), manifest.path)  # Manifest checks that there are some
    try:
        return read_folder(manifest.path, manifest.captions, manifest.default_caption, manifest.on_missing_caption)
    except MissingCaption as error:
        raise DataError(
            f"{error}, or set data.default_caption (without a config: --default-caption) for all videos without one"
        ) from error


def read_report(path: str | Path) -> list[str]:
    """The keys of the broken videos in a report of aicl check-data."""
    with hinted("make a report with aicl check-data"):
        broken = read_object(path, DataError).get("broken")
        if not isinstance(broken, dict) or not all(isinstance(reason, str) for reason in broken.values()):
            raise DataError(
                f"{path}: is not a report of aicl check-data, its 'broken' is no map from videos to reasons"
            )
    return list(broken)
