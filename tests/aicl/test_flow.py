"""Optical flow, and what is read from it: speeds, motion histograms and point tracks."""

import pytest
import torch

from aicl.evaluation.evaluators.flow import (
    FlowEvaluator,
    fastest_speed,
    lucas_kanade,
    motion_histogram,
    raft,
    video_flow,
)
from aicl.evaluation.evaluators.tracks import TrackEvaluator, track_points
from aicl.evaluation.metrics.dynamic_degree import dynamic_degree
from aicl.evaluation.metrics.motion_fidelity import motion_fidelity
from aicl.evaluation.metrics.motion_similarity import motion_similarity
from lvdm.errors import CheckpointError, ConfigError, DataError

SIZE, T = 48, 12


def texture(height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    """A smooth random image (1, 3, h, w) in [-1, 1]."""
    noise = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 7, stride=1, padding=3)
    return (smooth / smooth.std() / 2).clamp(-1, 1)


def puppet(
    motion: str, phase: float = 0.0, place: tuple[float, float] = (24, 24), reach: float = 7.0, invert: bool = False
) -> torch.Tensor:
    """A blob (1, 3, T, SIZE, SIZE) that moves up and down, or from side to side and back, or round in a circle."""
    angle = 2 * torch.pi * (torch.arange(T) / T + phase)
    y = place[0] + reach * (angle.sin() if motion in ("nod", "circle") else torch.zeros(T))
    x = place[1] + reach * (angle.cos() if motion in ("shake", "circle") else torch.zeros(T))
    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)
    distance = (rows - y[:, None, None]).square() + (columns - x[:, None, None]).square()
    image = 2 * torch.exp(-distance / 20) - 1
    return (-image if invert else image).expand(1, 3, T, SIZE, SIZE)


def degree(flow: torch.Tensor) -> torch.Tensor:
    return dynamic_degree(fastest_speed(flow))


def similarity(first: torch.Tensor, second: torch.Tensor) -> float:
    return motion_similarity(*(motion_histogram(video_flow(frames)) for frames in (first, second))).item()


@pytest.mark.parametrize("shift", [(0, 0), (1, -2), (-4, 3)])
def test_flow_finds_a_shift(shift):
    image = texture(64, 64)
    moved = image.roll(shift, (2, 3))
    flow = lucas_kanade(image, moved)[0, :, 12:-12, 12:-12].flatten(1)
    torch.testing.assert_close(flow.median(1).values, torch.tensor([shift[1], shift[0]]).float(), atol=0.15, rtol=0)


def test_dynamic_degree_is_in_percent_of_the_height():
    image = texture(SIZE, SIZE + 8)
    frames = torch.stack([image[..., 2 * i : 2 * i + SIZE] for i in range(4)], 2)
    assert degree(video_flow(frames)).item() == pytest.approx(100 * 2 / SIZE, rel=0.35)
    static = frames[:, :, :1].expand(-1, -1, 4, -1, -1)
    assert degree(video_flow(static)).item() == pytest.approx(0.0, abs=1e-3)


def test_dynamic_degree_rises_with_speed():
    slow, fast = (degree(video_flow(puppet("circle", reach=reach))).item() for reach in (2.0, 8.0))
    assert 0 < 2 * slow < fast


def test_motion_similarity_knows_the_motion_and_nothing_else():
    nod = puppet("nod")
    assert similarity(nod, nod) == pytest.approx(100.0, abs=1e-4)
    same = {
        "phase": puppet("nod", phase=0.25),
        "place": puppet("nod", place=(20, 30)),
        "speed": puppet("nod", reach=4.0),
        "colour": puppet("nod", invert=True),
        "mirror": nod.flip(4),
    }
    different = {"shake": puppet("shake"), "circle": puppet("circle")}
    likeness = {name: similarity(nod, other) for name, other in {**same, **different}.items()}
    assert min(likeness[name] for name in same) > 1.3 * max(likeness[name] for name in different), likeness
    assert similarity(puppet("circle"), puppet("circle").flip(4)) > 90  # clockwise against anticlockwise
    assert similarity(nod, nod[:, :, :1].expand(-1, -1, T, -1, -1)) == 0.0


