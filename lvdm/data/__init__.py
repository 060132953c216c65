"""Videos with captions -> training samples, each a pure function of (seed, sample number)."""

from lvdm.data.build import DataConfig, build_datamodule, read_records
from lvdm.data.cache import CachedClip, ClipCache, fingerprint
from lvdm.data.clips import ClipRecord
from lvdm.data.datamodule import ClipDataModule
from lvdm.data.dataset import ClipConfig, ClipDataset, cache_settings, collate, read_clip
from lvdm.data.folder import read_folder
from lvdm.data.plan import Draw, NumberSampler, Picker, View, ViewConfig, sample_rng, uniform_picker
from lvdm.data.ucf101 import read_split, read_ucf101
from lvdm.data.webvid import read_webvid

__all__ = [
    "CachedClip",
    "ClipCache",
    "ClipConfig",
    "ClipDataModule",
    "ClipDataset",
    "ClipRecord",
    "DataConfig",
    "Draw",
    "NumberSampler",
    "Picker",
    "View",
    "ViewConfig",
    "build_datamodule",
    "cache_settings",
    "collate",
    "fingerprint",
    "read_clip",
    "read_folder",
    "read_records",
    "read_split",
    "read_ucf101",
    "read_webvid",
    "sample_rng",
    "uniform_picker",
]
