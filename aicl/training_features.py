"""What is done to R while a model trains, so that it says less and the base model does not lean on all of it."""

import torch
from torch import Tensor

from aicl.training_pairs import ReferenceSettings
from lvdm.training.randomness import BatchRandomness


def disturb_features(R: Tensor, settings: ReferenceSettings, randomness: BatchRandomness) -> Tensor:
    """R (b, m, channels, h, w) of `references.feature_noise` and `references.feature_dropout`, like R.

    feature_noise adds normal noise, whose standard deviation is that multiple of the sample's own R's in each channel.
    feature_dropout leaves out each channel of a sample's R with this probability, and scales the others up as dropout
    does. Both leave R as it is where they are 0, and neither is there when videos are sampled.
    """
    if settings.feature_noise:
        spread = R.detach().std((1, 3, 4), keepdim=True)
        R = R + settings.feature_noise * spread * randomness.normal(R.shape[1:]).to(R.dtype)
    if settings.feature_dropout:
        drawn = torch.special.ndtr(randomness.normal((R.shape[2],)))  # uniform in [0, 1]
        kept = (drawn >= settings.feature_dropout).to(R.dtype) / (1 - settings.feature_dropout)
        R = R * kept[:, None, :, None, None]
    return R
