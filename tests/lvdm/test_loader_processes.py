"""Loader processes go on after the first signal to end, so that the training can write its checkpoint."""

import os
import signal
import time

import pytest
import torch
from torch.utils.data import Dataset

from lvdm.data.datamodule import EndlessDataModule
from lvdm.data.loader_processes import SIGNALS


class Numbers(Dataset):
    """Its items are their numbers; each takes a moment, so that a signal comes while some are still to be made."""

    def __getitem__(self, number):
        time.sleep(0.05)
        return torch.tensor(number)


@pytest.fixture(params=SIGNALS)
def number(request):
    """A signal that is not ignored, whatever started the tests: a shell's `&` ignores SIGINT, nohup SIGHUP."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_a_loader_outlives_the_first_signal_and_ends_with_the_second(number):
    data = EndlessDataModule(Numbers(), batch_size=1, workers=1, collate=torch.stack)
    batches = iter(data.train_dataloader())
    next(batches)
    (worker,) = batches._workers
    os.kill(worker.pid, number)
    assert [next(batches).item() for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    os.kill(worker.pid, number)
    with pytest.raises(RuntimeError, match="worker"):
        for _ in range(100):
            next(batches)
