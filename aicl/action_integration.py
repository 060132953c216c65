"""Action Integration: a new cross-attention to R at the end of every UNet attention block (III-C, eq. 7)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from aicl.rotary import axial_rotary, check_head_dim, rotate
from lvdm.config import check_at_least
from lvdm.errors import ConfigError
from lvdm.models.attention import RelativePosition, attend
from lvdm.models.layers import LayerNorm


@dataclass
class IntegrationConfig:
    """How R enters the UNet; the defaults are ours (Table II, row 9).

    `mode`: `temporal` (eq. 7), `spatial` (row 7), or `both`, each reading a feature of its own (row 8: the prism
    then makes two, R has 2 * feature_channels channels, the temporal ones first).
    """

    feature_channels: int = 4
    mode: Literal["temporal", "spatial", "both"] = "temporal"
    head_dim: int = 64
    max_relative_frames: int = 16
    temporal_positions: Literal["learned", "none"] = "learned"
    spatial_positions: Literal["rotary", "none"] = "rotary"

    def __post_init__(self) -> None:
        check_at_least(self, 1, ("feature_channels", "head_dim", "max_relative_frames"), "integration")
        if self.mode != "temporal" and self.spatial_positions == "rotary":
            check_head_dim(self.head_dim, "integration.head_dim")

    @property
    def parts(self) -> tuple[str, ...]:
        """The attentions of one block, in the order of their channels in R."""
        return ("temporal", "spatial") if self.mode == "both" else (self.mode,)


@dataclass
class ReferenceContext:
    """R of a batch of samples, ready to be read by every block; make it with `IntegratedUNet.memory`.

    features: (b, m, channels, h, w) with the frames of all references on one axis, m = sum(frames);
    frames: frame count of each reference; weights: (b, k) or None for equal ones; scale: factor of the update.
    lead_from: from this timestep on (up to the noisiest) the first reference is read alone; None: never.
    Without gradients, each block keeps its keys and values here, so they are computed once per video.
    """

    features: Tensor
    frames: tuple[int, ...]
    weights: Tensor | None = None
    scale: float = 1.0
    lead_from: int | None = None
    cache: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @cached_property
    def first(self) -> "ReferenceContext":
        """The first reference alone."""
        weights = None if self.weights is None else self.weights[:, :1]
        return ReferenceContext(self.features[:, : self.frames[0]], self.frames[:1], weights, self.scale)

    def at(self, timesteps: Tensor) -> "ReferenceContext":
        """What is read at these timesteps (b,), all alike where a reference leads."""
        if self.lead_from is None or len(self.frames) == 1 or int(timesteps[0]) < self.lead_from:
            return self
        return self.first

    def bias(self, repeats: Sequence[int]) -> Tensor | None:
        """log of the weights as a score bias (b, 1, 1, sum(repeats)): weight 0 removes a reference exactly."""
        if self.weights is None:
            return None
        some = (self.weights > 0).any(dim=1, keepdim=True)
        scores = torch.where(some, self.weights.log(), 0.0)  # rows without any reference are silenced by `present`
        columns = [scores[:, i : i + 1].expand(-1, count) for i, count in enumerate(repeats)]
        return torch.cat(columns, dim=1)[:, None, None]

    def repeat(self, count: int) -> "ReferenceContext":
        """R of a batch in which each sample comes `count` times in a row."""
        if count == 1:
            return self
        features, weights = (
            None if x is None else x.repeat_interleave(count, dim=0) for x in (self.features, self.weights)
        )
        return ReferenceContext(features, self.frames, weights, self.scale, self.lead_from)

    def present(self) -> Tensor | None:
        """(b, 1, 1, 1): 0 for a sample whose references all weigh nothing, else 1."""
        return None if self.weights is None else (self.weights > 0).any(dim=1).float()[:, None, None, None]


References = ReferenceContext | Sequence[tuple[slice, ReferenceContext]] | None


class ReferenceAttention(nn.Module):
    """LayerNorm, then attention from the UNet's features to R, along time or within frames; starts as zero."""

    def __init__(self, width: int, config: IntegrationConfig, part: str):
        super().__init__()
        if width % config.head_dim:
            raise ConfigError(f"integration.head_dim {config.head_dim} does not divide the UNet's width {width}")
        self.part, self.heads = part, width // config.head_dim
        self.norm = LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(config.feature_channels, width, bias=False)
        self.to_v = nn.Linear(config.feature_channels, width, bias=False)
        self.to_out = nn.Linear(width, width)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)
        self.relative = None
        if part == "temporal" and config.temporal_positions == "learned":
            self.relative = nn.ModuleList(
                RelativePosition(config.head_dim, config.max_relative_frames) for _ in ("key", "value")
            )
        self.rotary = part == "spatial" and config.spatial_positions == "rotary"

    def forward(self, tokens: Tensor, features: Tensor, memory: ReferenceContext, size: tuple[int, int]) -> Tensor:
        """tokens (b, t, h*w, width), features (b, m, channels, H, W) -> the update, like tokens.

        `features` is this part's share of `memory.features`; a batch of one serves every sample.
        """
        b, t = tokens.shape[:2]
        inside = "b s h t d" if self.part == "temporal" else "b t h s d"
        x = tokens if torch.is_autocast_enabled(tokens.device.type) else tokens.to(self.norm.weight.dtype)
        q = self.to_q(self.norm(x))
        q = rearrange(q, f"b t s (h d) -> {inside}", h=self.heads)  # (b, groups, heads, n, d)
        k, v = self._keys_values(features, memory, size, t)  # (b or 1, groups, heads, keys, d)
        if self.rotary:
            q = rotate(q, axial_rotary(*size, q.shape[-1], q.device))
        bias = memory.bias(memory.frames if self.part == "temporal" else [q.shape[3]] * len(memory.frames))
        out = attend(
            q.flatten(0, 1),
            *(x.expand(b, -1, -1, -1, -1).flatten(0, 1) for x in (k, v)),
            bias=None if bias is None else bias.expand(b, -1, -1, -1).repeat_interleave(q.shape[1], dim=0),
            relative=self._relative(t, memory.frames, q.device),
        )
        out = self.to_out(rearrange(out.unflatten(0, (b, -1)), f"{inside} -> b t s (h d)"))
        present = memory.present()
        return (out if present is None else out * present.to(out.dtype)).to(tokens.dtype)

    def _keys_values(
        self, features: Tensor, memory: ReferenceContext, size: tuple[int, int], t: int
    ) -> tuple[Tensor, Tensor]:
        """Linear maps of R, area-averaged to this level's size: (b, groups, heads, keys, d) each."""
        keep = not torch.is_grad_enabled()
        if keep and (id(self), size, t) in memory.cache:
            return memory.cache[id(self), size, t]
        pooled = F.adaptive_avg_pool2d(features.to(self.to_k.weight.dtype).flatten(0, 1), size)
        pooled = rearrange(pooled, "(b m) c h w -> b m (h w) c", b=features.shape[0])
        outside, inside = "b m s (h d)", "b s h m d"
        if self.part == "spatial":  # frame i reads frame i of every reference, or its last one
            starts = [sum(memory.frames[:i]) for i in range(len(memory.frames))]
            index = [start + min(i, count - 1) for i in range(t) for start, count in zip(starts, memory.frames)]
            pooled = pooled[:, index].unflatten(1, (t, -1))
            outside, inside = "b t k s (h d)", "b t h (k s) d"
        k, v = (rearrange(layer(pooled), f"{outside} -> {inside}", h=self.heads) for layer in (self.to_k, self.to_v))
        if self.rotary:
            cos, sin = axial_rotary(*size, k.shape[-1], k.device)
            repeats = len(memory.frames)
            k = rotate(k, (cos.repeat(repeats, 1), sin.repeat(repeats, 1)))
        if keep:
            memory.cache[id(self), size, t] = k, v
        return k, v

    def _relative(self, t: int, frames: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Learned keys and values (t, m, d) for the distance of a query's frame to a key's inside its reference."""
        if self.relative is None:
            return None
        queries = torch.arange(t, device=device)
        keys = torch.cat([torch.arange(count, device=device) for count in frames])
        return tuple(table(queries, keys) for table in self.relative)


class BlockIntegration(nn.Module):
    """What one UNet attention block gains: an update of its output from R."""

    def __init__(self, width: int, config: IntegrationConfig, state: "_State"):
        super().__init__()
        self.feature_channels, self.state = config.feature_channels, state
        self.parts = nn.ModuleDict({part: ReferenceAttention(width, config, part) for part in config.parts})

    def hook(self, block: nn.Module, args: tuple, kwargs: dict, tokens: Tensor) -> Tensor:
        """Forward hook of the block: tokens (b, t, h*w, width) -> tokens + CA'(tokens, R), eq. 7."""
        for rows, memory in self.state.references:
            if memory.scale:
                tokens = self._add(tokens, rows, memory, kwargs["size"])
        return tokens

    def _add(self, tokens: Tensor, rows: slice, memory: ReferenceContext, size: tuple[int, int]) -> Tensor:
        start, stop = rows.start or 0, tokens.shape[0] if rows.stop is None else rows.stop
        selected = tokens[start:stop]
        shares = memory.features.split(self.feature_channels, dim=2)
        for attention, share in zip(self.parts.values(), shares):
            selected = selected + memory.scale * attention(selected, share, memory, size)
        if stop - start == tokens.shape[0]:
            return selected
        return torch.cat([tokens[:start], selected, tokens[stop:]])


@dataclass
class _State:
    """What the current call of the UNet reads; one object shared by all blocks of one IntegratedUNet."""

    references: tuple[tuple[slice, ReferenceContext], ...] = ()
    announced: tuple[tuple[slice, ReferenceContext], ...] = ()

    def begin(self, unet: nn.Module, args: tuple) -> None:
        """Forward pre-hook of the UNet: a call that announced no references has none, whoever makes it."""
        self.references, self.announced = self.announced, ()


class IntegratedUNet(nn.Module):
    """A frozen UNet whose attention blocks read R; made by `integrate`.

    The new layers live in `blocks` and act through forward hooks, so the UNet keeps its structure and its keys.
    `layout`: the width of each patched block by its name in the UNet.
    Under gradient checkpointing the blocks run again in the backward pass: call backward before the next forward.
    """

    def __init__(self, unet: nn.Module, config: IntegrationConfig):
        super().__init__()
        self.unet, self.config, self._state = unet, config, _State()
        targets = dict(unet.attention_blocks())
        if not targets:
            raise ConfigError("this UNet has no attention blocks that AICL could read references in")
        if any(_is_integrated(block) for block in targets.values()):
            raise ConfigError("this UNet is already integrated: call unpatch() on the first integration before another")
        self.layout = layout_of(unet)
        self.blocks = nn.ModuleDict(
            {
                name.replace(".", "_"): BlockIntegration(width, config, self._state)
                for name, width in self.layout.items()
            }
        )
        self._frozen = [(p, p.requires_grad) for p in unet.parameters()]
        unet.requires_grad_(False)
        self._hooks = [
            block.register_forward_hook(new.hook, with_kwargs=True)
            for block, new in zip(targets.values(), self.blocks.values())
        ]
        self._hooks.append(unet.register_forward_pre_hook(self._state.begin))

    @property
    def family(self) -> str:
        return self.unet.family

    def check_input(self, shape: Sequence[int]) -> None:
        """The UNet's own check of latents (b, c, t, h, w): ConfigError for what it cannot take."""
        self.unet.check_input(shape)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        fps: Tensor | int | None = None,
        references: References = None,
    ) -> Tensor:
        """The UNet's prediction for x (b, c, t, h, w), reading R where there is one.

        references: None (the base model, bit for bit), a ReferenceContext for the whole batch, or
        [(rows, ReferenceContext)] for slices of it, such as the conditional branch of classifier-free guidance.
        """
        if references is None:
            references = ()
        elif isinstance(references, ReferenceContext):
            references = ((slice(None), references),)
        self._state.announced = tuple((rows, memory.at(timesteps)) for rows, memory in references)
        output = self.unet(x, timesteps, context, fps=fps)
        if not torch.is_grad_enabled():  # with gradients, checkpointed blocks still need them in backward
            self._state.references = ()
        return output

    def memory(
        self,
        features: Tensor,
        frames_per_reference: int | Sequence[int],
        weights: Sequence[float] | Tensor | None = None,
        scale: float = 1.0,
        lead_from: int | None = None,
    ) -> ReferenceContext | None:
        """Prepare R for `forward`: features (b, m, parts * feature_channels, h, w), all references on the frame axis.

        frames_per_reference: one count for all, or a count each; they add up to m.
        weights: w_i >= 0, one a reference, or a tensor (b, k). They multiply the attention's unnormalised weights,
        so only their ratios matter, and 0 is as if that reference were absent. scale: factor of the update, from 0
        up; 0 is the base model, bit for bit. lead_from: see ReferenceContext. Returns None if every weight is 0.
        Raises ConfigError for what does not fit.
        """
        m, channels = features.shape[1], self.config.feature_channels * len(self.config.parts)
        if features.shape[2] != channels:
            raise ConfigError(
                f"R has {features.shape[2]} channels, the integration reads {channels} "
                "(prism.features * prism.out_channels against integration.feature_channels and mode)"
            )
        if isinstance(frames_per_reference, int):
            frames = (frames_per_reference,) * (m // frames_per_reference)
        else:
            frames = tuple(frames_per_reference)
        if sum(frames) != m:
            raise ConfigError(f"R has {m} frames, its references are said to have {list(frames)}")
        if not 0 <= scale < math.inf:
            raise ConfigError(f"scale is {scale}: give a number from 0 up, 0 for the base model and 1 for full effect")
        if weights is not None and not isinstance(weights, Tensor):
            if len(weights) != len(frames) or any(not w >= 0 or math.isinf(w) for w in weights):
                raise ConfigError(
                    f"weights {list(weights)} must be numbers from 0 up, one each for {len(frames)} reference(s)"
                )
            kept = [i for i, w in enumerate(weights) if w > 0]
            if not kept:
                return None
            pieces = features.split(frames, dim=1)
            features, frames = torch.cat([pieces[i] for i in kept], dim=1), tuple(frames[i] for i in kept)
            weights = None if len({weights[i] for i in kept}) == 1 else [weights[i] for i in kept]
            if weights is not None:
                weights = torch.tensor(weights, device=features.device).expand(features.shape[0], -1)
        return ReferenceContext(features, frames, weights, scale, lead_from)

    def unpatch(self) -> nn.Module:
        """Take the new layers off and give the UNet back as it was, `requires_grad` included."""
        for handle in self._hooks:
            handle.remove()
        for parameter, trained in self._frozen:
            parameter.requires_grad_(trained)
        return self.unet


def layout_of(unet: nn.Module) -> dict[str, int]:
    """Name -> width of the blocks of a UNet that an integration patches."""
    return {name: _width(block) for name, block in unet.attention_blocks()}


def _is_integrated(block: nn.Module) -> bool:
    return any(isinstance(getattr(hook, "__self__", None), BlockIntegration) for hook in block._forward_hooks.values())


def _width(block: nn.Module) -> int:
    """Channels of a block's tokens: what its LayerNorms normalise."""
    return next(layer for layer in block.modules() if isinstance(layer, nn.LayerNorm)).normalized_shape[0]


def integrate(unet: nn.Module, config: IntegrationConfig) -> IntegratedUNet:
    """Patch every attention block of `unet` (either family) in place and freeze the rest."""
    return IntegratedUNet(unet, config)
