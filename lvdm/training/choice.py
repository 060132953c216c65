"""`training.strategy: auto`: how a training is spread over the memory that there is, chosen by trying one sample.

Neither choice changes what is learned: `batch_size` counts the samples of a step however they are divided.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from lvdm.acceleration import prepare
from lvdm.data.datamodule import EndlessDataModule
from lvdm.errors import ConfigError
from lvdm.training.module import DTYPES, TrainingModule, place_frozen
from lvdm.training.settings import TrainingSettings
from lvdm.training.strategy import training_device

Build = Callable[[TrainingSettings], tuple[TrainingModule, EndlessDataModule]]

GIB = 2**30
SHARE = 0.92  # of the memory that PyTorch may have; the rest is what its allocator cannot use, and the CUDA context
OPTIMISER, GRADIENT, BUCKET = 8, 4, 4  # bytes for each trained value: Adam's two averages, its gradient, DDP's copy


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: at rest, trained values, and what each sample of a micro-batch adds; seconds of a pass."""

    rest: int
    values: int
    sample: int
    seconds: float = 0.0

    def needed(self, samples: int, devices: int) -> int:
        """By a step of micro-batches of so many samples, with the optimiser on the device."""
        each = OPTIMISER + GRADIENT + (BUCKET if devices > 1 else 0)
        return self.rest + each * self.values + samples * self.sample


class Choice(NamedTuple):
    """The settings that were chosen, a sentence on them, and the seconds of a pass of one sample, 0 if not timed."""

    settings: TrainingSettings
    sentence: str
    sample_s: float = 0.0


def choose(settings: TrainingSettings, build: Build) -> Choice:
    """The settings with a strategy, micro-batches and gradient checkpointing in place of "auto".

    In order: everything in memory, activations recomputed, fewer samples at once, and at last the optimiser's averages
    in the CPU's memory. `build` makes the module and its data, which are thrown away again.
    Raises ConfigError where even that does not fit.
    """
    devices = settings.devices * settings.nodes
    plain = replace(settings, strategy="ddp" if devices > 1 else "single")
    device = training_device(settings)
    if device.type != "cuda":
        return Choice(plain, f"strategy auto: {plain.strategy} on the CPU, as nothing else runs there")
    limit = torch.cuda.get_device_properties(device).total_memory * torch.cuda.get_per_process_memory_fraction(device)
    allowed = int(SHARE * limit)
    share = settings.batch_size // devices
    for checkpointing in (False, True):
        if settings.gradient_checkpointing and not checkpointing:
            continue  # asked for
        memory = measure(replace(plain, gradient_checkpointing=checkpointing, cuda_graphs=False), build, device)
        if memory is None:
            continue
        fitting = [n for n in divisors(share) if memory.needed(n, devices) <= allowed]
        if not fitting or (not checkpointing and fitting[0] < share):
            continue  # fewer samples at once leave the GPU idle, which costs as much as recomputing
        count, graphs = share // fitting[0], settings.cuda_graphs and not checkpointing and share == fitting[0]
        chosen = replace(
            plain, gradient_checkpointing=checkpointing, gradient_accumulation_steps=count, cuda_graphs=graphs
        )
        what = f"{count} micro-batches of {fitting[0]}" if count > 1 else f"a batch of {fitting[0]}"
        kept = "activations recomputed" if checkpointing else "activations kept"
        need = memory.needed(fitting[0], devices) / GIB
        sentence = f"{chosen.strategy}, {what} a device, {kept}, the optimiser on the GPU"
        sample = f"{memory.sample / GIB:.2f} a sample"
        sentence = f"strategy auto: {sentence}: about {need:.1f} of {limit / GIB:.1f} GiB, {sample}"
        return Choice(chosen, sentence, memory.seconds)
    offload = replace(settings, strategy="deepspeed_zero2_offload", gradient_checkpointing=True, cuda_graphs=False)
    offload = replace(offload, gradient_accumulation_steps=share)
    return Choice(
        offload,
        "strategy auto: deepspeed_zero2_offload, one sample at a time, activations recomputed: "
        f"with the optimiser's averages on the GPU too, {limit / GIB:.1f} GiB are not enough",
    )


def measure(settings: TrainingSettings, build: Build, device: torch.device) -> Memory | None:
    """What a forward and a backward pass of one sample take on `device`; None where that alone is too much."""
    alone = replace(settings, strategy="single", devices=1, nodes=1, batch_size=1, gradient_accumulation_steps=1)
    module, data = build(replace(alone, compile=False, cuda_graphs=False))
    try:
        with torch.cuda.device(device):  # which Triton launches its kernels on
            return _measure(module, data, device)
    except torch.OutOfMemoryError:
        return None
    finally:
        del module, data
        free_memory()  # what they leave would count as memory at rest the next time


def _measure(module: TrainingModule, data: EndlessDataModule, device: torch.device) -> Memory:
    batch = data.prepare(first_batch(module, data, device))
    rest = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)

    def run() -> None:
        with module.autocast():
            loss = module.losses(batch).float().mean()
        if not loss.requires_grad:
            raise ConfigError("nothing in this training is trained: check the config")
        loss.backward()
        torch.cuda.synchronize(device)

    run()
    values = sum(parameter.numel() for parameter in module.trained.parameters() if parameter.requires_grad)
    peak = torch.cuda.max_memory_allocated(device)
    began = time.perf_counter()
    run()  # once more: the first pass chose and compiled kernels
    return Memory(rest, values, max(0, peak - rest - GRADIENT * values), time.perf_counter() - began)


def first_batch(module: TrainingModule, data: EndlessDataModule, device: torch.device) -> Any:
    """The first batch of a training, on its device; the module is placed there as a training would."""
    module.to(device)
    for frozen in module.frozen:
        place_frozen(frozen, device, DTYPES[module.settings.precision])
        if device.type == "cuda":
            prepare(frozen)
    if module.ema is not None:
        module.ema.to(device)
    module.trained.train()
    data.workers = 0
    batch: Any = next(iter(data.train_dataloader()))
    batch = data.on_before_batch_transfer(batch, 0)
    return module.transfer_batch_to_device(batch, device, 0)


def free_memory() -> None:
    """Have the memory of modules and trainers, which hold each other, again once nothing else holds them."""
    gc.collect()
    torch.cuda.empty_cache()


def divisors(count: int) -> list[int]:
    """The numbers that divide `count`, the largest first."""
    return [n for n in range(count, 0, -1) if count % n == 0]
