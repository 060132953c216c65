"""A loss that weighs places by how much the target moves there."""

import pytest
import torch

from lvdm.errors import ConfigError
from lvdm.training import TrainingSettings, train
from lvdm.training.weighting import motion_weights
from tests.lvdm.training_runs import tiny_config


@pytest.fixture
def latents():
    """A small thing that moves across the first of two still clips, and a larger one across the second."""
    clips = torch.randn(2, 4, 1, 12, 12, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 6, 1, 1)
    for t in range(6):
        clips[0, :, t, 2, 1 + t] += 3.0
        clips[1, :, t, 4:10, t : t + 6] += 3.0
    return clips


def test_places_count_by_how_much_moves_there_and_clips_alike(latents):
    weights = motion_weights(latents, 0.5)
    assert weights.shape == (2, 1, 6, 12, 12) and weights.dtype == torch.float32
    torch.testing.assert_close(weights.mean((1, 2, 3, 4)), torch.ones(2))
    assert weights.min() >= 0.5
    assert weights[0, 0, 3, 2, 4] > 5 > 1 > weights[0, 0, 3, 9, 9]
    assert weights[0].max() > weights[1].max()  # what is small counts more where it is all that moves
    torch.testing.assert_close(motion_weights(latents * 10, 0.5), weights, rtol=0.03, atol=0)


def test_without_motion_or_strength_all_places_count_alike(latents):
    assert torch.equal(motion_weights(latents[:, :, :1], 0.7), torch.ones(2, 1, 1, 12, 12))
    for clips, strength in ((latents[:, :, :1].repeat(1, 1, 4, 1, 1), 0.7), (latents, 0.0)):
        weights = motion_weights(clips, strength)
        torch.testing.assert_close(weights, torch.ones_like(weights))


def test_a_training_that_weighs_no_motion_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"motion_weight = 1\.5"):
        TrainingSettings(steps=1, batch_size=1, motion_weight=1.5)
    config = tiny_config(tmp_path, "autoencoder", training={"motion_weight": 0.5})
    config["model"] = {"config": "configs/models/tiny_lvdm.yaml"}
    config["data"]["clip"]["num_frames"] = 1
    with pytest.raises(ConfigError, match="motion_weight does nothing for this task"):
        train(config)
