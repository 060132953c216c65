import pytest
import torch

from aicl.evaluation.motion import (
    dynamic_degree,
    lucas_kanade,
    motion_histogram,
    motion_similarity,
    raft,
    video_flow,
)
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
    assert dynamic_degree(video_flow(frames)).item() == pytest.approx(100 * 2 / SIZE, rel=0.35)
    static = frames[:, :, :1].expand(-1, -1, 4, -1, -1)
    assert dynamic_degree(video_flow(static)).item() == pytest.approx(0.0, abs=1e-3)


def test_dynamic_degree_rises_with_speed():
    slow, fast = (dynamic_degree(video_flow(puppet("circle", reach=reach))).item() for reach in (2.0, 8.0))
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
