"""How fast a model samples, apart from what it computes: our kernels, CUDA graphs and compiled blocks."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Literal, get_args
from weakref import WeakSet

import torch
from torch import nn

from lvdm.acceleration.graphs import Holdable, Replayed
from lvdm.acceleration.regions import compile_regions
from lvdm.errors import ConfigError
from lvdm.models.attention import Attention

__all__ = ["Acceleration", "Holdable", "Mode", "Replayed", "compile_regions", "keep_kernels", "prepare"]

Mode = Literal["auto", "none", "graphs", "full"]
"""none: as it is written, but for our kernels. graphs: a step's launches are replayed as one CUDA graph. full: the
blocks are compiled, too. auto: graphs on a GPU, unless so few steps are to come that capturing one costs more."""

FEW = 8  # steps, which capturing a graph takes about as long as it saves
NETWORKS = 2  # kept ready: a base model, and the same with references


class Acceleration:
    """How the UNets of a pipeline run while they sample. `choice` says in one sentence what was chosen last, and why.

    expected_steps: denoising steps to come in the whole program, where that is known; "auto" counts the steps of the
    call at hand and those that are over otherwise.
    On a CPU, and for a UNet that is being trained, nothing is changed in any mode.
    """

    def __init__(self, mode: Mode = "auto", expected_steps: int | None = None) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"unknown way to run '{mode}': choose compile from {', '.join(get_args(Mode))}")
        self.mode, self.expected_steps = mode, expected_steps
        self.choice = "nothing was sampled yet"
        self._ready: OrderedDict[int, tuple[tuple[int, ...], Replayed]] = OrderedDict()
        self._compiled: WeakSet[nn.Module] = WeakSet()
        self._steps = 0  # that are over

    def network(self, unet: nn.Module, steps: int) -> nn.Module:
        """What to call in place of `unet` for a sampling of so many steps."""
        parameters = list(unet.parameters())
        if self.mode == "none" or not parameters or parameters[0].device.type != "cuda":
            self.choice = "the network runs as it is written"
            return unet
        if any(parameter.requires_grad for parameter in parameters):
            self.choice = "the network runs as it is written, since it is being trained"
            return unet
        place = tuple(parameter.data_ptr() for parameter in parameters)
        if self._ready.get(id(unet), (None,))[0] != place:
            prepare(unet)
            place = tuple(parameter.data_ptr() for parameter in parameters)
            self._ready[id(unet)] = place, Replayed(unet)
        self._ready.move_to_end(id(unet))
        while len(self._ready) > NETWORKS:
            self._ready.popitem(last=False)
        network = self._ready[id(unet)][1]
        coming = max(steps, (self.expected_steps or 0) - self._steps, self._steps)
        self._steps += steps
        if self.mode == "auto" and coming < FEW and not network.captured:
            self.choice = f"the UNet's {coming} steps are launched one by one: a CUDA graph would not pay"
            return unet
        self.choice = "the UNet's steps are replayed as CUDA graphs"
        if self.mode == "full":
            self.choice += " of compiled blocks"
        if self.mode == "full" and unet not in self._compiled:
            keep_kernels()
            compile_regions(unet)
            network.forget()
            self._compiled.add(unet)
        return network

    def used(self, unet: nn.Module) -> Mode:
        """How a UNet that sampled with this ran in the end: what "auto" came to."""
        if id(unet) not in self._ready or not self._ready[id(unet)][1].captured:
            return "none"
        return "full" if unet in self._compiled else "graphs"

    def forget(self) -> None:
        """Drop what was captured, and its memory: after weights were replaced, or to make room."""
        self._ready.clear()


def prepare(unet: nn.Module) -> None:
    """Lay frozen weights out as the kernels read them; their values, names and shapes stay."""
    for module in unet.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.requires_grad:
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, Attention):
            module.fuse()


def keep_kernels() -> Path:
    """Keep compiled kernels in the user's cache folder, so that the next program starts warm; returns the folder.

    Folders that the environment names (TORCHINDUCTOR_CACHE_DIR) are left alone.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home / "aicl" / "kernels"))
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
