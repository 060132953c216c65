"""Point tracks: a grid of points of the first frame, followed through a video along its optical flow.

The measure that reads them, motion fidelity, is usually computed with CoTracker. Tracks that are chained from flow need
no further weights and drift more; where a point leaves the picture its track ends.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.evaluators.flow import STILL, flow_model, video_flow
from aicl.evaluation.metric import register_evaluator
from lvdm.errors import ConfigError


class TrackEvaluator:
    """Tracks of grid x grid points, "points" (b, n, t, 2), from Lucas and Kanade's flow or RAFT's.

    Raises ConfigError for a grid of less than two points a side, and as `flow_model` for weights.
    """

    role, version, min_frames = "tracks", 1, 2

    def __init__(
        self,
        device: torch.device | str = "cpu",
        path: str | None = None,
        network: str = "raft_small",
        grid: int = 16,
    ) -> None:
        if grid < 2:
            raise ConfigError(f"tracks need a grid of two points a side or more, got {grid}")
        self.model, flow_name, self.hash = flow_model(device, path, network)
        self.name = f"{grid}x{grid} points along {flow_name}"
        self.grid, self.device = grid, torch.device(device)

    def observe(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (b, 3, t, h, w) in [-1, 1] -> "points" (b, n, t, 2), see `track_points`."""
        return {"points": track_points(video_flow(frames.to(self.device), self.model), self.grid)}


@torch.no_grad()
def track_points(flow: Tensor, grid: int = 16) -> Tensor:
    """Tracks (b, grid * grid, t, 2) of points through flow (b, t - 1, 2, h, w) in pixels.

    Points are (x, y) in shares of the frame's height, from the corner. They start on a regular grid in the first frame;
    steps shorter than a twentieth of a pixel are noise and count as none, and a point that leaves the picture stays
    where it left it.
    """
    b, steps, _, h, w = flow.shape
    rows = (torch.arange(grid, device=flow.device, dtype=torch.float32) + 0.5) * h / grid
    columns = (torch.arange(grid, device=flow.device, dtype=torch.float32) + 0.5) * w / grid
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    points = torch.stack([x, y], -1).flatten(0, 1).expand(b, -1, -1)  # (b, n, 2), in pixels
    size = points.new_tensor([w, h])
    tracks, inside = [points], torch.ones(points.shape[:2], dtype=torch.bool, device=flow.device)
    for step in range(steps):
        at = points / size * 2 - 1  # (b, n, 2) in [-1, 1], as grid_sample counts
        moved = F.grid_sample(
            flow[:, step].float(), at[:, :, None], mode="bilinear", padding_mode="border", align_corners=False
        )[..., 0].transpose(1, 2)  # (b, n, 2)
        moves = inside & (moved.norm(dim=-1) > STILL)
        points = points + moved * moves[..., None]
        inside = inside & ((points >= 0) & (points <= size)).all(-1)
        tracks.append(points)
    return torch.stack(tracks, 2) / h


register_evaluator("tracks", TrackEvaluator)
