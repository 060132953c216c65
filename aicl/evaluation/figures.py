"""Pictures of what AICL does: samples, features of the UNet (Fig. 4) and the prism, where the UNet looks (Fig. 6)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from aicl.pipeline import AICLPipeline
from lvdm.acceleration import Acceleration
from lvdm.errors import ConfigError
from lvdm.models.attention import Attention
from lvdm.models.backbone import Grid, VideoBackbone
from lvdm.models.transformers import SpatialBlock, SpatioTemporalBlock
from lvdm.video import contact_sheet, resize_crop, side_by_side, text_strip

_GAP = 12  # pixels between the videos of a sample, white
_TITLE = 18  # pixels, the height of a sample's title


def sample_sheet(
    samples: Sequence[Sequence[Tensor]], labels: Sequence[Sequence[str]], titles: Sequence[str], frames: int = 5
) -> Image.Image:
    """One row for each sample, under its title: its videos, uint8 (t, h, w, 3), beside each other, `frames` of each."""
    rows = []
    for videos, texts, title in zip(samples, labels, titles):
        strips = [contact_sheet([video], [text], frames) for video, text in zip(videos, texts)]
        width = sum(strip.width for strip in strips) + _GAP * (len(strips) - 1)
        row = Image.new("RGB", (width, max(strip.height for strip in strips) + _TITLE), "white")
        row.paste(Image.fromarray(text_strip(title, width, _TITLE).numpy()))
        left = 0
        for strip in strips:
            row.paste(strip, (left, _TITLE))
            left += strip.width + _GAP
        rows.append(row)
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def sample_video(
    samples: Sequence[Sequence[Tensor]], labels: Sequence[Sequence[str]], height: int = 128, columns: int = 2
) -> Tensor:
    """The samples as one video, uint8 (t, h, w, 3), `columns` in a row and each one's videos beside each other.

    All videos have one length and one shape, and are enlarged to `height` pixels.
    """
    cells = []
    for videos, texts in zip(samples, labels):
        width = round(videos[0].shape[2] * height / videos[0].shape[1])
        cells.append(side_by_side([resize_crop(video, (height, width)) for video in videos], texts))
    cells += [torch.full_like(cells[0], 255)] * (-len(cells) % columns)
    gap = torch.full_like(cells[0][:, :, :_GAP], 255)
    rows = []
    for start in range(0, len(cells), columns):
        row = [part for cell in cells[start : start + columns] for part in (cell, gap)]
        rows.append(torch.cat(row[:-1], dim=2))
    return torch.cat(rows, dim=1)


@torch.no_grad()
def feature_sheet(
    pipe: AICLPipeline, clips: Sequence[Tensor], captions: Sequence[str], labels: Sequence[str], frames: int = 8
) -> Image.Image:
    """Each clip, uint8 (t, h, w, 3), above the features R that the prism makes of it, as colours (not in the paper).

    Red, green and blue are the first three principal components of the features of all clips together, so that like
    features have like colours in every row.
    """
    size = (clips[0].shape[1], clips[0].shape[2])
    encoded = pipe.encode_references(
        [[clip] for clip in clips], captions, num_frames=len(clips[0]), height=size[0], width=size[1]
    )
    features = encoded.features.float().expand(len(clips), -1, -1, -1, -1)  # (n, t, c, h, w)
    rows = []
    for clip, colours, label in zip(clips, principal_colours(features), labels):
        rows += [(clip.cpu(), label), (_enlarged(colours, size), f"R of: {label}")]
    return contact_sheet([row for row, _ in rows], [label for _, label in rows], frames)


@torch.no_grad()
def generated_feature_sheet(
    pipe: AICLPipeline,
    prompt: str,
    references: Sequence[Tensor],
    *,
    seed: int = 0,
    num_inference_steps: int | None = None,
    noise: float = 0.5,
    frames: int = 8,
) -> Image.Image:
    """The paper's Fig. 4: the base model's video and AICL's, each above the UNet's features while it was generated.

    references: clips, uint8 (t, h, w, 3), of which the first stands on top. Both videos start from the same noise, and
    their features are coloured together (see `principal_colours`), so like colours mean like features: where the
    colours of ground and figure lie alike in both, AICL has kept the base model's layout. `recorded_features` says
    which features they are; `noise` is the share of the noise levels at which they are taken.
    """
    videos, features = [], []
    options: dict[str, Any] = {"seed": seed, "num_inference_steps": num_inference_steps, "progress": False}
    for shown in ((), references):
        with recorded_features(pipe, noise) as record:
            videos.append(pipe(prompt, references=shown, **options)[0])
        features.append(record.features())
    size = (videos[0].shape[1], videos[0].shape[2])
    colours = [_enlarged(each, size) for each in principal_colours(torch.stack(features))]
    rows = [resize_crop(references[0].cpu(), size), videos[0], colours[0], videos[1], colours[1]]
    labels = ["reference", "base model", "its features in the UNet", "AICL", "its features in the UNet"]
    return contact_sheet(rows, labels, frames)


class FeatureRecord:
    """A block's output tokens at one step: the one whose timestep is nearest to `target`."""

    def __init__(self, target: float) -> None:
        self.target = target
        self.distance = float("inf")
        self.timestep = 0.0
        self.latents: Grid = (0, 0, 0)
        self._features: Tensor | None = None

    def begin(self, timestep: float, latents: Grid) -> None:
        """A call of the network begins, on latents of this grid."""
        self.timestep, self.latents = timestep, latents

    def take(self, tokens: Tensor, grid: Grid) -> None:
        """Tokens (t, h*w, c) of the block, on their grid (t, h, w); kept where no step before was nearer."""
        distance = abs(self.timestep - self.target)
        if distance < self.distance:
            self.distance = distance
            self._features = tokens.float().cpu().unflatten(1, grid[1:]).movedim(-1, 1)

    def features(self) -> Tensor:
        """The features (t, c, h, w). Raises ConfigError where the network was not called."""
        if self._features is None:
            raise ConfigError("no features were recorded: the network was not called")
        return self._features


