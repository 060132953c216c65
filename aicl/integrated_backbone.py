"""A frozen backbone with Action Integration on its blocks: what is put on, announced to each call, and taken off."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from aicl.action_integration import IntegrationConfig, ReferenceAttention
from aicl.action_prism import PrismConfig
from aicl.integration_variants import SpatialReferenceAttention, TokenReferenceAttention
from aicl.reference_context import ReferenceContext
from lvdm.errors import ConfigError
from lvdm.models.backbone import ExtensibleBlock, Frozen, Grid, VideoBackbone, WrappedBackbone, freeze, thaw

ATTENTIONS: dict[str, type[ReferenceAttention]] = {
    "temporal": ReferenceAttention,
    "spatial": SpatialReferenceAttention,
    "tokens": TokenReferenceAttention,
}
References = ReferenceContext | Sequence[tuple[slice, ReferenceContext]] | None


@dataclass
class _Call:
    """What the current call of the backbone reads, and on which grid; shared by all blocks of one integration."""

    references: tuple[tuple[slice, ReferenceContext], ...] = ()
    announced: tuple[tuple[slice, ReferenceContext], ...] = ()
    latents: Grid = (0, 0, 0)

    def begin(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the backbone: a call that announced no references has none, whoever makes it."""
        self.references, self.announced = self.announced, ()
        t, h, w = (args[0] if args else kwargs["x"]).shape[2:]
        self.latents = (t, h, w)


class BlockIntegration(nn.Module):
    """What one block of the backbone gains: an update of its tokens from R."""

    def __init__(self, block: ExtensibleBlock, config: IntegrationConfig, call: _Call) -> None:
        super().__init__()
        self.feature_channels, self.block, self.call = config.feature_channels, block, call
        self.parts = nn.ModuleDict({part: ATTENTIONS[part](block.width, config) for part in config.parts})

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of the block: its tokens x become x + CA'(x, R), eq. 7."""
        shown = [(rows, context) for rows, context in self.call.references if context.scale]
        if not shown:
            return output
        grid = self.block.grid(self.call.latents)
        tokens = self.block.layout.read(output, grid)  # (b, t, h*w, width)
        for rows, context in shown:
            tokens = self._add(tokens, rows, context, grid[1:])
        return self.block.layout.write(output, tokens, grid)

    def _add(self, tokens: Tensor, rows: slice, context: ReferenceContext, size: tuple[int, int]) -> Tensor:
        start, stop = rows.start or 0, tokens.shape[0] if rows.stop is None else rows.stop
        selected = tokens[start:stop]
        shares = context.features.split(self.feature_channels, dim=2)
        for attention, share in zip(self.parts.values(), shares):
            update = attention(selected, share, context, size)
            if torch.is_grad_enabled():
                selected = selected + context.scale * update
            else:
                selected.add_(update, alpha=context.scale)  # in the place of the block's output, which nobody else has
        if not torch.is_grad_enabled():
            return tokens
        if stop - start == tokens.shape[0]:
            return selected
        return torch.cat([tokens[:start], selected, tokens[stop:]])


