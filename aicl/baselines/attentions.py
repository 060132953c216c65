"""Where the attention layers of this library's UNets are, and their linear layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from lvdm.errors import ConfigError
from lvdm.models.attention import Attention
from lvdm.models.transformers import SpatialBlock, SpatioTemporalBlock, TemporalBlock

Kind = Literal["temporal", "spatial", "text"]
"""What queries attend to: other frames at their place, their frame, or the words."""

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


def attentions(backbone: nn.Module, kinds: Sequence[str] = ("temporal",)) -> dict[str, Attention]:
    """Name -> attention layer of these kinds in a UNet, in order of computation.

    Raises ConfigError for an unknown kind, and for a network that has no such layers, as those of diffusers.
    """
    if unknown := sorted(set(kinds) - set(get_args(Kind))):
        raise ConfigError(f"there are no attention layers '{unknown[0]}': choose from {', '.join(get_args(Kind))}")
    found: dict[str, Attention] = {}
    for name, module in backbone.named_modules():
        for part, kind in _kinds(module).items():
            if kind in kinds:
                found[f"{name}.{part}"] = module.get_submodule(part)
    if not found:
        raise ConfigError(
            f"this network has no attention layers of the kinds {', '.join(kinds)} that are known: baselines work on "
            "this library's UNets with transformers (lvdm, videocrafter)"
        )
    return found


def linear_layers(found: Mapping[str, Attention]) -> dict[str, nn.Linear]:
    """Name -> the projections to queries, keys, values and outputs of attention layers."""
    return {f"{name}.{part}": getattr(layer, part) for name, layer in found.items() for part in PROJECTIONS}


def project(layer: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of self-attention, each by a layer of its own: (..., dim) -> (..., heads, d).

    Unlike the layer itself, which may have fused the three for speed: hooks on them would not be called then.
    """
    q, k, v = (part(x).unflatten(-1, (layer.heads, -1)) for part in (layer.to_q, layer.to_k, layer.to_v))
    return q, k, v


def unfuse(backbone: nn.Module) -> Callable[[], None]:
    """Let attention layers that project to queries, keys and values at once do it one by one: hooks on the three are
    not called otherwise. Returns what makes it as it was."""
    before = [(layer, layer._fused) for layer in backbone.modules() if isinstance(layer, Attention)]
    for layer, _ in before:
        layer._fused = None

    def restore() -> None:
        for layer, fused in before:
            layer._fused = fused

    return restore


def _kinds(module: nn.Module) -> dict[str, Kind]:
    """Attribute -> kind of the attention layers of a block; none of other modules."""
    if isinstance(module, SpatioTemporalBlock):
        return {
            "spatial_attn": "spatial",
            "temporal_attn1": "temporal",
            "cross_attn": "text",
            "temporal_attn2": "temporal",
        }
    if isinstance(module, SpatialBlock):
        return {"attn1": "spatial", "attn2": "text"}
    if isinstance(module, TemporalBlock):
        return {"attn1": "temporal", "attn2": "text" if module.cross else "temporal"}
    return {}