@contextmanager
def recorded_features(pipe: AICLPipeline, noise: float = 0.5) -> Iterator[FeatureRecord]:
    """Inside, the network's calls record the conditional branch's features at three quarters of its depth.

    In a UNet that is the middle of the decoder. noise: the noise level wanted, from 0 (clean) to 1. What an adapter
    adds to the block is included. Raises ConfigError for a network without blocks that AICL extends.
    """
    network, levels = _network(pipe), len(pipe.base.components.schedule)
    blocks = network.extensible_blocks()
    if not blocks:
        raise ConfigError("this network has no blocks that AICL extends, whose features could be shown")
    block, record = blocks[3 * len(blocks) // 4], FeatureRecord(noise * (levels - 1))

    def begin(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        t, h, w = args[0].shape[2:]
        record.begin(float(args[1][-1]), (t, h, w))

    def take(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        grid = block.grid(record.latents)
        record.take(block.layout.read(output, grid)[-1], grid)  # the last row is the conditional branch's

    handles = [network.register_forward_pre_hook(begin), block.module.register_forward_hook(take)]
    try:
        with _without_graphs(pipe):
            yield record
    finally:
        for handle in handles:
            handle.remove()


def principal_colours(features: Tensor) -> Tensor:
    """Features (n, t, c, h, w) -> their first three principal components (n, t, h, w, 3) in [0, 1].

    Each component is stretched so that its 2nd and 98th percentile become 0 and 1; its sign gives it positive skewness.
    """
    points = features.movedim(2, -1)
    flat = points.reshape(-1, points.shape[-1]).double()
    flat = flat - flat.mean(0)
    axes = torch.linalg.svd(flat, full_matrices=False)[2][:3]
    components = flat @ axes.T
    components = components * torch.where(components.pow(3).sum(0) < 0, -1.0, 1.0).to(components)
    if components.shape[1] < 3:
        components = F.pad(components, (0, 3 - components.shape[1]))
    ordered = components.sort(0).values
    low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.02, 0.98))
    return ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float().view(*points.shape[:-1], 3)


@torch.no_grad()
def attention_sheet(
    pipe: AICLPipeline,
    prompt: str,
    words: str,
    references: Sequence[Tensor],
    *,
    seed: int = 0,
    num_inference_steps: int | None = None,
    frames: int = 8,
) -> Image.Image:
    """The base model's video and AICL's, each above a map of how much it attends to `words` of the prompt.

    references: clips, uint8 (t, h, w, 3). Maps are the mean over steps, heads and layers. Both have one scale, from the
    least to the greatest value of the two, which their labels name in percent of all attention to the text.
    Raises ConfigError where the prompt does not hold the words.
    """
    codec = pipe.base.components.codec
    assert codec is not None  # a pipeline has all its parts
    tokens, factor = token_positions(pipe, prompt, words), codec.factor
    videos, maps = [], []
    options: dict[str, Any] = {"seed": seed, "num_inference_steps": num_inference_steps, "progress": False}
    for shown in ((), references):
        with recorded_attention(pipe, tokens) as record:
            pixels = pipe(prompt, references=shown, **options)[0]
        videos.append(pixels)
        frames_shown, height, width, _ = pixels.shape
        maps.append(record.mean((frames_shown, height // factor, width // factor)))
    low, top = min(float(each.min()) for each in maps), max(float(each.max()) for each in maps)
    heat = [
        _enlarged(_heat((each - low) / max(top - low, 1e-12)), (videos[0].shape[1], videos[0].shape[2]))
        for each in maps
    ]
    what = f"attention to '{words}', {100 * low:.0f}% (black) to {100 * top:.0f}% (white)"
    return contact_sheet([videos[0], heat[0], videos[1], heat[1]], ["base", what, "AICL", what], frames)


def token_positions(pipe: AICLPipeline, prompt: str, words: str) -> list[int]:
    """Where the tokens of `words` stand in the prompt's. Raises ConfigError where they don't."""
    text = pipe.base.components.text
    assert text is not None
    whole, part, nothing = (row.tolist() for row in text.tokenize([prompt, words, ""]))
    sought = part[1 : part.index(nothing[1])]  # between start and end token; an empty text has these two alone
    for start in range(len(whole) - len(sought) + 1):
        if sought and whole[start : start + len(sought)] == sought:
            return list(range(start, start + len(sought)))
    raise ConfigError(f"the prompt '{prompt}' does not hold the words '{words}'")


class AttentionRecord:
    """Sums of attention maps by their number of positions."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Tensor, int]] = {}

    def add(self, weights: Tensor) -> None:
        """A map (n,) over the positions of all frames."""
        total, count = self.sums.get(len(weights), (torch.zeros_like(weights), 0))
        self.sums[len(weights)] = total + weights, count + 1

    def mean(self, size: tuple[int, int, int]) -> Tensor:
        """The mean map over all layers, (t, h, w), of latents of this size; coarse maps are enlarged."""
        t, h, w = size
        maps = []
        for positions, (total, count) in self.sums.items():
            shrink = round((t * h * w / positions) ** 0.5)
            grid = (total / count).view(1, t, -(-h // shrink), -(-w // shrink))
            maps.append(F.interpolate(grid, (h, w), mode="bilinear", align_corners=False)[0])
        return torch.stack(maps).mean(0)


@contextmanager
def recorded_attention(pipe: AICLPipeline, tokens: Sequence[int]) -> Iterator[AttentionRecord]:
    """Inside, every call of the UNet's text attention adds the weight of `tokens` in the conditional branch."""
    record, handles = AttentionRecord(), []

    def hook(layer: Attention, args: tuple[Tensor, ...]) -> None:
        x, context = args[:2]
        # the last row is the conditional branch's
        q, k = (
            project(rows[-1]).float().unflatten(1, (layer.heads, -1)).transpose(0, 1)
            for project, rows in ((layer.to_q, x), (layer.to_k, context[:, : layer.TEXT_TOKENS]))
        )
        scores = q @ k.transpose(1, 2) * q.shape[2] ** -0.5  # (heads, n, tokens)
        record.add(scores.softmax(-1)[:, :, list(tokens)].sum(-1).mean(0).cpu())

    try:
        handles = [layer.register_forward_pre_hook(hook) for layer in text_attentions(_network(pipe))]
        with _without_graphs(pipe):
            yield record
    finally:
        for handle in handles:
            handle.remove()


def text_attentions(unet: nn.Module) -> list[Attention]:
    """The layers through which each frame of a UNet reads the text."""
    spatial = {SpatioTemporalBlock: "cross_attn", SpatialBlock: "attn2"}
    return [getattr(block, spatial[type(block)]) for block in unet.modules() if type(block) in spatial]


@contextmanager
def _without_graphs(pipe: AICLPipeline) -> Iterator[None]:
    """Inside, every step calls the network: a CUDA graph is replayed without its hooks, and none that copy to the host
    can be captured."""
    before, pipe.base.acceleration = pipe.base.acceleration, Acceleration("none")
    try:
        yield
    finally:
        pipe.base.acceleration = before


def _network(pipe: AICLPipeline) -> VideoBackbone:
    network = pipe.base.components.unet
    assert network is not None  # a pipeline has all its parts
    return network


def _heat(values: Tensor) -> Tensor:
    """[0, 1] (t, h, w) -> colours (t, h, w, 3) from black over red and yellow to white."""
    return torch.stack([(3 * values - i).clamp(0, 1) for i in range(3)], -1)


def _enlarged(colours: Tensor, size: tuple[int, int]) -> Tensor:
    """Colours (t, h, w, 3) in [0, 1] -> uint8 (t, *size, 3), cells as squares."""
    images = F.interpolate(colours.movedim(-1, 1).float(), size, mode="nearest")
    return (images * 255).round().to(torch.uint8).movedim(1, -1).cpu()
