"""An exponential moving average of weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from lvdm.errors import CheckpointError


class EMA:
    """Average of a module's trainable parameters, kept in float32 beside it.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that early weights are forgotten quickly. Parameters
    that do not require gradients when the average is made are left out.
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.averages = {
            name: parameter.detach().float().clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the averages towards the module's weights, after an optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = list(self.averages.values())
        current = [parameter.detach().float() for parameter in self._parameters(module)]
        torch._foreach_lerp_(averages, current, 1.0 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's weights by their averages."""
        for parameter, average in zip(self._parameters(module), self.averages.values()):
            parameter.copy_(average)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within the context the module has the averages as its weights; afterwards its own again."""
        own = [parameter.detach().clone() for parameter in self._parameters(module)]
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters(module), own):
                    parameter.copy_(value)

    def to(self, device: torch.device | str) -> Self:
        """Move the averages to `device`, in place."""
        self.averages = {name: average.to(device) for name, average in self.averages.items()}
        return self

    def state_dict(self) -> dict[str, Tensor | int]:
        """The averages by parameter name, and `updates`."""
        return {"updates": self.updates, **{f"averages.{name}": value for name, value in self.averages.items()}}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Continue from `state_dict()`. Raises CheckpointError if it is of another module."""
        names = {f"averages.{name}" for name in self.averages}
        if names != state.keys() - {"updates"}:
            odd = sorted(names ^ (state.keys() - {"updates"}))
            raise CheckpointError(f"the average is of another module: {len(odd)} entries differ, the first is {odd[0]}")
        self.updates = int(state["updates"])
        for name, average in self.averages.items():
            average.copy_(torch.as_tensor(state[f"averages.{name}"]))

    def _parameters(self, module: nn.Module) -> list[Tensor]:
        parameters = dict(module.named_parameters())
        return [parameters[name] for name in self.averages]
