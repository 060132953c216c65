"""How a run is spread over devices, and the one place that knows DeepSpeed."""

import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pytorch_lightning.plugins.precision.deepspeed import DeepSpeedPrecision
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn

from lvdm.errors import ConfigError
from lvdm.training.settings import TrainingSettings

# Releases whose ZeRO-2 gave wrong gradients to some parameters.
BROKEN_DEEPSPEED = ((0, 17, 6), (0, 18, 2))


class ExactInputPrecision(DeepSpeedPrecision):
    """DeepSpeed's precision without its cast of every batch to half precision.

    Timesteps and render parameters would lose their digits; autocast casts where it pays.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def build_strategy(settings: TrainingSettings) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that follow from `training.strategy`, `devices` and `precision`.

    Raises ConfigError where the device or DeepSpeed is missing, naming the line of the config to change.
    """
    accelerator = settings.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    if accelerator == "gpu":
        _check_gpus(settings)
    elif settings.cuda_graphs:
        raise ConfigError("training.cuda_graphs needs a GPU and training runs on the CPU here: set it to false")
    common: dict[str, Any] = {"accelerator": accelerator, "devices": settings.devices, "num_nodes": settings.nodes}
    if settings.uses_deepspeed:
        return {**common, "strategy": _deepspeed(settings, accelerator)}
    # bfloat16 needs no help from Lightning: the module's own autocast does it. float16 needs its gradient scaler.
    common["precision"] = "16-mixed" if settings.precision == "float16" else "32-true"
    return {**common, "strategy": _ddp(settings) if settings.strategy == "ddp" else "auto"}


def training_device(settings: TrainingSettings) -> torch.device:
    """Where this process trains, known before Lightning says so: frozen models are loaded straight onto it."""
    if settings.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def allow_tf32(settings: TrainingSettings, gpu: bool) -> None:
    """Let what stays in float32 in mixed precision use TF32 on a GPU."""
    if gpu and settings.precision != "float32":
        torch.set_float32_matmul_precision("high")


def first_process() -> bool:
    """Whether this is the first of the processes of one training, which writes its files.

    However they were started: by torchrun, by Slurm, by Lightning (which numbers those of a node), or alone.
    """
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name]) == 0 and (name == "RANK" or int(os.environ.get("NODE_RANK", 0)) == 0)
    return int(os.environ.get("NODE_RANK", 0)) == 0


@contextmanager
def whole_parameters(strategy: Strategy, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, every parameter is complete on every rank: ZeRO-3 has them sharded otherwise. All ranks must enter."""
    if getattr(strategy, "zero_stage_3", False):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters)):
            yield
    else:
        yield


def _check_gpus(settings: TrainingSettings) -> None:
    available = torch.cuda.device_count()
    if not available:
        raise ConfigError("training.accelerator is gpu but this machine has no CUDA device: set it to cpu or auto")
    if available < settings.devices:
        raise ConfigError(
            f"training.devices = {settings.devices} but this machine has {available} CUDA devices: "
            "lower training.devices, or set training.accelerator to cpu"
        )


def _ddp(settings: TrainingSettings) -> DDPStrategy:
    return DDPStrategy(gradient_as_bucket_view=True)


def _deepspeed(settings: TrainingSettings, accelerator: str) -> Strategy:
    def refuse(reason: str) -> ConfigError:
        return ConfigError(
            f"training.strategy = {settings.strategy} needs DeepSpeed, {reason}, "
            "or set training.strategy to single or ddp"
        )

    if accelerator != "gpu":
        raise refuse("which runs on CUDA devices only, and training runs on the CPU here: train on a GPU")
    if importlib.util.find_spec("deepspeed") is None:
        raise refuse("which is not installed: pip install deepspeed==0.19.8")
    import deepspeed
    from pytorch_lightning.strategies import DeepSpeedStrategy

    version = tuple(int(part) for part in deepspeed.__version__.split("+")[0].split(".")[:3])
    if BROKEN_DEEPSPEED[0] <= version <= BROKEN_DEEPSPEED[1]:
        raise refuse(
            f"and version {deepspeed.__version__} computes wrong ZeRO-2 gradients: pip install deepspeed==0.19.8"
        )
    names: dict[str, Literal["bf16-mixed", "16-mixed", "32-true"]] = {
        "bfloat16": "bf16-mixed",
        "float16": "16-mixed",
        "float32": "32-true",
    }
    precision = ExactInputPrecision(names[settings.precision])
    return DeepSpeedStrategy(config=deepspeed_config(settings), precision_plugin=precision)


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any]:
    """DeepSpeed's own configuration; Lightning adds the precision, accumulation and clipping."""
    zero: dict[str, Any] = {
        "stage": 3 if settings.strategy == "deepspeed_zero3" else 2,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_scatter": True,
    }
    if settings.strategy == "deepspeed_zero2_offload":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # PyTorch's fused or plain AdamW, where nothing is offloaded
        "train_micro_batch_size_per_gpu": settings.micro_batch,
    }
