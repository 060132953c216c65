"""Optical flow: Lucas and Kanade's, in plain torch and without weights, or torchvision's RAFT from a local file."""

import math
import os
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicl.evaluation.evaluators.files import require_file
from aicl.evaluation.metric import register_evaluator
from lvdm.errors import CheckpointError, ConfigError, DataError
from lvdm.hashing import file_hash

FlowModel = Callable[[Tensor, Tensor], Tensor]
"""Images (n, 3, h, w) in [-1, 1], twice -> flow (n, 2, h, w) in pixels, (x, y), that takes the first to the second."""

_FASTEST = 0.05  # share of pixels that the dynamic degree looks at, as in VBench
_DIRECTIONS, _GRID = 8, 3
_WINDOW = 7  # pixels, of Lucas-Kanade
_SMALLEST = 8  # pixels: no pyramid level is smaller
STILL = 0.05  # pixels a frame: less is no motion but noise


class FlowEvaluator:
    """What optical flow says of a video: "fastest", the speed of its fastest pixels, and "histogram", its motion."""

    role, version, min_frames = "flow", 1, 2

    def __init__(
        self, device: torch.device | str = "cpu", path: str | None = None, network: str = "raft_small"
    ) -> None:
        self.model, self.name, self.hash = flow_model(device, path, network)
        self.device = torch.device(device)

    def observe(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (b, 3, t, h, w) in [-1, 1] -> "fastest" (b, t - 1) and "histogram" (b, t - 1, 9 fields, 8 directions).

        See `fastest_speed` and `motion_histogram`. Raises DataError for fewer than two frames.
        """
        flow = video_flow(frames.to(self.device), self.model)
        return {"fastest": fastest_speed(flow), "histogram": motion_histogram(flow)}


def flow_model(device: torch.device | str, path: str | None, network: str) -> tuple[FlowModel, str, str]:
    """The flow, its name and its weights' hash: RAFT from `path`, or Lucas and Kanade's where there is none."""
    if path is None:
        return lucas_kanade, "Lucas-Kanade", ""  # it has no weights
    return raft(network, path, device), network, file_hash(path)


def lucas_kanade(first: Tensor, second: Tensor, iterations: int = 3) -> Tensor:
    """Flow (n, 2, h, w) in pixels, (x, y), that takes images `first` (n, 3, h, w) in [-1, 1] to `second`.

    Lucas and Kanade (1981), iterated over an image pyramid. Where there is no structure to follow it is near zero.
    """
    pyramid = [(_grey(first), _grey(second))]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * _SMALLEST:
        a, b = pyramid[-1]
        pyramid.append((F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)))
    flow = first.new_zeros(len(first), 2, *pyramid[-1][0].shape[-2:])
    for a, b in reversed(pyramid):
        if flow.shape[-2:] != a.shape[-2:]:
            flow = 2 * F.interpolate(flow, size=a.shape[-2:], mode="bilinear", align_corners=False)
        grad_y, grad_x = torch.gradient(a[:, 0], dim=(1, 2))
        xx, xy, yy = (_window(product[:, None]) for product in (grad_x**2, grad_x * grad_y, grad_y**2))
        damping = 1e-3
        determinant = (xx + damping) * (yy + damping) - xy**2
        for _ in range(iterations):
            warped, inside = _warp(b, flow)
            error = (warped[:, 0] - a[:, 0]) * inside  # what leaves the picture cannot be followed
            bx, by = (_window((gradient * error)[:, None]) for gradient in (grad_x, grad_y))
            step = torch.cat([(yy + damping) * bx - xy * by, (xx + damping) * by - xy * bx], 1) / determinant
            flow = flow - step.clamp(-1, 1)
        flow = F.avg_pool2d(F.pad(flow, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return flow


def raft(name: str, weights: str | os.PathLike[str], device: torch.device | str = "cpu") -> FlowModel:
    """torchvision's RAFT ("raft_small" or "raft_large") with weights from a local file.

    Images are resized so that both sides are multiples of 8 and at least 128, as it asks. Raises ConfigError for
    another name, CheckpointError where the file is missing or does not fit.
    """
    from torchvision.models import optical_flow

    if name not in ("raft_small", "raft_large"):
        raise ConfigError(f"unknown flow network '{name}': choose raft_small or raft_large")
    path = require_file(weights, f"weights of {name}", f"download torchvision's weights of {name} and give the file")
    network = getattr(optical_flow, name)()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for files that are no weights, or those of another network
        raise CheckpointError(f"{path} does not hold torchvision's weights of {name}") from error
    return partial(_raft, network.to(device).eval())


@torch.no_grad()
def video_flow(frames: Tensor, model: FlowModel = lucas_kanade, batch_size: int = 512) -> Tensor:
    """Flow (b, t - 1, 2, h, w) between consecutive frames of videos (b, 3, t, h, w) in [-1, 1], on their device.

    Raises DataError for fewer than two frames.
    """
    if frames.shape[2] < 2:
        raise DataError("motion needs two frames or more")
    images = frames.float().transpose(1, 2)  # (b, t, 3, h, w)
    first, second = (torch.split(part.flatten(0, 1), batch_size) for part in (images[:, :-1], images[:, 1:]))
    flow = torch.cat([model(a, b) for a, b in zip(first, second)])
    return flow.view(len(frames), -1, *flow.shape[1:])


def fastest_speed(flow: Tensor) -> Tensor:
    """Mean speed (b, t - 1) of the fastest 5% of pixels, in percent of the frame's height a frame.

    flow: (b, t - 1, 2, h, w), in pixels.
    """
    speed = flow.norm(dim=2).flatten(2)  # (b, t - 1, pixels)
    count = max(1, round(_FASTEST * speed.shape[2]))
    fastest: Tensor = speed.topk(count, dim=2).values.mean(2)
    return 100 / flow.shape[-2] * fastest


def motion_histogram(flow: Tensor) -> Tensor:
    """What motion similarity compares: (b, t - 1, 9 fields, 8 directions) of flow (b, t - 1, 2, h, w).

    Speeds by direction, in a 3x3 grid around what moves in the video: at its speed-weighted centre, as large as its
    spread, and fixed for the video, so that a mover that travels shows it.
    """
    b, t, _, h, w = flow.shape
    speed = flow.norm(dim=2)  # (b, t, h, w)
    speed = speed * (speed > STILL)
    rows = torch.arange(h, device=flow.device, dtype=flow.dtype)[:, None].expand(h, w)
    columns = torch.arange(w, device=flow.device, dtype=flow.dtype).expand(h, w)
    total = speed.sum((1, 2, 3)).clamp(min=1e-6)
    field = torch.zeros(b, h, w, dtype=torch.long, device=flow.device)
    for place, stride in ((rows, _GRID), (columns, 1)):
        centre = (speed * place).sum((1, 2, 3)) / total
        offset = place - centre[:, None, None]  # (b, h, w)
        spread = ((speed * offset[:, None].square()).sum((1, 2, 3)) / total).sqrt().clamp(min=1.0)
        cell = (offset / spread[:, None, None] / 1.2 + _GRID / 2).floor().clamp(0, _GRID - 1)
        field = field + stride * cell.long()
    angle = torch.atan2(flow[:, :, 1], flow[:, :, 0]) / (2 * math.pi) * _DIRECTIONS  # (b, t, h, w)
    low = angle.floor()
    histogram = flow.new_zeros(b * t, _GRID**2 * _DIRECTIONS)
    for shift, weight in ((0, 1 - (angle - low)), (1, angle - low)):  # shared between the two nearest directions
        index = field[:, None] * _DIRECTIONS + (low.long() + shift) % _DIRECTIONS
        histogram.scatter_add_(1, index.reshape(b * t, -1), (speed * weight).reshape(b * t, -1))
    return histogram.view(b, t, _GRID**2, _DIRECTIONS)


def mirrored_histogram(histogram: Tensor) -> Tensor:
    """The motion histogram of the same video seen in a mirror: columns swap, and so do left and right."""
    fields = torch.arange(_GRID**2).view(_GRID, _GRID).flip(1).flatten()
    directions = (_DIRECTIONS // 2 - torch.arange(_DIRECTIONS)) % _DIRECTIONS
    return histogram[:, :, fields.to(histogram.device)][..., directions.to(histogram.device)]


def _raft(network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    h, w = first.shape[-2:]
    height, width = (max(128, 8 * math.ceil(side / 8)) for side in (h, w))
    device = next(network.parameters()).device
    images = [
        F.interpolate(x.to(device), (height, width), mode="bilinear", align_corners=False) for x in (first, second)
    ]
    flow = F.interpolate(network(*images)[-1], (h, w), mode="bilinear", align_corners=False)
    return flow * flow.new_tensor([w / width, h / height])[:, None, None]


def _grey(images: Tensor) -> Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def _window(values: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(values, (_WINDOW // 2,) * 4, mode="replicate"), _WINDOW, stride=1)


def _warp(images: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """images (n, 1, h, w) read at x + flow, and which of these places (n, h, w) lie inside."""
    _, _, h, w = images.shape
    rows, columns = torch.meshgrid(
        torch.arange(h, device=flow.device, dtype=flow.dtype),
        torch.arange(w, device=flow.device, dtype=flow.dtype),
        indexing="ij",
    )
    x, y = (columns + flow[:, 0] + 0.5) * 2 / w - 1, (rows + flow[:, 1] + 0.5) * 2 / h - 1
    warped = F.grid_sample(images, torch.stack([x, y], -1), padding_mode="border", align_corners=False)
    return warped, (x.abs() < 1) & (y.abs() < 1)


register_evaluator("flow", FlowEvaluator)
