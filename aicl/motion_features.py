"""R as a small file: references that were read once can be used again without their videos."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from aicl.adapter import Fingerprint
from lvdm import config as configs
from lvdm.checkpoints.integrity import check_hash, check_values, save_hashed
from lvdm.errors import CheckpointError, ConfigError
from lvdm.outside import checked_path, hinted, metadata_object, open_tensors

FORMAT_VERSION = 1
ENDING = ".safetensors"
METADATA = "aicl_references"  # the entry of the file's metadata


@dataclass
class MotionFeatures:
    """R of k references, eq. 6: features (b, sum(frames), channels, h, w); b = 1 serves any number of samples.

    frames: frame count of each reference. prism: which prism made it; no other integration can read it.
    """

    features: Tensor
    frames: tuple[int, ...]
    prism: Fingerprint
    sources: list[str] = field(default_factory=list)

    def split(self) -> "list[MotionFeatures]":
        """Each reference by itself, in order."""
        pieces = self.features.split(self.frames, dim=1)
        sources = self.sources if len(self.sources) == len(self.frames) else [""] * len(self.frames)
        rows = zip(pieces, self.frames, sources)
        return [MotionFeatures(piece, (count,), self.prism, [source]) for piece, count, source in rows]

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write a safetensors file. Raises CheckpointError if it exists, unless `overwrite`, or has another ending."""
        path = Path(path)
        if path.suffix != ENDING:
            raise CheckpointError(f"{path}: encoded references are a {ENDING} file, choose such a name")
        if path.exists() and not overwrite:
            raise CheckpointError(f"{path} exists already: choose another name or ask to overwrite it")
        about = {"format": FORMAT_VERSION, "frames": list(self.frames), "sources": self.sources}
        about["prism"] = configs.to_mapping(self.prism)
        save_hashed(path, {"features": self.features}, {METADATA: json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MotionFeatures":
        """Read such a file, onto the CPU. Raises CheckpointError if it is missing, damaged or something else."""
        path = checked_path(path, CheckpointError)
        if not path.is_file():
            raise CheckpointError(f"encoded references {path} do not exist")
        with hinted(f"{path} holds no encoded references: make it with encode_references"):
            with open_tensors(path, CheckpointError) as file:
                metadata = file.metadata() or {}
                about = metadata_object(metadata, METADATA, path, CheckpointError)
                tensors = {"features": file.get_tensor("features")}
            if missing := [name for name in ("format", "frames", "sources", "prism") if name not in about]:
                raise CheckpointError(f"{path} does not say its {missing[0]}")
            form, frames, sources, prism = (about[name] for name in ("format", "frames", "sources", "prism"))
        if form != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {form}, this version reads {FORMAT_VERSION}: encode the videos again"
            )
        check_hash(tensors, metadata, path)
        features = tensors["features"]
        check_values({"features": torch.empty(0)}, tensors, f"the features in {path}")
        counted = isinstance(frames, list) and all(type(count) is int and count > 0 for count in frames)
        if not counted or features.ndim != 5 or features.shape[1] != sum(frames) or not features.numel():
            raise CheckpointError(f"{path} says {frames!r} frames of features {tuple(features.shape)}: encode it again")
        if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
            raise CheckpointError(f"{path} names no sources that can be read: encode the videos again")
        return cls(features, tuple(frames), configs.from_mapping(Fingerprint, prism, where=str(path)), sources)


def concatenate(parts: list[MotionFeatures]) -> MotionFeatures:
    """References encoded apart, as one R (eq. 6). Raises ConfigError for maps or batches of different sizes."""
    if len(parts) == 1:
        return parts[0]
    if len({part.features.shape[2:] for part in parts}) > 1:
        raise ConfigError("encoded references of different channels or sizes cannot go together: encode them again")
    rows = max(len(part.features) for part in parts)
    if any(len(part.features) not in (1, rows) for part in parts):
        raise ConfigError(f"references encoded for {[len(part.features) for part in parts]} samples cannot go together")
    reference = parts[0].features
    features = [part.features.to(reference).expand(rows, -1, -1, -1, -1) for part in parts]
    frames = tuple(count for part in parts for count in part.frames)
    sources = [source for part in parts for source in part.sources]
    return MotionFeatures(torch.cat(features, dim=1), frames, parts[0].prism, sources)
