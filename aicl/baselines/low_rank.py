"""LoRA (arXiv 2106.09685, eq. 3): y = W x + alpha / rank * B A x, for many adapters at once.

`peft` runs the adapters of a batch one after another in every layer. Here each sample of a batch has an adapter of its
own in the same products, so the LoRAs of ten actions are trained and sampled together. A test compares one of them with
peft's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.hooks import RemovableHandle

from aicl.baselines.attentions import unfuse
from lvdm.models.backbone import VideoBackbone, freeze, thaw


class LowRankUpdates(nn.Module):
    """`count` LoRAs of the same linear layers. New ones change nothing: B is zero.

    layers: by name; they stay as they are, and are read through forward hooks between `attach` and `detach`.
    generators: one for each LoRA, which draws its A, uniform in +-1 / sqrt(in) as usual; None: torch's own.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Linear],
        rank: int,
        alpha: float,
        count: int = 1,
        generators: Sequence[Generator] | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.count = alpha / rank, count
        self._layers = dict(layers)  # not registered: they belong to the base model
        self._attached: list[RemovableHandle] = []
        self._refuse: Callable[[], None] = _nothing
        self._rows: tuple[Tensor, Tensor | None] | None = None
        self._batch = 0
        self._shared: tuple[VideoBackbone, bool] | None = None  # (backbone, whether it shares branches), not registered
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        sources: Sequence[Generator | None] = generators or [None] * count
        for name, layer in self._layers.items():
            reach = layer.in_features**-0.5
            first = [torch.empty(rank, layer.in_features).uniform_(-reach, reach, generator=each) for each in sources]
            self.down[_key(name)] = nn.Parameter(torch.stack(first))
            self.up[_key(name)] = nn.Parameter(torch.zeros(count, layer.out_features, rank))

    @property
    def size(self) -> int:
        """Parameters of one LoRA."""
        return sum(parameter.numel() for parameter in self.parameters()) // self.count

    def use(self, rows: Sequence[int] | None) -> None:
        """From now on, sample i of a batch has LoRA rows[i], none where that is -1; a larger batch (branches of
        guidance) repeats the rows. None: no sample has one."""
        if rows is None or max(rows) < 0:
            self._rows = None
            return
        device = next(self.parameters()).device
        index = torch.tensor(rows, device=device)
        self._rows = index.clamp(min=0), (index >= 0).float() if min(rows) < 0 else None

    def attach(self, backbone: VideoBackbone) -> None:
        """Act on the layers, which are `backbone`'s, until `detach`. Branches of guidance share no rows meanwhile, so
        that every layer sees as many samples as the backbone is called with."""
        self._refuse = unfuse(backbone)
        self._shared = backbone, backbone.shares_branches
        backbone.shares_branches = False
        self._attached = [
            layer.register_forward_hook(partial(self._hook, _key(n))) for n, layer in self._layers.items()
        ]
        self._attached.append(backbone.register_forward_pre_hook(self._begin, with_kwargs=True))

    def detach(self) -> None:
        """Leave the layers as they were."""
        for handle in self._attached:
            handle.remove()
        self._refuse()
        if self._shared is not None:
            backbone, shares = self._shared
            backbone.shares_branches = shares
        self._attached, self._rows, self._refuse, self._shared = [], None, _nothing, None

    @contextmanager
    def applied(self, backbone: VideoBackbone, rows: Sequence[int] | None = None) -> Iterator[None]:
        """Inside, the layers of `backbone` are updated; see `use` for the rows."""
        self.attach(backbone)
        self.use(rows)
        try:
            yield
        finally:
            self.detach()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._batch = len(args[0] if args else kwargs["x"])

    def _hook(self, key: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """The layer's output and the update of its input, whose first axis begins with the samples."""
        if self._rows is None:
            return output
        index, mask = self._rows
        times, x = self._batch // len(index), args[0]
        tokens = x.reshape(self._batch, -1, x.shape[-1])
        down, up = (part[key][index].repeat(times, 1, 1).to(x.dtype) for part in (self.down, self.up))
        update = tokens @ down.transpose(1, 2) @ up.transpose(1, 2)
        if mask is not None:
            update = update * mask.repeat(times)[:, None, None].to(x.dtype)
        return output + self.scale * update.view_as(output).to(output.dtype)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, no parameter of `module` asks for a gradient; afterwards those do that did."""
    before = freeze(module)
    try:
        yield
    finally:
        thaw(before)


def _nothing() -> None:
    """What is to be done where nothing was fused."""


def _key(name: str) -> str:
    return name.replace(".", "_")