def test_motion_needs_frames_and_equal_lengths():
    with pytest.raises(DataError, match="two frames"):
        video_flow(torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(DataError, match="equal lengths"):
        motion_similarity(torch.zeros(1, 3, 9, 8), torch.zeros(1, 4, 9, 8))


def test_raft_from_local_weights(tmp_path):
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    torch.save(raft_small().state_dict(), tmp_path / "raft.pth")
    model = raft("raft_small", tmp_path / "raft.pth")
    flow = video_flow(puppet("nod")[:, :, :2], model)
    assert flow.shape == (1, 1, 2, SIZE, SIZE) and flow.isfinite().all()
    with pytest.raises(CheckpointError, match="download"):
        raft("raft_small", tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not hold"):
        raft("raft_large", tmp_path / "raft.pth")
    with pytest.raises(ConfigError, match="raft_small or raft_large"):
        raft("pwc", tmp_path / "raft.pth")


def test_an_evaluator_of_flow_sees_speeds_and_histograms_of_each_video():
    clips = torch.cat([puppet("nod"), puppet("circle")])
    seen, flow = FlowEvaluator().observe(clips), video_flow(clips)
    torch.testing.assert_close(seen["fastest"], fastest_speed(flow))
    torch.testing.assert_close(seen["histogram"], motion_histogram(flow))
    assert seen["fastest"].shape == (2, T - 1) and seen["histogram"].shape == (2, T - 1, 9, 8)


def test_an_evaluator_with_weights_is_known_by_their_hash(tmp_path):
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    torch.save(raft_small().state_dict(), tmp_path / "raft.pth")
    plain, network = FlowEvaluator(), FlowEvaluator("cpu", str(tmp_path / "raft.pth"))
    assert (plain.name, network.name) == ("Lucas-Kanade", "raft_small") and len(network.hash) == 64
    tracks = TrackEvaluator("cpu", str(tmp_path / "raft.pth"), grid=4)
    assert (tracks.name, tracks.hash) == ("4x4 points along raft_small", network.hash) and plain.hash == ""


def test_points_follow_a_flow_that_is_known():
    """Everything moves 2 pixels to the right and 1 down; the picture is 40 wide and 20 high."""
    flow = torch.tensor([2.0, 1.0])[None, None, :, None, None].expand(1, 3, 2, 20, 40)
    tracks = track_points(flow, grid=2)
    assert tracks.shape == (1, 4, 4, 2)
    assert tracks[0, 0, 0].tolist() == pytest.approx([10 / 20, 5 / 20])
    torch.testing.assert_close(tracks.diff(dim=2), torch.tensor([0.1, 0.05]).expand(1, 4, 3, 2))
    gone = track_points(8 * flow, grid=2)[0, -1]  # starts at (30, 15), leaves at once and stays there
    torch.testing.assert_close(gone, torch.tensor([[1.5, 0.75]] + [[2.3, 1.15]] * 3))
    assert not track_points(0.01 * flow, grid=2).diff(dim=2).any()  # that is noise


def test_points_follow_what_moves_in_a_video():
    """A texture that moves to the right: the points in its middle move with it."""
    image = texture(SIZE, SIZE + 16)
    clip = torch.stack([image[..., 16 - 2 * i : 16 - 2 * i + SIZE] for i in range(6)], 2)
    tracks = TrackEvaluator(grid=8).observe(clip)["points"][0].view(8, 8, 6, 2)[2:6, 2:5] * SIZE
    travelled = (tracks[:, :, -1] - tracks[:, :, 0]).flatten(0, 1).median(0).values
    assert travelled.tolist() == pytest.approx([10.0, 0.0], abs=1.0)


def test_motion_fidelity_of_videos_has_a_ceiling_and_a_floor():
    track = TrackEvaluator(grid=12)
    nod, shake, still = (track.observe(puppet(kind))["points"] for kind in ("nod", "shake", "none"))
    assert motion_fidelity(nod, nod).item() == pytest.approx(100.0)
    late = track.observe(puppet("nod", phase=0.5))["points"]
    copied, chance, out_of_phase = (motion_fidelity(nod, other).item() for other in (nod, shake, late))
    assert copied > 2 * abs(chance) and out_of_phase < chance  # it rewards a copied course, not the action
    assert motion_fidelity(nod, still).item() == 0.0


def test_tracks_need_a_grid():
    with pytest.raises(ConfigError, match="two points a side or more, got 1"):
        TrackEvaluator(grid=1)
