"""What only the puppet world can measure, and its networks as evaluators."""

import pytest
import torch
import torch.nn.functional as F

from aicl.evaluation.metric import Observed, build_evaluators, get_metric
from aicl.puppets.captions import caption, describe
from aicl.puppets.classifier import ClassifierConfig, PuppetClassifier
from aicl.puppets.clip import CLIPConfig, PuppetCLIP
from aicl.puppets.evaluators import save_evaluator
from aicl.puppets.metrics import attribute_hits, leaks
from aicl.puppets.programs import program_bank
from aicl.puppets.renderer import render
from aicl.puppets.samples import PuppetData, draw_samples
from aicl.puppets.scene_parameters import looks
from lvdm.errors import CheckpointError, ConfigError, DataError

FRAMES = 8
SEEN = torch.tensor([[0, 1, 2], [3, 3, 3]])  # what a classifier sees of two videos
LOGITS = F.one_hot(SEEN, 8).float()
PROMPTS = torch.tensor([[0, 1, 5], [3, 0, 0]])
REFERENCES = torch.tensor([[[0, 4, 2]], [[1, 3, 6]]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small networks of the puppet world with random weights."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("networks")
    config = ClassifierConfig(size=64, frames=FRAMES, width=8, features=12, layers=1, heads=1)
    save_evaluator(place, "classifier", PuppetClassifier(config))
    save_evaluator(place, "clip", PuppetCLIP(CLIPConfig(width=32, vision_layers=1, text_layers=1, embed_dim=8)))
    return place


@pytest.fixture(scope="module")
def evaluators(folder):
    specs = {role: {"kind": f"puppets_{role}", "path": str(folder)} for role in ("classifier", "clip")}
    return build_evaluators(specs, "cpu")


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return render(draw_samples(PuppetData(), 0, 0, 40).targets, program_bank(0, 0), 64, FRAMES)


def test_attributes_and_leakage_count_what_they_say():
    assert attribute_hits(LOGITS, PROMPTS).tolist() == [[True, True, False], [True, False, False]]
    # the first video's first look cannot leak: prompt and reference share it
    assert leaks(LOGITS, PROMPTS, REFERENCES).tolist() == [False, True, False, True, False]
    two = torch.cat([REFERENCES, torch.tensor([[[7, 1, 0]], [[7, 7, 3]]])], 1)
    assert leaks(LOGITS, PROMPTS, two).tolist() == [True, False, True, True]


def test_they_are_metrics_like_others():
    observed = Observed({"classifier.looks": LOGITS}, facts={"looks": PROMPTS, "shown_looks": REFERENCES})
    attributes, leakage = (get_metric(name) for name in ("attribute_acc", "appearance_leakage"))
    assert attributes.values(observed).tolist() == [[True, True, False], [True, False, False]]
    assert leakage.values(observed).tolist() == [False, True, False, True, False] and leakage.unpaired
    assert (attributes.column, leakage.column) == ("attribute accuracy %", "appearance leakage %")
    assert get_metric("fd_puppets").column == "FD (puppet classifier)"


def test_attributes_are_read_from_prompts_where_nothing_else_tells_them():
    samples = draw_samples(PuppetData(), 0, 0, 3)
    logits = F.one_hot(looks(samples.targets), 8).float()
    metric = get_metric("attribute_acc")
    assert metric.values(Observed({"classifier.looks": logits}, prompts=samples.prompts)).all()
    bare = caption(describe(samples.targets[0], "waving", looks=False))
    with pytest.raises(DataError, match="does not say how shirt, trousers and background look"):
        metric.values(Observed({"classifier.looks": logits[:1]}, prompts=[bare]))


def test_the_classifier_sees_actions_looks_and_features(evaluators, clips):
    seen = evaluators["classifier"].observe(clips[:3])
    assert seen["logits"].shape[0] == 3 and seen["looks"].shape == (3, 3, 8) and seen["features"].shape == (3, 12)
    assert evaluators["classifier"].index(["robot", "ski"]).tolist() == [
        evaluators["classifier"].classes.index(name) for name in ("robot", "ski")
    ]
    with pytest.raises(DataError, match="no action 'flying'"):
        evaluators["classifier"].index(["flying"])


def test_larger_pictures_are_seen_as_if_they_were_drawn_small(evaluators, clips):
    large = render(draw_samples(PuppetData(), 0, 0, 2).targets, program_bank(0, 0), 128, FRAMES)
    for name, part in (("classifier", "features"), ("clip", "frames")):
        seen, other = (evaluators[name].observe(frames)[part] for frames in (large, clips[2:4]))
        drawn = evaluators[name].observe(clips[:2])[part]
        assert (seen - drawn).norm() < 0.2 * (other - drawn).norm()
        with pytest.raises(ConfigError):
            evaluators[name].observe(clips[:2, ..., :32, :32])


def test_a_static_video_has_the_highest_frame_consistency(evaluators, clips):
    static = clips[:2, :, :1].expand(-1, -1, FRAMES, -1, -1)
    for name in ("fc", "fc_all"):
        still, moving = (
            get_metric(name).values(Observed({"clip.frames": evaluators["clip"].observe(frames)["frames"]}))
            for frames in (static, clips[:2])
        )
        torch.testing.assert_close(still, torch.full((2,), 100.0))
        assert (moving < 100 - 1e-3).all()
    assert evaluators["clip"].observe_text(["a person waves"])["prompt"].shape == (1, 8)


def blurred(clips: torch.Tensor, kernel: int) -> torch.Tensor:
    flat = F.pad(clips.transpose(1, 2).flatten(0, 1), (kernel // 2,) * 4, mode="replicate")
    return F.avg_pool2d(flat, kernel, stride=1).unflatten(0, (len(clips), -1)).transpose(1, 2)


def noisy(clips: torch.Tensor, amount: float) -> torch.Tensor:
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    return (clips + amount * noise).clamp(-1, 1)


def shuffled(clips: torch.Tensor, share: float) -> torch.Tensor:
    """A share of the clips with their frames in another order."""
    order, count = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(3)), round(share * len(clips))
    return torch.cat([clips[:count, :, order], clips[count:]])


@pytest.mark.parametrize(
    ("spoil", "amounts"),
    [(blurred, (1, 5, 11)), (noisy, (0.0, 0.15, 0.5)), (shuffled, (0.0, 0.4, 1.0))],
    ids=["blur", "noise", "shuffled frames"],
)
def test_the_distance_rises_with_what_spoils_a_video(evaluators, clips, spoil, amounts):
    def features(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"classifier.features": evaluators["classifier"].observe(frames)["features"]}

    real = Observed(features(clips))
    distances = [
        get_metric("fd_puppets").estimate(Observed(features(spoil(clips, amount)), real=real)).value
        for amount in amounts
    ]
    assert distances[0] < 1e-6 < distances[1] < distances[2], distances


def test_missing_networks_are_one_sentence(tmp_path):
    for role in ("classifier", "clip"):
        with pytest.raises(CheckpointError):
            build_evaluators({role: {"kind": f"puppets_{role}", "path": str(tmp_path)}}, "cpu")
