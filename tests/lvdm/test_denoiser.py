"""The wrapped UNet: batched guidance, conditions that only one branch carries, precision, the training loss."""

import pytest
import torch

from lvdm.diffusion import Condition, Denoiser, NoiseSchedule, noise_like
from lvdm.errors import ConfigError


class Recorder(torch.nn.Module):
    """A UNet whose output depends on each of its inputs, row by row, and which remembers how it was called."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones((), dtype=dtype))
        self.calls = []

    def forward(self, x, timesteps, context, fps=None, **extras):
        self.calls.append({"x": x, "t": timesteps, "context": context, "fps": fps, "extras": extras})
        rows = context.mean((1, 2)) + timesteps / 1000 + (0 if fps is None else fps / 10)
        for pairs in extras.values():
            for where, value in pairs:
                rows = rows.index_add(0, torch.arange(len(x))[where], value)
        return (self.gain * torch.tanh(x) * (1 + rows).view(-1, 1, 1, 1, 1)).to(x.dtype)


@pytest.fixture
def schedule():
    return NoiseSchedule.scaled_linear()


@pytest.fixture
def x():
    return noise_like((2, 4, 3, 2, 2), [0, 1])


T = torch.tensor([100, 700])


def context(value, rows=2):
    return torch.full((rows, 5, 8), float(value))


def test_guidance_is_one_call_and_equals_separate_calls(schedule, x):
    unet = Recorder()
    denoiser = Denoiser(unet, schedule)
    guided = denoiser.guided([Condition(context(0), fps=8), Condition(context(1), fps=8)], [-6.5, 7.5])
    found = guided(x, T)
    assert len(unet.calls) == 1
    assert unet.calls[0]["x"].shape == (4, 4, 3, 2, 2) and unet.calls[0]["t"].tolist() == [100, 700, 100, 700]
    assert unet.calls[0]["fps"].tolist() == [8, 8, 8, 8] and unet.calls[0]["extras"] == {}
    alone = [denoiser.guided([Condition(context(i), fps=torch.tensor([8, 8]))], [1.0])(x, T) for i in (0, 1)]
    torch.testing.assert_close(found, alone[0] + 7.5 * (alone[1] - alone[0]))


def test_branches_may_carry_extras_that_others_lack(schedule, x):
    unet = Recorder()
    denoiser = Denoiser(unet, schedule)
    branches = [
        Condition(context(0)),
        Condition(context(1), extras={"pose": torch.tensor([1.0, 2.0])}),
        Condition(context(1), extras={"pose": torch.tensor([3.0, 4.0]), "references": torch.tensor([5.0, 6.0])}),
    ]
    weights = [-3.0, 1.5, 2.5]
    found = denoiser.guided(branches, weights)(x, T)
    rows = {name: [where for where, _ in pairs] for name, pairs in unet.calls[0]["extras"].items()}
    assert rows == {"pose": [slice(2, 4), slice(4, 6)], "references": [slice(4, 6)]}
    alone = sum(w * denoiser.guided([branch], [1.0])(x, T) for w, branch in zip(weights, branches))
    torch.testing.assert_close(found, alone)


def test_a_branch_without_weight_is_not_computed(schedule, x):
    unet = Recorder()
    extras = {"references": torch.zeros(2)}
    Denoiser(unet, schedule).guided([Condition(context(0), extras=extras), Condition(context(1))], [0.0, 1.0])(x, T)
    assert len(unet.calls[0]["x"]) == 2 and unet.calls[0]["extras"] == {} and unet.calls[0]["context"].eq(1).all()


def test_one_context_serves_the_whole_batch(schedule, x):
    denoiser = Denoiser(Recorder(), schedule)
    shared = denoiser.guided([Condition(context(0, rows=1)), Condition(context(1))], [-1, 2])(x, T)
    torch.testing.assert_close(
        shared, denoiser.guided([Condition(context(0)), Condition(context(1))], [-1, 2])(x, T), rtol=0, atol=0
    )


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("rescale_to", [None, 0.7])
def test_the_two_predictions_explain_x(x, prediction, rescale_to):
    schedule = NoiseSchedule.scaled_linear(rescale_to=rescale_to)
    guided = Denoiser(Recorder(), schedule, prediction).guided([Condition(context(1))], [1.0])
    x0, noise = guided.predict(x, T)
    torch.testing.assert_close(schedule.add_noise(x0, noise, T), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guided(x, T), noise)
    output = Recorder()(x, T, context(1))
    target = noise if prediction == "eps" else schedule.velocity(x0, noise, T)
    torch.testing.assert_close(target, output, atol=1e-5, rtol=1e-5)


def test_guidance_rescale_restores_the_spread_of_the_conditional_branch(schedule, x):
    denoiser = Denoiser(Recorder(), schedule)
    branches, weights = [Condition(context(0)), Condition(context(1))], [-6.5, 7.5]
    wanted = denoiser.guided(branches[1:], [1.0])(x, T).flatten(1).std(1)
    plain = denoiser.guided(branches, weights)(x, T)
    full = denoiser.guided(branches, weights, rescale=1.0)(x, T)
    half = denoiser.guided(branches, weights, rescale=0.5)(x, T)
    assert (plain.flatten(1).std(1) > 2 * wanted).all()
    torch.testing.assert_close(full.flatten(1).std(1), wanted)
    torch.testing.assert_close(half, (plain + full) / 2)
    three = [Condition(context(3)), *branches]  # the last is the one with every condition
    full = denoiser.guided(three, [-3.0, -3.5, 7.5], rescale=1.0)(x, T)
    torch.testing.assert_close(full.flatten(1).std(1), wanted)


def test_guidance_rescale_takes_the_spread_of_the_whole_sample_not_of_each_channel(schedule, x):
    """Lin et al. 2024, eq. 15 and 16: one factor for a sample."""

    class Channels(torch.nn.Module):
        def forward(self, x, timesteps, context, fps=None):
            return x * (1 + context.mean((1, 2)).view(-1, 1, 1, 1, 1) * torch.arange(4.0).view(1, 4, 1, 1, 1))

    denoiser = Denoiser(Channels(), schedule)
    branches, weights = [Condition(context(0)), Condition(context(1))], [-6.5, 7.5]
    plain, full = (denoiser.guided(branches, weights, rescale=rescale)(x, T) for rescale in (0.0, 1.0))
    factor = denoiser.guided(branches[1:], [1.0])(x, T).flatten(1).std(1) / plain.flatten(1).std(1)
    torch.testing.assert_close(full, plain * factor.view(-1, 1, 1, 1, 1))


def test_the_unet_runs_in_its_own_precision_and_the_rest_in_float32(schedule, x):
    unet = Recorder(torch.bfloat16)
    x0, noise = Denoiser(unet, schedule).guided([Condition(context(1))], [1.0]).predict(x, T)
    assert unet.calls[0]["x"].dtype == unet.calls[0]["context"].dtype == torch.bfloat16
    assert unet.calls[0]["t"].dtype == torch.int64
    assert x0.dtype == noise.dtype == torch.float32
    torch.testing.assert_close(schedule.add_noise(x0, noise, T), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("rescale_to", [None, 0.7])
def test_loss_is_the_squared_error_of_each_sample(x, prediction, rescale_to):
    schedule, unet = NoiseSchedule.scaled_linear(rescale_to=rescale_to), Recorder()
    denoiser = Denoiser(unet, schedule, prediction)
    noise = noise_like(x.shape, [8, 9])
    condition = Condition(context(1), fps=torch.tensor([8, 16]), extras={"references": torch.tensor([0.5, 1.5])})
    predicted = denoiser.predict(schedule.add_noise(x, noise, T), T, [condition])
    loss = denoiser.loss(predicted, x, noise, T)
    by_hand = []
    for i, t in enumerate(T.tolist()):
        root, sigma, scale = schedule.alphas_cumprod[t].sqrt(), schedule.sigmas[t], schedule.scale_arr[t]
        noisy = root * scale * x[i] + sigma * noise[i]
        output = torch.tanh(noisy) * (1 + 1 + t / 1000 + [0.8, 1.6][i] + [0.5, 1.5][i])
        target = noise[i] if prediction == "eps" else root * noise[i] - sigma * scale * x[i]
        by_hand.append((output - target).square().mean())
    torch.testing.assert_close(loss, torch.stack(by_hand), check_dtype=False)
    weighted = denoiser.loss(predicted, x, noise, T, weighting=torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(weighted, loss * torch.tensor([0.0, 2.0]))
    first = torch.zeros_like(x[:, :1]).index_fill(2, torch.tensor([0]), float(x.shape[2]))  # the first frame alone
    looked = denoiser.loss(predicted[:, :, :1], x[:, :, :1], noise[:, :, :1], T)
    torch.testing.assert_close(denoiser.loss(predicted, x, noise, T, places=first), looked)
    weighted.sum().backward()
    assert unet.gain.grad.abs() > 0


def test_loss_vanishes_for_a_perfect_prediction(schedule, x):
    """At each timestep x_t determines the noise once x0 is known."""

    class Oracle(torch.nn.Module):
        def forward(self, noisy, t, context, fps=None):
            alpha, sigma = schedule.coefficients(t, noisy)
            return (noisy - alpha * x) / sigma

    denoiser, noise = Denoiser(Oracle(), schedule), noise_like(x.shape, [8, 9])
    predicted = denoiser.predict(schedule.add_noise(x, noise, T), T, [Condition(context(0))])
    loss = denoiser.loss(predicted, x, noise, T)
    assert loss.shape == (2,) and loss.max() < 1e-10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u, s: Denoiser(u, s, "x0"), "prediction must be 'eps', 'v' or 'flow', got 'x0'"),
        (
            lambda u, s: Denoiser(u, NoiseSchedule.scaled_linear(zero_terminal_snr=True), "eps"),
            "a schedule of zero terminal SNR needs prediction 'v', got 'eps'",
        ),
        (
            lambda u, s: Denoiser(u, s).guided([Condition(context(0))], [0.5]),
            "guidance weights must sum to 1, got [0.5]",
        ),
        (
            lambda u, s: Denoiser(u, s).guided([Condition(context(0))], []),
            "guidance needs one weight for each branch, got 0 for 1",
        ),
        (
            lambda u, s: Denoiser(u, s).guided([Condition(context(0))], [1], rescale=2),
            "guidance rescale must be in 0..1, got 2",
        ),
        (
            lambda u, s: Denoiser(u, s).guided(
                [Condition(torch.zeros(2, 77, 8)), Condition(torch.zeros(2, 93, 8))], [-1, 2]
            ),
            "all guidance branches need a context of the same tokens and width, got [(77, 8), (93, 8)]",
        ),
        (
            lambda u, s: Denoiser(u, s).guided([Condition(context(0), fps=8), Condition(context(1))], [-1, 2]),
            "either all guidance branches give fps or none does",
        ),
    ],
)
def test_errors(schedule, call, message):
    with pytest.raises(ConfigError) as caught:
        call(Recorder(), schedule)
    assert str(caught.value) == message
