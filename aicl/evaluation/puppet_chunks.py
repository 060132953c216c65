"""Measurements of the puppet world on disk: one file for each (row, seed), found again by what went into it.

So an interrupted run goes on where it stopped, tables share rows, and several processes share the work.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from aicl.evaluation.folders import MANIFEST
from aicl.evaluation.protocol import VERSIONS
from aicl.evaluation.puppet_rows import Evaluators, Measured, Row, measure_row
from aicl.evaluation.puppet_set import PuppetData
from aicl.evaluation.weights import file_hash, files_hash, text_hash
from aicl.model_files import find_model_files
from aicl.pipeline import AICLPipeline
from lvdm import config as configs
from lvdm.checkpoints.folder import CONFIG_FILE
from lvdm.errors import CheckpointError
from lvdm.files import atomic_path
from lvdm.training.compile import compile_regions

VERSION = 1
_ROW_FIELDS = ("kind", "references", "wrong", "reference_captions", "guidance", "reference_guidance", "scale", "steps")


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies: a model folder or that of a training run, and an adapter in place of the folder's own.

    The adapter is a file, or the folder of a run, of which the newest checkpoint's is taken.
    """

    path: Path
    adapter: Path | None = None

    def parts(self, row: Row) -> dict[str, Path]:
        """What `row` needs: the folder of the base model as "base", with references the adapter's file as "adapter".

        Raises CheckpointError where one is not there.
        """
        if row.kind == "real":
            return {}
        found = find_model_files(self.path, self.adapter)
        if not (found.base / CONFIG_FILE).is_file():
            raise CheckpointError(f"{self.path} holds no base model: give a model folder or that of a training run")
        if not row.references:
            return {"base": found.base}
        if found.adapter is None or not found.adapter.is_file():
            raise CheckpointError(f"there is no adapter {found.adapter or ''} to read references with")
        return {"base": found.base, "adapter": found.adapter}

    @property
    def lead(self) -> float:
        """The model's own `lead`, see AICLPipeline: the folder's, if its own adapter is used."""
        return find_model_files(self.path, self.adapter).first_reference_until

    def obstacle(self, row: Row) -> str | None:
        """Why `row` cannot be made with this model, or None."""
        try:
            self.parts(row)
        except CheckpointError as error:
            return str(error)
        return None


@dataclass(frozen=True)
class Chunk:
    """`count` videos of one seed of a row, and everything that their measurements depend on."""

    row: Row
    data: PuppetData
    seed: int
    count: int
    model: ModelFiles
    dtype: torch.dtype
    compile: bool = False

    def key(self, model_hashes: dict[str, str], evaluator_hashes: dict[str, str]) -> str:
        """A hash of all that its content follows from."""
        what: dict[str, Any] = {
            "version": [VERSION, VERSIONS],
            "row": {name: getattr(self.row, name) for name in _ROW_FIELDS},
            "data": configs.to_mapping(self.data),
            "seed": self.seed,
            "count": self.count,
            "model": model_hashes,
            "evaluators": evaluator_hashes,
        }
        if self.row.kind != "real":
            what["dtype"] = str(self.dtype)
            if self.row.references > 1 and (lead := self.model.lead if self.row.lead is None else self.row.lead):
                what["lead"] = lead
            if self.compile:  # fused kernels round differently
                what["compile"] = True
        return text_hash([json.dumps(what, sort_keys=True)])

    def load(self, device: torch.device) -> AICLPipeline | None:
        """The model of the row, None for real clips. Raises CheckpointError for what is missing."""
        parts = self.model.parts(self.row)
        if not parts:
            return None
        pipeline = AICLPipeline.from_pretrained(
            parts["base"], adapter=parts.get("adapter"), device=device, torch_dtype=self.dtype
        )
        pipeline.first_reference_until = self.model.lead
        if self.compile:
            compile_regions(pipeline.base.components.unet)
        return pipeline


class Store:
    """A folder of measured chunks. Hashes of models are computed once."""

    def __init__(self, folder: str | os.PathLike, evaluators: Evaluators) -> None:
        self.folder, self.evaluators = Path(folder), evaluators
        self._hashes: dict[Path, str] = {}

    def model_hashes(self, chunk: Chunk) -> dict[str, str]:
        """SHA-256 of the parts of the chunk's model."""
        return {name: self._hash(path) for name, path in chunk.model.parts(chunk.row).items()}

    def path(self, chunk: Chunk) -> Path:
        """Where the chunk is kept."""
        key = chunk.key(self.model_hashes(chunk), self.evaluators.hashes)
        return self.folder / f"{key[:32]}.safetensors"

    def read(self, chunk: Chunk) -> Measured | None:
        """Its measurements, or None where they are missing or damaged."""
        try:
            return load_file(self.path(chunk))
        except (FileNotFoundError, SafetensorError):
            return None

    def fill(
        self,
        chunks: Sequence[Chunk],
        *,
        batch_size: int = 128,
        save_videos: Path | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> int:
        """Measure what is missing of `chunks`, or of this process's share of them; returns how many were measured.

        One model is in memory at a time. `save_videos`: a folder for generated videos, in a folder for each chunk;
        chunks without it are made again.
        """
        unique = {self.path(chunk): chunk for chunk in chunks}
        # By model, so that each is loaded once. Shares are cut from the full list: what is missing changes meanwhile.
        order = sorted(unique.items(), key=lambda item: (_files(item[1]), item[1].row.label, item[1].seed))
        mine = []
        for path, chunk in order[rank::world_size]:
            videos = None
            if save_videos is not None and chunk.row.kind != "real":
                videos = save_videos / f"{re.sub(r'[^A-Za-z0-9]+', '-', chunk.row.label)}-{path.stem[:8]}"
            if self.read(chunk) is None or (videos is not None and not _all_saved(videos, chunk.count)):
                mine.append((path, chunk, videos))
        pipeline, loaded = None, None
        for path, chunk, videos in tqdm(mine, desc="measuring", unit="chunk", disable=rank > 0 or not mine):
            if _files(chunk) != loaded:
                pipeline = None  # frees the one before
                pipeline, loaded = chunk.load(self.evaluators.device), _files(chunk)
            measured = measure_row(
                chunk.row, chunk.data, chunk.seed, chunk.count, self.evaluators, pipeline, batch_size, videos
            )
            about = {"label": chunk.row.label, "data": str(chunk.data), "seed": str(chunk.seed)}
            with atomic_path(path) as temporary:
                save_file({name: value.contiguous() for name, value in measured.items()}, temporary, metadata=about)
        return len(mine)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = file_hash(path) if path.is_file() else files_hash(path)
        return self._hashes[path]


def _all_saved(folder: Path, count: int) -> bool:
    """Whether the manifest lists all videos: it grows with every batch, so an interrupted run leaves a shorter one."""
    manifest = folder / MANIFEST
    return manifest.is_file() and len(manifest.read_text(encoding="utf-8").splitlines()) == count


def _files(chunk: Chunk) -> list[str]:
    return [str(path) for path in chunk.model.parts(chunk.row).values()] + [str(chunk.dtype)]
