"""Compiling the repeated parts of a network instead of the whole: minutes less, since equal parts share their code.

A UNet has dozens of blocks but few kinds of them. Compiled as one graph every block is compiled anew; compiled one by
one, blocks of one class and one shape are compiled once. What lies between them (hooks, gradient checkpointing, skip
connections) stays plain Python.
"""

from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import nn

from lvdm.models.autoencoder import Decoder, Encoder
from lvdm.models.backbone import VideoBackbone
from lvdm.models.transformers import Transformer

# Of what is no backbone: of the autoencoder, two graphs, each as small as a few blocks.
REGIONS: tuple[type[nn.Module], ...] = (Encoder, Decoder)
# Code compiled for one class: a version for each width, size, precision and mode in which its modules are called.
VERSIONS = 64


def compile_regions(network: nn.Module, regions: tuple[type[nn.Module], ...] | None = None) -> int:
    """Compile the `forward` of the outermost modules of some classes in place, and return how many there are.

    regions: the classes; by default those of which a backbone consists (`repeated_blocks`), elsewhere `REGIONS`.

    Only methods are replaced: forward hooks run as before, and names and parameters stay. Code is made at the first
    call with each shape and shared by all modules that it fits. `torch.compiler.set_stance("force_eager")` turns it
    off for a while.
    """
    if regions is None:
        regions = network.repeated_blocks if isinstance(network, VideoBackbone) else REGIONS
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VERSIONS)
    torch._dynamo.config.optimize_ddp = False  # it would cut each small graph once more, at DDP's buckets
    if isinstance(network, regions):
        network.forward = MethodType(_compiled(type(network).forward), network)
        return 1
    if isinstance(network, Transformer):  # what surrounds its blocks, which others may hook into
        for name in ("enter", "leave"):
            setattr(network, name, MethodType(_compiled(getattr(Transformer, name)), network))
        return 2 + compile_regions(network.blocks, regions)
    return sum(compile_regions(child, regions) for child in network.children())


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)
