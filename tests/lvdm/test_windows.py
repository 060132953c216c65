"""Windows over a longer video: what they cover, how they blend, and that a short video is left as it is."""

import pytest
import torch
from torch import nn

from lvdm.diffusion.windows import Windows, blend_weights, window_starts
from lvdm.errors import ConfigError


class Recorder(nn.Module):
    """Gives back its input plus a number that says which call it was, in the same memory each time, as a graph does."""

    def __init__(self):
        super().__init__()
        self.calls, self.memory = [], None

    def forward(self, x, t, context, **kwargs):
        self.calls.append((x.shape[2], kwargs))
        self.memory = torch.empty_like(x) if self.memory is None else self.memory
        return self.memory.copy_(x + 100 * (len(self.calls) - 1))


def test_windows_cover_everything_and_the_last_one_ends_with_the_video():
    assert window_starts(40, 16, 8) == [0, 8, 16, 24]
    assert window_starts(37, 16, 8) == [0, 8, 16, 21]
    assert window_starts(17, 16, 0) == [0, 1]
    for total in range(17, 60):
        seen = {start + i for start in window_starts(total, 16, 5) for i in range(16)}
        assert seen == set(range(total))


def test_predictions_are_blended_by_weights_that_add_up():
    assert blend_weights(6, 2).tolist() == [1, 2, 2, 2, 2, 1]
    network = Recorder()
    x = torch.randn(2, 4, 10, 3, 3)
    out = Windows(network, 6, 2)(x, torch.zeros(2), None, references="R")
    assert [frames for frames, _ in network.calls] == [6, 6] and network.calls[1][1] == {"references": "R"}
    assert torch.allclose(out[:, :, :4], x[:, :, :4], atol=1e-5)
    assert torch.allclose(out[:, :, 6:], x[:, :, 6:] + 100, atol=1e-4)
    shares = torch.tensor([1 / 3, 2 / 3])  # of the second window, at frames 4 and 5
    assert torch.allclose(out[:, :, 4:6], x[:, :, 4:6] + 100 * shares[:, None, None], atol=1e-4)


def test_a_video_that_fits_is_seen_at_once():
    network, x = Recorder(), torch.randn(1, 4, 6, 2, 2)
    assert torch.equal(Windows(network, 6, 3)(x, torch.zeros(1), None), x) and len(network.calls) == 1
    for frames, overlap in ((1, 0), (4, 4), (4, -1)):
        with pytest.raises(ConfigError, match="give 2 frames or more"):
            Windows(network, frames, overlap)
