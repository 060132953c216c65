"""What an adapter of a published base model consists of, and what memory it takes: measured nowhere, computed."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import PrismConfig, build_prism
from aicl.base_memory import peak_bytes
from aicl.integrated_backbone import IntegratedBackbone, integrate
from lvdm.bases.sizes import Published
from lvdm.errors import ConfigError

_GIB = 2**30
_TRAINED = 16  # bytes a trained parameter takes: itself, its gradient and two moments, float32 each
_INNER = 24  # rows of a block's width that one block of a transformer keeps for its backward pass, MLP included


@dataclass(frozen=True)
class Layout:
    """The numbers of one base model; parameters in millions, memory in GiB at its usual video, one sample.

    blocks: name -> width of those that are patched. training: weights in bfloat16, the trained parameters, inputs of
    all checkpointed blocks and the inside of one, of the base and of the prism; sampling: weights, and a guided call.
    Encoders are left out. For UNets, whose memory lies between their blocks, too, `counted_memory` takes the place of
    that formula, which takes seconds: both are None where it was not asked for.
    """

    blocks: dict[str, int]
    base: float
    integration: float
    prism: float
    training: float | None
    sampling: float | None


def layout_of_published(published: Published, count: bool = False) -> Layout:
    """The layout of AICL, with its default sizes, on a published base. Nothing of its size is allocated.

    count: the memory of a UNet, too.
    """
    backbone = published.build()
    blocks = backbone.extensible_blocks()
    prism_sizes, sizes = backbone.adapter_sizes()
    widths: dict[str, Any] = {"in_channels": backbone.latent_channels, "context_dim": published.context_width}
    with torch.device("meta"):
        integrated = integrate(backbone, IntegrationConfig(**sizes))
        prism = build_prism(PrismConfig(**widths, **prism_sizes))
    parameters = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in (("base", backbone), ("integration", integrated.blocks), ("prism", prism))
    }
    tokens = [_product(block.grid(published.latents)) * block.width for block in blocks]  # numbers in a block's tokens
    cells = _product(published.latents) * prism.config.width
    kept = 2 * (sum(tokens) + _INNER * max(tokens)) + 4 * (prism.config.depth + _INNER) * cells
    trained = _TRAINED * (parameters["integration"] + parameters["prism"])
    weights = 2 * (parameters["base"] + parameters["integration"] + parameters["prism"])
    training = sampling = None
    if published.network.endswith("Transformer3DModel"):
        training, sampling = kept, 2 * 2 * _INNER * max(tokens)
    elif count:
        training, sampling = counted_memory(published, integrated)
        training += 4 * prism.config.depth * cells  # inputs of the prism's blocks, kept for their backward pass
    return Layout(
        {block.name: block.width for block in blocks},
        base=parameters["base"] / 1e6,
        integration=parameters["integration"] / 1e6,
        prism=parameters["prism"] / 1e6,
        training=None if training is None else (2 * parameters["base"] + trained + training) / _GIB,
        sampling=None if sampling is None else (weights + sampling) / _GIB,
    )


def counted_memory(published: Published, integrated: IntegratedBackbone) -> tuple[int, int]:
    """Bytes that are alive at once in a training step of one sample, with gradient checkpointing where the network has
    it, and in a guided call for sampling; weights, the trained parameters' moments and the prism are left out."""
    backbone: Any = integrated.backbone
    t, h, w = published.latents

    def numbers(*shape: int, requires_grad: bool = False) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16, requires_grad=requires_grad)

    def call(rows: int) -> Tensor:
        x = numbers(rows, backbone.latent_channels, t, h, w)
        context = numbers(rows, published.tokens, published.context_width)
        extras = {}
        if backbone.image_channels:
            extras["image_latents"] = numbers(rows, backbone.image_channels, t, h, w)
        features = numbers(rows, t, integrated.config.feature_channels, h, w, requires_grad=True)
        shown = integrated.reference_context(features.float(), t)
        times, fps = numbers(rows).float(), numbers(rows).float()
        output: Tensor = integrated(x, times, context, fps=fps, references=shown, **extras)
        return output

    with torch.no_grad():
        sampling = peak_bytes(lambda: call(2))
    with suppress(ConfigError):  # a network that diffusers cannot recompute keeps all of them
        integrated.enable_gradient_checkpointing()
    integrated.train()
    training = peak_bytes(lambda: call(1).float().square().mean().backward())
    return training, sampling


def row(published: Published, count: bool = False) -> str:
    """The layout as a row of the table in docs/base_models.md. count: see `layout_of_published`."""
    layout = layout_of_published(published, count)
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
