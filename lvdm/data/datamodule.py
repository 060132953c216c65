"""Training batches for Lightning, on any number of devices and workers."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lvdm.data.cache import ClipCache
from lvdm.data.clips import ClipRecord
from lvdm.data.dataset import ClipDataset, collate
from lvdm.data.loader_processes import outlive_first_signal
from lvdm.data.manifest import DataConfig, read_records, read_report
from lvdm.data.sampling import NumberSampler, PairSampler, uniform_sampler
from lvdm.data.self_pairs import CachedChanges
from lvdm.data.sharing import collate_shared

log = logging.getLogger(__name__)


class EndlessDataModule(pl.LightningDataModule):
    """What trainings take as data: endless batches from `start`, the number of samples that were consumed before. That
    number is the only state.

    Whoever saves checkpoints saves samples consumed = optimiser steps x samples in a step, and sets `start` to it
    before training goes on; loaders read ahead, so nobody here knows what was consumed. The trainer must be built with
    `use_distributed_sampler=False`, since the ranks already get different numbers.

    Args:
        dataset: its items, by sample number (any non-negative integer).
        batch_size: samples in one batch of one device.
        workers: loader processes for each device; they change nothing but the speed.
        collate: the items of a batch (or what `dataset.__getitems__` gives for their numbers) -> the batch.
    """

    compiled = False
    """Whether `prepare` may run compiled; trainings that compile set it."""
    about = ""
    """What it trains on, in words, for the screen."""

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        workers: int = 0,
        start: int = 0,
        collate: Callable[[Any], Any] = collate,
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.workers, self.start = dataset, batch_size, workers, start
        self._collate = collate

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            self.dataset,
            batch_sampler=NumberSampler(self.batch_size, rank, world_size, self.start),
            num_workers=self.workers,
            collate_fn=partial(collate_shared, self._collate),
            worker_init_fn=outlive_first_signal,
            pin_memory=torch.cuda.is_available(),
        )

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Finish a batch on the device it lies on, where something is left to do there. Called before every step."""
        return batch


class ClipDataModule(EndlessDataModule):
    """Batches of a `ClipDataset`; broken and damaged videos are counted and logged in the main process."""

    def __init__(self, dataset: ClipDataset, batch_size: int, workers: int = 0, start: int = 0) -> None:
        super().__init__(dataset, batch_size, workers, start)
        self.skipped = 0  # broken videos met so far by this process
        self.damaged: set[str] = set()  # sentences about videos that were used though frames decode with errors

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        for error in batch.pop("skipped"):
            self.skipped += 1
            log.warning("skipped a broken video (%d so far): %s", self.skipped, error)
        for message in batch.pop("damaged"):
            if message not in self.damaged:
                self.damaged.add(message)
                log.warning("used a damaged video (%d so far): %s", len(self.damaged), message)
        return batch


def build_datamodule(
    config: DataConfig,
    batch_size: int,
    seed: int,
    pair_sampler: PairSampler = uniform_sampler,
    records: list[ClipRecord] | None = None,
    changes: CachedChanges | None = None,
) -> ClipDataModule:
    """The data module of the section; `batch_size` is that of one device, `records` may be given if already read, and
    `changes` is what a cache must hold of changed clips."""
    known_broken = read_report(config.report) if config.report else []
    dataset = ClipDataset(
        records if records is not None else read_records(config),
        config.clip,
        pair_sampler,
        seed,
        cache=ClipCache(config.cache) if config.cache else None,
        known_broken=known_broken,
        changes=changes if config.cache else None,
    )
    dataset.check_cached()
    data = ClipDataModule(dataset, batch_size, config.workers)
    videos = len({record.key for record in dataset.records})
    several = f" with {len(dataset.records)} captions" if len(dataset.records) > videos else ""
    data.about = f"{videos} clip{'' if videos == 1 else 's'}{several} from {config.cache or config.path}"
    if left_out := len({record.key for record in dataset.records}.intersection(known_broken)):
        data.about += f", less {left_out} that {config.report} lists as broken"
    return data
