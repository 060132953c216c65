"""Compiling the repeated parts of a network instead of the whole: minutes less, since equal parts share their code.

A UNet has dozens of blocks but few kinds of them. Compiled as one graph every block is compiled anew; compiled one by
one, blocks of one class and one shape are compiled once. What lies between them (hooks, gradient checkpointing, skip
connections) stays plain Python.
"""

from collections.abc import Callable
from functools import cache
from types import MethodType

import torch
from torch import nn

from lvdm.models.autoencoder import Decoder, Encoder
from lvdm.models.layers import GroupNorm
from lvdm.models.resblocks import ResBlock
from lvdm.models.transformers import (
    ContextFreeAttention,
    SpatialBlock,
    SpatioTemporalBlock,
    TemporalBlock,
    Transformer,
)

REGIONS: tuple[type[nn.Module], ...] = (
    SpatioTemporalBlock,
    SpatialBlock,
    TemporalBlock,
    ContextFreeAttention,
    ResBlock,
    GroupNorm,
    Encoder,  # of the autoencoder, with its decoder: two graphs, each as small as a few blocks
    Decoder,
)
# Code compiled for one class: a version for each width, size, precision and mode in which its modules are called.
VERSIONS = 64


def compile_regions(network: nn.Module, regions: tuple[type[nn.Module], ...] = REGIONS) -> int:
    """Compile the `forward` of the outermost modules of these classes in place, and return how many there are.

    Only methods are replaced: forward hooks run as before, and names and parameters stay. Code is made at the first
    call with each shape and shared by all modules that it fits. `torch.compiler.set_stance("force_eager")` turns it
    off for a while.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VERSIONS)
    torch._dynamo.config.optimize_ddp = False  # it would cut each small graph once more, at DDP's buckets
    if isinstance(network, regions):
        network.forward = MethodType(_compiled(type(network).forward), network)
        return 1
    if isinstance(network, Transformer):  # what surrounds its blocks, which others may hook into
        network.enter = MethodType(_compiled(Transformer.enter), network)
        network.leave = MethodType(_compiled(Transformer.leave), network)
        return 2 + compile_regions(network.blocks, regions)
    return sum(compile_regions(child, regions) for child in network.children())


@cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)
