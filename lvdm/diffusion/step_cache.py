"""Fewer operations a step: the inner levels of a UNet, which change slowly from step to step, are not computed anew at
each (after DeepCache, Ma et al. 2024, arXiv 2312.00858).

The outermost level always is, and with it what methods on top add to its blocks: references are read at every step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lvdm.errors import ConfigError

Places = tuple[int, int, int, int]
"""Rows, frames, height and width of latents."""


class InnerFeatures:
    """What the inner levels of one UNet gave last: written by its whole calls, read by those in between.

    active: whether calls keep and use it at all. whole: whether the call at hand computes everything. Each size has a
    tensor of its own that stays where it is, so that CUDA graphs can write and read it.
    """

    def __init__(self) -> None:
        self.active, self.whole = False, True
        self._kept: dict[tuple[Places, torch.dtype, torch.device], Tensor] = {}

    def keep(self, features: Tensor, places: Places) -> None:
        """Copy the features that the inner levels gave for latents of this size."""
        key = (places, features.dtype, features.device)
        if key not in self._kept:
            self._kept[key] = torch.empty_like(features)
        self._kept[key].copy_(features)

    def kept(self, places: Places, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What was kept for latents of this size. Raises KeyError where nothing was."""
        return self._kept[places, dtype, device]


class StepCache(nn.Module):
    """A network that is called whole at the first step and every `every`-th after it, and in part at the others.

    It is called like `network`, once a step, by one sampling. Raises ConfigError for an interval below 2, and for a
    network without a UNet of ours in it.
    """

    def __init__(self, network: nn.Module, every: int) -> None:
        super().__init__()
        if every < 2:
            raise ConfigError(f"step_cache is {every}: give the steps from one whole call to the next, 2 or more")
        self.network, self.every, self._step = network, every, 0
        found = [cast(InnerFeatures, module.inner) for module in network.modules() if hasattr(module, "inner")]
        if not found:
            raise ConfigError("step_cache leaves out the inner levels of a UNet, and this model is none: leave it out")
        self._inner = found[0]

    @property
    def shares_branches(self) -> bool:
        """As of the network."""
        return bool(getattr(self.network, "shares_branches", False))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the network gives for this step."""
        whole = self._step % self.every == 0
        self._step += 1
        with self._using(whole):
            return self.network(*args, **kwargs)

    @contextmanager
    def _using(self, whole: bool) -> Iterator[None]:
        self._inner.active, self._inner.whole = True, whole
        network = cast(Any, self.network)
        network.variant = ("inner features", whole)  # graphs of both kinds of calls are different ones
        try:
            yield
        finally:
            self._inner.active, self._inner.whole = False, True
            network.variant = None
