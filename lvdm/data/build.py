"""The `data` section of a config -> records, data set, data module."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lvdm.data.cache import ClipCache
from lvdm.data.clips import ClipRecord
from lvdm.data.datamodule import ClipDataModule
from lvdm.data.dataset import ClipConfig, ClipDataset
from lvdm.data.folder import read_folder
from lvdm.data.plan import Picker, uniform_picker
from lvdm.data.ucf101 import Part, read_split, read_ucf101
from lvdm.data.webvid import read_webvid
from lvdm.errors import ConfigError, DataError


@dataclass(frozen=True)
class DataConfig:
    """Section `data`.

    `path` is the data set's folder; `captions` its CSV (webvid) or CSV/JSONL (folder, instead of .txt files); `split`
    and `part` choose classes of UCF-101. `report` is the file that scripts/check_data.py wrote: the videos that it
    lists as broken are never tried. `cache` is a folder of scripts/cache_latents.py. `workers` are loader processes
    for each device.
    """

    kind: Literal["ucf101", "webvid", "folder"]
    path: str
    clip: ClipConfig
    captions: str | None = None
    split: str | None = None
    part: Part = "all"
    report: str | None = None
    cache: str | None = None
    workers: int = 4

    def __post_init__(self):
        if self.kind == "webvid" and self.captions is None:
            raise ConfigError("data.captions is missing: WebVid needs its CSV file")
        if self.part != "all" and (self.kind != "ucf101" or self.split is None):
            raise ConfigError(f"data.part = {self.part} needs data.kind = ucf101 and a data.split file")


def read_records(config: DataConfig) -> list[ClipRecord]:
    """The catalogue that the section names. Raises DataError or ConfigError."""
    if config.kind == "ucf101":
        return read_ucf101(config.path, config.part, read_split(config.split) if config.split else ())
    if config.kind == "webvid":
        return read_webvid(config.captions, config.path)
    return read_folder(config.path, config.captions)


def read_report(path: str | Path) -> list[str]:
    """The keys of the broken videos in a report of scripts/check_data.py."""
    try:
        return list(json.loads(Path(path).read_text(encoding="utf-8"))["broken"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is not a report of scripts/check_data.py; run it to make one") from error


def build_datamodule(
    config: DataConfig,
    batch_size: int,
    seed: int,
    picker: Picker = uniform_picker,
    records: list[ClipRecord] | None = None,
) -> ClipDataModule:
    """The data module of the section; `batch_size` is that of one device, `records` may be given if already read."""
    dataset = ClipDataset(
        records if records is not None else read_records(config),
        config.clip,
        picker,
        seed,
        cache=ClipCache(config.cache) if config.cache else None,
        known_broken=read_report(config.report) if config.report else (),
    )
    return ClipDataModule(dataset, batch_size, config.workers)
