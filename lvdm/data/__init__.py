"""Videos with captions -> training samples, each a pure function of (seed, sample number)."""

from typing import Any

from lvdm.data.cache import CachedClip, ClipCache, fingerprint
from lvdm.data.clips import ClipRecord
from lvdm.data.dataset import ClipConfig, ClipDataset, cache_settings, collate, read_clip
from lvdm.data.folder import read_folder
from lvdm.data.manifest import DataConfig, Manifest, read_records, read_report
from lvdm.data.sampling import (
    Augmentation,
    AugmentationConfig,
    Changed,
    NumberSampler,
    PairSampler,
    TrainingSample,
    Wrong,
    sample_rng,
    uniform_sampler,
)
from lvdm.data.self_pairs import CachedChanges, SelfPairConfig, change_clips, reference_seed
from lvdm.data.similar_motion import motion_similarity
from lvdm.data.ucf101 import read_split, read_ucf101
from lvdm.data.webvid import read_webvid

__all__ = [
    "Augmentation",
    "AugmentationConfig",
    "CachedChanges",
    "CachedClip",
    "Changed",
    "ClipCache",
    "ClipConfig",
    "ClipDataModule",
    "ClipDataset",
    "ClipRecord",
    "DataConfig",
    "Manifest",
    "NumberSampler",
    "PairSampler",
    "SelfPairConfig",
    "TrainingSample",
    "Wrong",
    "build_datamodule",
    "cache_settings",
    "change_clips",
    "collate",
    "fingerprint",
    "motion_similarity",
    "read_clip",
    "read_folder",
    "read_records",
    "read_report",
    "read_split",
    "read_ucf101",
    "read_webvid",
    "reference_seed",
    "sample_rng",
    "uniform_sampler",
]


def __getattr__(name: str) -> Any:
    """The data module on demand: importing Lightning takes seconds, which the checking processes need not wait for."""
    if name in ("ClipDataModule", "build_datamodule"):
        from lvdm.data import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module 'lvdm.data' has no attribute '{name}'")
