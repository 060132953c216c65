"""Measurements of the puppet world on disk: one file for each (row, seed), found again by what went into it.

So an interrupted run goes on where it stopped, tables share rows, and several processes share the work.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from aicl.evaluation.protocol import VERSIONS
from aicl.evaluation.puppet_rows import Instruments, Measured, Row, measure_row
from aicl.evaluation.puppet_set import PuppetData
from aicl.evaluation.weights import file_hash, files_hash, text_hash
from aicl.pipeline import FOLDER_FILE, AICLPipeline, FolderConfig
from lvdm import config as configs
from lvdm.checkpoints.folder import CONFIG_FILE
from lvdm.files import atomic_path

VERSION = 1
_ROW_FIELDS = ("kind", "references", "wrong", "reference_captions", "guidance", "reference_guidance", "scale", "steps")


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies: a folder for `AICLPipeline.from_pretrained`, and an adapter in place of the folder's own."""

    path: Path
    adapter: Path | None = None

    def parts(self) -> tuple[Path, Path | None]:
        """The folder of the base model, and the adapter's file or None."""
        if (self.path / FOLDER_FILE).is_file():
            found = configs.from_mapping(FolderConfig, configs.load(self.path / FOLDER_FILE), where=str(self.path))
            return self.path / found.base, self.adapter or self.path / found.adapter
        return self.path, self.adapter

    def obstacle(self, row: Row) -> str | None:
        """Why `row` cannot be made with this model, or None."""
        if row.kind == "real":
            return None
        base, adapter = self.parts()
        if not (base / CONFIG_FILE).is_file():
            return f"there is no model in {base}"
        if row.references and (adapter is None or not adapter.is_file()):
            return "there is no adapter" + ("" if adapter is None else f" {adapter}")
        return None

    def hashes(self, row: Row) -> dict[str, str]:
        """SHA-256 of the parts that `row` depends on."""
        base, adapter = self.parts()
        found = {} if row.kind == "real" else {"base": files_hash(base)}
        return found | ({"adapter": file_hash(adapter)} if row.references else {})

    def load(self, device: torch.device, dtype: torch.dtype) -> AICLPipeline:
        """The model, ready to generate."""
        base, adapter = self.parts()
        adapter = adapter if adapter is not None and adapter.is_file() else None
        return AICLPipeline.from_pretrained(base, adapter=adapter, device=device, dtype=dtype)


@dataclass(frozen=True)
class Chunk:
    """`count` videos of one seed of a row, and everything that their measurements depend on."""

    row: Row
    data: PuppetData
    seed: int
    count: int
    model: ModelFiles
    dtype: torch.dtype

    def key(self, model_hashes: dict[str, str], instrument_hashes: dict[str, str]) -> str:
        """A hash of all that its content follows from."""
        what: dict[str, Any] = {
            "version": [VERSION, VERSIONS],
            "row": {name: getattr(self.row, name) for name in _ROW_FIELDS},
            "data": configs.to_mapping(self.data),
            "seed": self.seed,
            "count": self.count,
            "model": model_hashes,
            "instruments": instrument_hashes,
        }
        if self.row.kind != "real":
            what["dtype"] = str(self.dtype)
        return text_hash([json.dumps(what, sort_keys=True)])


class Store:
    """A folder of measured chunks. Hashes of models are computed once."""

    def __init__(self, folder: str | os.PathLike, instruments: Instruments) -> None:
        self.folder, self.instruments = Path(folder), instruments
        self._hashes: dict[Any, dict[str, str]] = {}

    def model_hashes(self, chunk: Chunk) -> dict[str, str]:
        """SHA-256 of the parts of the chunk's model."""
        parts = chunk.model, chunk.row.kind, bool(chunk.row.references)
        if parts not in self._hashes:
            self._hashes[parts] = chunk.model.hashes(chunk.row)
        return self._hashes[parts]

    def path(self, chunk: Chunk) -> Path:
        """Where the chunk is kept."""
        key = chunk.key(self.model_hashes(chunk), self.instruments.hashes)
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
        """Measure what is missing of `chunks`, each `world_size`-th of it; returns how many were measured.

        One model is in memory at a time. `save_videos`: a folder for the videos, in a folder for each chunk.
        """
        missing = {self.path(chunk): chunk for chunk in chunks if self.read(chunk) is None}
        # by model, so that each is loaded once; every process sorts alike
        order = sorted(missing.items(), key=lambda item: (str(item[1].model), item[1].row.label, item[1].seed))
        loaded: tuple[Any, AICLPipeline | None] = (None, None)
        mine = order[rank::world_size]
        for path, chunk in tqdm(mine, desc="measuring", unit="chunk", disable=rank > 0):
            pipeline, wanted = None, (chunk.model, chunk.dtype)
            if chunk.row.kind != "real":
                if loaded[0] != wanted:
                    loaded = (None, None)  # frees the one before
                    loaded = (wanted, chunk.model.load(self.instruments.device, chunk.dtype))
                pipeline = loaded[1]
            videos = None if save_videos is None else save_videos / path.stem
            measured = measure_row(
                chunk.row, chunk.data, chunk.seed, chunk.count, self.instruments, pipeline, batch_size, videos
            )
            about = {"label": chunk.row.label, "data": str(chunk.data), "seed": str(chunk.seed)}
            with atomic_path(path) as temporary:
                save_file({name: value.contiguous() for name, value in measured.items()}, temporary, metadata=about)
        return len(mine)
