"""Batches of loader processes in shared memory, so that a lack of it is said.

Without this the loader's own thread shares them: where it finds no room it loses the batch, and the training waits for
it for ever. A container has 64 MB unless more are asked for, less than a few clips take.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from lvdm.errors import ConfigError


def collate_shared(collate: Callable[[Any], Any], items: Any) -> Any:
    """What `collate` makes of `items`; in a loader process its tensors are moved to shared memory.

    Raises ConfigError where there is no room for them.
    """
    batch = collate(items)
    if get_worker_info() is None:
        return batch
    try:
        for tensor in _tensors(batch):
            if tensor.numel():
                tensor.share_memory_()
    except RuntimeError as error:
        if not any(f"unable to {step}" in str(error) for step in ("resize", "allocate", "mmap")):
            raise
        raise ConfigError(
            "the shared memory of this machine (/dev/shm) has no room for the next batch: start a container with "
            "--ipc=host or a larger --shm-size, or read without processes of their own (data.workers=0, in aicl cache "
            "--workers 0)"
        ) from error
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | list | tuple):
        for each in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(each)
