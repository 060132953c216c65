"""A linear layer whose products are of 8-bit floating point (e4m3: 3 bits of mantissa), without gradients.

Weights are rounded once, with a scale for each output channel; activations as they come, with a scale for each row;
sums are in float32. On a CPU the numbers are the same but for the order of sums, and nothing is saved.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lvdm.models import kernels

LARGEST = torch.finfo(torch.float8_e4m3fn).max
SMALLEST = 1e-12  # of a row's largest value, so that rows of zeros have a scale


class Float8Linear(nn.Module):
    """A linear layer whose weights are in e4m3, without gradients; made `of` one.

    Moving it moves its weights; casting it to another type leaves them, and their scales, as they are.
    """

    weight: Tensor  # (out, in), e4m3 as bytes
    scale: Tensor  # (out, 1), float32
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> "Float8Linear":
        """The layer with its weights rounded, and the same bias."""
        weight, scale = quantize_rows(layer.weight.detach())
        return cls(weight.view(torch.uint8), scale, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in x's type."""
        return linear(x, self.weight, self.scale, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float8Linear":
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scale = scale.to(self.scale.device)
        return self


def linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times the transpose of weights (out, in), e4m3 as bytes, with scales (out, 1) -> (..., out)."""
    rows, own = x.reshape(-1, x.shape[-1]), weight.view(torch.float8_e4m3fn)
    if not x.is_cuda:
        rounded, factor = quantize_rows(rows)
        y = (rounded.float() * factor) @ (own.float() * scale).T
        return (y if bias is None else y + bias).to(x.dtype).unflatten(0, x.shape[:-1])
    if kernels.enabled("fp8") and kernels.usable(x):
        from lvdm.models.kernels.fp8 import quantize_rows as fused

        rounded, factor = fused(rows.contiguous())
    else:
        rounded, factor = quantize_rows(rows)
    y = torch._scaled_mm(rounded, own.t(), factor, scale.t(), bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True)
    return y.unflatten(0, x.shape[:-1])


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of x (rows, k) over its own scale, so that its largest value is the largest of e4m3: (rows, k) in e4m3,
    and the scales (rows, 1), float32."""
    values = x.float()
    scale = values.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST) / LARGEST
    return (values / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def joined(layers: Sequence[Float8Linear]) -> Callable[[Tensor], Tensor]:
    """The layers, which have no bias and read the same, as one that gives their results side by side.

    Their weights become parts of one tensor.
    """
    weight, scale = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "scale"))
    widths = [len(layer.weight) for layer in layers]
    for layer, own, factor in zip(layers, weight.split(widths), scale.split(widths)):
        layer.weight, layer.scale = own, factor
    return partial(linear, weight=weight, scale=scale)
