"""Which layers of a UNet are computed in 8 bits, where that is asked for: it changes results, and is for sampling.

Only wide linear layers of the transformers are: a product of narrow ones waits for memory, and rounding its input
first costs more than it saves. Normalisations, convolutions, attention itself, what is projected of the text, and an
adapter's layers stay as they are.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import nn

from lvdm.errors import ConfigError
from lvdm.models.attention import Attention
from lvdm.models.fp8 import Float8Linear
from lvdm.models.transformers import Transformer

Quantization = Literal["none", "fp8"]

WIDTH = 640  # the least number of channels that a layer takes and gives
MULTIPLE = 16  # of both, which the product asks for
CAPABILITY = (8, 9)  # of the first GPUs with such products: Ada and Hopper


def quantize(network: nn.Module, kind: Quantization, device: torch.device) -> int:
    """Replace the wide linear layers of a UNet's transformers by `Float8Linear`, in place; returns how many there are.

    device: where the network will run, which may be another place than where it is now. On a CPU the numbers are the
    same but for the order of sums, and nothing is saved. "none" changes nothing.
    Raises ConfigError for a network without such layers, a GPU without such products, and weights that are no bfloat16
    on one: the product gives no other type.
    """
    if kind not in get_args(Quantization):
        raise ConfigError(f"unknown quantization '{kind}': choose from {', '.join(get_args(Quantization))}")
    if kind == "none":
        return 0
    found = [(owner, name, layer) for owner, name, layer in _linear_layers(network) if _is_wide(layer)]
    if not found:
        raise ConfigError(
            f"quantization fp8 is for linear layers of {WIDTH} channels or more in the transformers of this library's "
            "UNets, and this model has none: leave it out"
        )
    _check_device(device, found[0][2].weight.dtype)
    for owner, name, layer in found:
        setattr(owner, name, Float8Linear.of(layer))
    for module in network.modules():
        if isinstance(module, Attention):
            module._fused = None  # of the weights as they were
    return len(found)


def is_quantized(network: nn.Module) -> bool:
    """Whether some of its layers are in 8 bits."""
    return any(isinstance(module, Float8Linear) for module in network.modules())


def _linear_layers(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(owner, name, layer) of the linear layers of all transformers, but those that read a context of another width."""
    for transformer in network.modules():
        if not isinstance(transformer, Transformer):
            continue
        for owner in transformer.modules():
            inputs = owner.to_q.in_features if isinstance(owner, Attention) else None
            for name, layer in owner.named_children():
                if isinstance(layer, nn.Linear) and (name == "to_out" or inputs in (None, layer.in_features)):
                    yield owner, name, layer


def _is_wide(layer: nn.Linear) -> bool:
    sizes = layer.in_features, layer.out_features
    return min(sizes) >= WIDTH and not any(size % MULTIPLE for size in sizes)


def has_fp8(device: torch.device) -> bool:
    """Whether it is a GPU that has products of e4m3."""
    nvidia = device.type == "cuda" and torch.version.hip is None and torch.cuda.is_available()
    return nvidia and torch.cuda.get_device_capability(device) >= CAPABILITY


def _check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ConfigError for a GPU that has no products of e4m3, or does not give results of this type."""
    if device.type == "cpu":
        return
    if not has_fp8(device):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ConfigError(
            f"quantization fp8 needs an NVIDIA GPU of the generations Ada, Hopper or later (compute capability "
            f"{'.'.join(map(str, CAPABILITY))}), and {name} has no products of 8-bit floating point: leave it out"
        )
    if dtype != torch.bfloat16:
        raise ConfigError(
            f"quantization fp8 gives bfloat16 on a GPU, and the model is in {str(dtype).removeprefix('torch.')}: "
            "choose dtype bfloat16"
        )
