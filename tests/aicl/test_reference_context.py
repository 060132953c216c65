"""What the backbone is given to read of several references: weights, the first alone, memory that graphs share."""

import pytest
import torch

from aicl.reference_context import ReferenceContext
from lvdm.errors import ConfigError

R = torch.arange(10.0).reshape(1, 5, 2, 1, 1)  # of references with 2 and 3 frames
EARLY, LATE = torch.tensor([700, 700]), torch.tensor([499, 499])


def test_built_plainly_it_reads_everything_alike():
    context = ReferenceContext.build(R, [2, 3])
    assert (context.frames, context.weights, context.scale) == ((2, 3), None, 1.0)
    assert context.scores() is context.bias([2, 3]) is context.present() is None
    assert context.at(EARLY) is context
    assert ReferenceContext.build(R[:, :4], 2).frames == (2, 2)


def test_the_first_alone_until_a_timestep_with_weights_and_without():
    for weights in (None, [1.0, 3.0]):
        context = ReferenceContext.build(R, [2, 3], weights, scale=0.5, spans=[(0, 999), (0, 499)])
        first, both = context.at(EARLY), context.at(LATE)
        assert context.at(torch.tensor([500])) is first and context.at(torch.tensor([499])) is both
        assert (first.frames, both.frames) == ((2,), (2, 3)) and first.scale == both.scale == 0.5
        assert torch.equal(first.features, R[:, :2]) and torch.equal(both.features, R)
        if weights is None:
            assert first.weights is both.weights is None
        else:
            assert (first.weights.tolist(), both.weights.tolist()) == ([[1.0]], [[1.0, 3.0]])


def test_weights_are_added_as_logarithms_to_each_frame_and_none_left_is_silent():
    weights = torch.tensor([[1.0, 3.0], [2.0, 0.0], [0.0, 0.0]])
    context = ReferenceContext.build(R.expand(3, -1, -1, -1, -1), [2, 3], weights)
    bias = context.bias([2, 3])
    assert bias.shape == (3, 1, 1, 5)
    torch.testing.assert_close(bias[:2].exp().flatten(1), torch.tensor([[1.0, 1, 3, 3, 3], [2.0, 2, 0, 0, 0]]))
    assert (bias[2] == 0).all() and context.present().flatten().tolist() == [1, 1, 0]


def test_overwritten_it_is_the_other_in_the_memory_of_this_one():
    one, other = (ReferenceContext.build(R * factor, [2, 3], [1.0, 2.0 + factor]) for factor in (1.0, 5.0))
    makes = []
    keys, values = one.kept("layer", lambda: makes.append(1) or (2 * one.features, 3 * one.features))
    assert one.kept("layer", lambda: 1 / 0)[0] is keys and len(makes) == 1
    places = [each.data_ptr() for each in (one.features, one.weights, keys, values)]
    features = one.features = one.features.clone()
    one.overwrite(other)
    assert one.features is features and torch.equal(features, 5 * R) and torch.equal(one.weights, other.weights)
    assert torch.equal(keys, 10 * R) and torch.equal(values, 15 * R)
    assert [each.data_ptr() for each in (one.weights, keys, values)] == places[1:]
    plain = ReferenceContext.build(R.clone(), [2, 3])
    plain.overwrite(ReferenceContext.build(2 * R, [2, 3]))
    assert plain.weights is None and torch.equal(plain.features, 2 * R)


def test_frames_and_weights_of_another_shape_are_refused():
    for frames in (0, -1, 2, [5, 0], [2, 2]):
        with pytest.raises(ConfigError, match="R has 5 frames"):
            ReferenceContext.build(R, frames)
    for weights in (torch.ones(1, 3), torch.ones(2)):
        with pytest.raises(ConfigError, match=r"weights .* must be \(1, 2\)"):
            ReferenceContext.build(R, [2, 3], weights)