class IntegratedBackbone(WrappedBackbone):
    """A frozen backbone whose blocks read R; made by `integrate`. It is called like the backbone that it holds.

    The new layers live in `blocks` and act through forward hooks, so the backbone keeps its structure and its keys.
    Under gradient checkpointing its blocks run again in the backward pass: call backward before the next forward.
    """

    def __init__(self, backbone: VideoBackbone, config: IntegrationConfig) -> None:
        super().__init__(backbone)
        self.config, self._call = config, _Call()
        targets = backbone.extensible_blocks()
        if not targets:
            raise ConfigError("this model has no attention blocks that AICL could read references in")
        self.layout = layout_of(backbone)
        self._added = {block.name.replace(".", "_"): BlockIntegration(block, config, self._call) for block in targets}
        self.blocks = nn.ModuleDict(self._added)
        self._frozen: Frozen = []
        self._hooks: list[RemovableHandle] = []
        self.patch()

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        fps: Tensor | float | None = None,
        references: References = None,
        **conditions: Any,
    ) -> Tensor:
        """The backbone's prediction for x (b, c, t, h, w), reading R where there is one.

        conditions: further arguments of the backbone.

        references: None (the base model, bit for bit), a ReferenceContext for the whole batch, or
        [(rows, ReferenceContext)] for slices of it, such as the conditional branch of classifier-free guidance.
        """
        if references is None:
            references = ()
        elif isinstance(references, ReferenceContext):
            references = ((slice(None), references),)
        self._call.announced = tuple((rows, shown.at(timesteps)) for rows, shown in references)
        output: Tensor = self.backbone(x, timesteps, context, fps=fps, **conditions)
        if not torch.is_grad_enabled():  # with gradients, checkpointed blocks still need them in backward
            self._call.references = ()
        return output

    def reference_context(
        self,
        features: Tensor,
        frames_per_reference: int | Sequence[int],
        weights: Sequence[float] | Tensor | None = None,
        scale: float = 1.0,
        spans: Sequence[tuple[float, float]] | None = None,
    ) -> ReferenceContext | None:
        """Prepare R for `forward`: features (b, m, parts * feature_channels, h, w), all references on the frame axis.

        The arguments are those of `ReferenceContext.build`. Returns None if every weight is 0.
        Raises ConfigError for what does not fit, R of another number of channels included.
        """
        channels = self.config.feature_channels * len(self.config.parts)
        if features.shape[2] != channels:
            raise ConfigError(
                f"R has {features.shape[2]} channels, the integration reads {channels} "
                "(prism.features * prism.out_channels against integration.feature_channels and mode)"
            )
        return ReferenceContext.build(features, frames_per_reference, weights, scale, spans)

    def patch(self) -> None:
        """Put the layers on the backbone and freeze it: done at first, and again after `unpatch`. Raises ConfigError
        where some are on it already."""
        if any(_is_integrated(block.module) for block in self.backbone.extensible_blocks()):
            raise ConfigError(
                "this model is already integrated: call unpatch() on the first integration before another"
            )
        self._frozen = freeze(self.backbone)
        self._hooks = [new.block.module.register_forward_hook(new.hook) for new in self._added.values()]
        self._hooks.append(self.backbone.register_forward_pre_hook(self._call.begin, with_kwargs=True))

    def unpatch(self) -> VideoBackbone:
        """Take the new layers off and give the backbone back as it was, `requires_grad` included. Does nothing where
        they are off already: what another integration has put on since stays."""
        for handle in self._hooks:
            handle.remove()
        thaw(self._frozen)
        self._hooks, self._frozen = [], []
        return self.backbone


def check_fit(prism: PrismConfig, integration: IntegrationConfig) -> None:
    """Raise ConfigError for an R, as a prism of this config makes it, that the integration could not read."""
    made, read = prism.features * prism.out_channels, integration.feature_channels * len(integration.parts)
    if made != read:
        raise ConfigError(
            f"the prism makes R with {made} channels (prism.features * prism.out_channels), the integration reads "
            f"{read} (integration.feature_channels for each part of integration.mode): make them equal"
        )
    if (not prism.pool_text) != (integration.mode == "tokens"):
        raise ConfigError(
            f"prism.pool_text is {str(prism.pool_text).lower()} and integration.mode {integration.mode}: "
            "set integration.mode: tokens where, and only where, R keeps a value for each token"
        )


def layout_of(backbone: VideoBackbone) -> dict[str, int]:
    """Name -> width of the blocks of a backbone that an integration patches."""
    return {block.name: block.width for block in backbone.extensible_blocks()}


def integrate(backbone: VideoBackbone, config: IntegrationConfig) -> IntegratedBackbone:
    """Patch every extensible block of `backbone` in place and freeze the rest."""
    return IntegratedBackbone(backbone, config)


def _is_integrated(block: nn.Module) -> bool:
    return any(isinstance(getattr(hook, "__self__", None), BlockIntegration) for hook in block._forward_hooks.values())
