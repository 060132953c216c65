"""What an adapter of a published base model consists of, and what memory it takes: measured nowhere, computed."""

from dataclasses import dataclass
from typing import Any

import torch

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import PrismConfig, build_prism
from aicl.integrated_backbone import integrate
from lvdm.bases.sizes import Published

_GIB = 2**30
_TRAINED = 16  # bytes a trained parameter takes: itself, its gradient and two moments, float32 each
_INNER = 24  # rows of a block's width that one block of a transformer keeps for its backward pass, MLP included


@dataclass(frozen=True)
class Layout:
    """The numbers of one base model; parameters in millions, memory in GiB at its usual video, one sample.

    blocks: name -> width of those that are patched. training: weights in bfloat16, the trained parameters, inputs of
    all checkpointed blocks and the inside of one, of the base and of the prism; sampling: weights, and a guided call.
    Encoders are left out. Both are None for UNets, whose memory lies in convolutions that this does not count.
    """

    blocks: dict[str, int]
    base: float
    integration: float
    prism: float
    training: float | None
    sampling: float | None


def layout_of_published(published: Published) -> Layout:
    """The layout of AICL, with its default sizes, on a published base. Nothing of its size is allocated."""
    backbone = published.build()
    blocks = backbone.extensible_blocks()
    prism_sizes, sizes = backbone.adapter_sizes()
    widths: dict[str, Any] = {"in_channels": backbone.latent_channels, "context_dim": published.context_width}
    with torch.device("meta"):
        integrated = integrate(backbone, IntegrationConfig(**sizes))
        prism = build_prism(PrismConfig(**widths, **prism_sizes))
    count = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in (("base", backbone), ("integration", integrated.blocks), ("prism", prism))
    }
    tokens = [_product(block.grid(published.latents)) * block.width for block in blocks]  # numbers in a block's tokens
    cells = _product(published.latents) * prism.config.width
    kept = 2 * (sum(tokens) + _INNER * max(tokens)) + 4 * (prism.config.depth + _INNER) * cells
    trained = _TRAINED * (count["integration"] + count["prism"])
    weights = 2 * (count["base"] + count["integration"] + count["prism"])
    transformer = published.network.endswith("Transformer3DModel")
    return Layout(
        {block.name: block.width for block in blocks},
        base=count["base"] / 1e6,
        integration=count["integration"] / 1e6,
        prism=count["prism"] / 1e6,
        training=(2 * count["base"] + trained + kept) / _GIB if transformer else None,
        sampling=(weights + 2 * 2 * _INNER * max(tokens)) / _GIB if transformer else None,
    )


def row(published: Published) -> str:
    """The layout as a row of the table in docs/base_models.md."""
    layout = layout_of_published(published)
    t, h, w = published.latents
    height, width = published.size
    spread = sorted(set(layout.blocks.values()))
    widths = str(spread[0]) if len(spread) == 1 else f"{spread[0]} to {spread[-1]}"
    memory = ["-" if each is None else f"{each:.1f}" for each in (layout.training, layout.sampling)]
    cells = (
        published.name,
        f"{layout.base:,.0f}",
        f"{len(layout.blocks)} of {widths}",
        f"{next(iter(layout.blocks))} ...",
        f"{layout.integration:.1f} + {layout.prism:.1f} = {layout.integration + layout.prism:.1f}",
        f"{published.num_frames}, {height}x{width}",
        f"{t}x{h}x{w}",
        *memory,
    )
    return f"| {' | '.join(cells)} |"


def _product(grid: tuple[int, int, int]) -> int:
    t, h, w = grid
    return t * h * w
