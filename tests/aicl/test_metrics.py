"""Every metric on answers that are known beforehand, with its floor and its ceiling."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from aicl.evaluation import metric as registry
from aicl.evaluation import metrics
from aicl.evaluation.metric import Metric, Observed, all_metrics, get_metric, register
from aicl.evaluation.metrics.accuracy import top1
from aicl.evaluation.metrics.cc import clip_consistency
from aicl.evaluation.metrics.clip_i import clip_i
from aicl.evaluation.metrics.fc import frame_consistency
from aicl.evaluation.metrics.first_frame import first_frame
from aicl.evaluation.metrics.motion_fidelity import motion_fidelity
from aicl.evaluation.tables import columns_of
from lvdm.errors import ConfigError, DataError

PEERS = {"motion_fidelity", "motion_fidelity_other", "action_score", "action_score_other", "kvd", "kvd_videomae"}
FIELD = {"cc", "fc", "fc_all", "fvd", "fvd_videomae", "acc", "ten_way_acc", "n_way_acc", "reference_acc"}
OURS = {"dynamic_degree", "motion_similarity", "motion_similarity_other", "clip_i", "clip_i_other", "first_frame"}


class Names:
    """A classifier of the classes a to z, as far as metrics ask."""

    classes = "abcdefghijklmnopqrstuvwxyz"

    def index(self, labels):
        return torch.tensor([self.classes.index(label) for label in labels])


def at(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], -1)


def seeing(classes: str, among: int = 26) -> torch.Tensor:
    """Logits of videos in which the classifier sees these classes."""
    return 5 * F.one_hot(Names().index(classes), among).float()


def test_the_metrics_of_the_field_are_all_there():
    known = all_metrics()
    assert known.keys() >= PEERS | FIELD | OURS
    columns = [metric.column for metric in known.values()]
    assert len(set(columns)) == len(columns)
    for metric in known.values():
        assert metric.about.endswith(".") and metric.needs, metric.name
    assert known["fvd"].column == "FVD" and known["fvd"].roles() == {"i3d"}
    for name, metric in known.items():  # FVD without an addition means I3D
        assert name == "fvd" or metric.column != "FVD"


def test_a_new_metric_is_one_file(tmp_path, monkeypatch):
    """A file in the package of metrics is all it takes: presets and tables know it by its name."""
    (tmp_path / "stillness.py").write_text(
        "from aicl.evaluation.metric import Metric, register\n"
        "def values(observed):\n"
        "    return 100 - observed.videos['flow.fastest'].mean(1)\n"
        "register(Metric('stillness', 'stillness', 1, ('flow',), 'The opposite of motion.', values=values))\n"
    )
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_METRICS", dict(all_metrics()))
    monkeypatch.setattr(registry._find, "_done", False)
    assert values("stillness", Observed({"flow.fastest": torch.tensor([[1.0, 3.0]])})) == [98.0]
    assert columns_of(["cc", "stillness"])["stillness"].title == "stillness"


def test_two_metrics_cannot_have_one_name(monkeypatch):
    monkeypatch.setattr(registry, "_METRICS", dict(all_metrics()))
    with pytest.raises(ConfigError, match="two metrics are called 'cc'"):
        register(replace(get_metric("cc")))
    with pytest.raises(ConfigError, match="either values of each video or an estimate"):
        Metric("nothing", "nothing", 1, ("clip",), "Nothing.")
    with pytest.raises(ConfigError, match="better is 2"):
        replace(get_metric("cc"), better=2)


def test_an_unknown_metric_is_named_with_the_nearest_one():
    with pytest.raises(ConfigError, match="fvd"):
        get_metric("fdv")


def test_clip_consistency_is_the_mean_cosine():
    frames = torch.stack([7 * at(0, 60), at(90, 270)])  # lengths do not matter
    torch.testing.assert_close(clip_consistency(at(0, 90), frames), torch.tensor([75.0, 0.0], dtype=torch.float64))
    observed = Observed({"clip.frames": frames}, texts={"clip.prompt": at(0, 90)})
    assert values("cc", observed) == pytest.approx([75.0, 0.0], abs=1e-4)
    assert get_metric("cc").missing(Observed({"clip.frames": frames})) == ["prompt"]


def test_frame_consistency_of_consecutive_and_of_all_pairs():
    frames = at(0, 60, 120)[None] * 3
    observed = Observed({"clip.frames": frames})
    assert values("fc", observed) == pytest.approx([50.0])
    assert values("fc_all", observed) == pytest.approx([100 * (0.5 + 0.5 - 0.5) / 3])
    with pytest.raises(DataError, match="two frames"):
        frame_consistency(frames[:, :1])


@pytest.mark.parametrize("name", ["fc", "fc_all"])
def test_a_static_video_has_the_highest_frame_consistency(name):
    static = Observed({"clip.frames": torch.randn(2, 1, 8).expand(-1, 5, -1)})
    (line,) = get_metric(name).lines(static).values()
    assert values(name, static) == pytest.approx([line, line]) and line == 100.0


def test_which_way_is_better_and_what_is_a_percentage():
    more = {"cc", "fc", "fc_all", "acc", "ten_way_acc", "n_way_acc", "motion_fidelity", "motion_similarity"}
    more, less = more | {"action_score", "first_frame"}, {"fvd", "fvd_videomae", "kvd", "kvd_videomae"}
    shares = {"acc", "ten_way_acc", "n_way_acc", "reference_acc"}
    for name in FIELD | PEERS | OURS:
        metric = get_metric(name)
        assert metric.better == (name in more) - (name in less), name
        assert metric.factor == (100 if name in shares else 1), name


def test_accuracy_among_all_classes_and_in_a_choice_among_ten():
    ten = list("abcdefghij")
    logits = torch.stack([seeing("a")[0], seeing("z")[0] + 0.1 * seeing("b")[0], seeing("c")[0]])
    observed = Observed({"classifier.logits": logits}, labels=list("abd"), pool=ten, classifier=Names())
    assert values("acc", observed) == [True, False, False]
    assert values("ten_way_acc", observed) == values("n_way_acc", observed) == [True, True, False]
    assert get_metric("ten_way_acc").lines(observed) == {"accuracy of a guess among 10 classes, %": 10.0}

    observed.pool = ten[:4]
    assert values("n_way_acc", observed) == [True, True, False]
    with pytest.raises(DataError, match="this set has 4: put n_way_acc"):
        values("ten_way_acc", observed)
    observed.shown_labels = list("zzc")
    assert values("reference_acc", observed) == [False, True, True]
    assert get_metric("ten_way_acc").missing(Observed(observed.videos)) == ["label", "pool"]


def test_a_distance_says_which_features_it_lacks():
    """A classifier of another kind has no features: the puppet world's distance is left out, not tried."""
    observed = Observed(
        {"classifier.logits": torch.zeros(2, 3)}, real=Observed({"classifier.logits": torch.zeros(2, 3)})
    )
    assert get_metric("fd_puppets").missing(observed) == ["classifier.features"]
    assert get_metric("kvd").missing(observed) == ["i3d.features"]


def test_a_guess_is_right_as_often_as_the_line_says():
    ten, count = list("abcdefghij"), 2000
    logits = torch.randn(count, 26, generator=torch.Generator().manual_seed(0))
    observed = Observed({"classifier.logits": logits}, labels=ten * (count // 10), pool=ten, classifier=Names())
    hits, chance = values("ten_way_acc", observed), get_metric("ten_way_acc").lines(observed)
    assert 100 * sum(hits) / count == pytest.approx(*chance.values(), abs=2.5)


def test_top1_and_forced_choice():
    scores = torch.tensor([[0.0, 3.0, 2.0], [0.0, 3.0, 2.0], [5.0, 1.0, 0.0]])
    labels = torch.tensor([1, 2, 2])
    assert top1(scores, labels).tolist() == [True, False, False]
    assert top1(scores, torch.tensor([2, 2, 0]), among=(2, 0)).tolist() == [True, True, True]
    with pytest.raises(DataError, match="not among"):
        top1(scores, labels, among=(0, 2))


def test_dynamic_degree_is_the_mean_over_time_and_zero_for_a_static_video():
    observed = Observed({"flow.fastest": torch.tensor([[1.0, 3.0], [0.0, 0.0]])})
    assert values("dynamic_degree", observed) == [2.0, 0.0]
    assert get_metric("dynamic_degree").lines(observed) == {"Dynamic Degree of a static video": 0.0}


def test_motion_similarity_compares_pair_by_pair():
    histogram = torch.zeros(2, 4, 9, 8)
    histogram[0, :, 4, 0] = histogram[1, :, 4, 2] = 1.0  # to the right; downwards
    observed = Observed(
        {"flow.histogram": histogram},
        reference={"flow.histogram": histogram},
        other={"flow.histogram": histogram.flip(0)},
    )
    assert values("motion_similarity", observed) == pytest.approx([100.0, 100.0])
    assert values("motion_similarity_other", observed) == pytest.approx([0.0, 0.0])


def circle(points: int = 6, frames: int = 9, phase: float = 0.0, reach: float = 0.2) -> torch.Tensor:
    """Tracks (1, points, frames, 2) that go round once, side by side."""
    angle = 2 * math.pi * (torch.arange(frames) / (frames - 1) + phase)
    way = reach * torch.stack([angle.cos(), angle.sin()], -1)  # (frames, 2)
    starts = torch.stack([torch.arange(points) / points, torch.zeros(points)], -1)
    return (starts[:, None] + way)[None]


def test_motion_fidelity_rewards_a_copied_course_and_nothing_else():
    one = circle()
    assert motion_fidelity(one, one).item() == pytest.approx(100.0)
    assert motion_fidelity(one[:0], one[:0]).shape == (0,)
    assert motion_fidelity(one, circle(points=3, reach=0.05) + 0.3).item() == pytest.approx(100.0)  # place, size, count
    assert motion_fidelity(one, circle(phase=0.5)).item() == pytest.approx(-100.0)  # the same action, half a turn late
    assert motion_fidelity(one, circle(phase=0.25)).item() == pytest.approx(0.0, abs=1e-4)
    still = one[:, :, :1].expand(-1, -1, 9, -1)
    assert motion_fidelity(one, still).item() == motion_fidelity(still, still).item() == 0.0
    half = torch.cat([one, still], 1)  # a background that stands still does not count
    assert motion_fidelity(one, half).item() == pytest.approx(100.0)
    with pytest.raises(DataError, match="9 and 8 frames"):
        motion_fidelity(one, one[:, :, :8])


def test_motion_fidelity_counts_what_has_no_match_on_either_side():
    """Two movers in one video, one of them in the other: the second track's best match is at right angles."""
    right = torch.tensor([1.0, 0.0]) * torch.arange(5)[:, None] / 10
    down = right.flip(-1)
    both, one = torch.stack([right, down])[None], right[None, None]
    assert motion_fidelity(both, one).item() == pytest.approx(100 * (0.5 * 0.5 + 0.5 * 1.0))
    assert motion_fidelity(one, both).item() == pytest.approx(75.0)


def test_motion_fidelity_has_its_chance_beside_it_and_two_lines_of_real_clips():
    videos = torch.cat([circle(), circle(phase=0.25)])
    real = Observed({"tracks.points": torch.cat([circle(), circle(phase=0.25)] * 2)}, labels=list("abab"))
    observed = Observed(
        {"tracks.points": videos}, {"tracks.points": videos}, {"tracks.points": videos.flip(0)}, real=real
    )
    assert values("motion_fidelity", observed) == pytest.approx([100.0, 100.0])
    assert values("motion_fidelity_other", observed) == pytest.approx([0.0, 0.0], abs=1e-4)
    lines = get_metric("motion_fidelity").lines(observed)
    assert lines["motion fidelity of two real clips of one action"] == pytest.approx(100.0)
    assert lines["motion fidelity of two real clips of two actions"] == pytest.approx(0.0, abs=1e-4)


def test_the_action_score_lies_between_its_lines():
    real = Observed({"videomae.features": at(0, 90, 20, 110)}, labels=list("abab"))
    observed = Observed(
        {"videomae.features": 3 * at(0, 150)},
        target={"videomae.features": at(0, 90)},
        other={"videomae.features": at(90, 0)},
        real=real,
    )
    assert values("action_score", observed) == pytest.approx([100.0, 50.0])
    assert values("action_score_other", observed) == pytest.approx([0.0, -100 * math.cos(math.pi / 6)])
    lines = get_metric("action_score").lines(observed)
    assert lines["action score of two real clips of one action"] == pytest.approx(100 * math.cos(math.radians(20)))
    apart = [90, 70, 90, 110]  # each with the next of the other class
    assert lines["action score of two real clips of two actions"] == pytest.approx(
        sum(100 * math.cos(math.radians(angle)) for angle in apart) / 4
    )
    real.labels = ["a"] * 4
    assert list(get_metric("action_score").lines(observed)) == ["action score of two real clips of one action"]
    real.labels = None
    assert get_metric("action_score").lines(observed) == {}


def test_clip_i_finds_copies():
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(6, 5, 32, generator=generator)
    own, others = clip_i(references * 2, references.flip(1))  # the same frames in another order
    torch.testing.assert_close(own, torch.full((6,), 100.0).double())
    assert (others < 60).all()
    unrelated = torch.randn(6, 5, 32, generator=generator)
    own, others = clip_i(unrelated, references)
    assert abs(float((own - others).mean())) < 20
    with pytest.raises(DataError, match="two or more"):
        clip_i(references[:1], references[:1])


def test_the_first_frame_is_compared_with_the_image_alone():
    videos, clips = torch.stack([at(0, 90), at(30, 0)]), torch.stack([at(60, 0, 0), at(30, 90, 90)])
    assert first_frame(videos, clips).tolist() == pytest.approx([50.0, 100.0])
    observed = Observed({"clip.frames": videos}, target={"clip.frames": clips}, from_image=True)
    assert values("first_frame", observed) == pytest.approx([50.0, 100.0])
    [(text, value)] = get_metric("first_frame").lines(observed).items()  # cos 30 and cos 30 of the other one's image
    assert "another" in text and value == pytest.approx(100 * 3**0.5 / 2)
    assert get_metric("first_frame").missing(Observed({"clip.frames": videos})) == ["target", "image"]
    # a clip that only shows the same action is no image of a text-to-video model's
    assert get_metric("first_frame").missing(replace(observed, from_image=False)) == ["image"]


def test_others_are_averaged_over_the_references_that_differ():
    references = torch.stack([at(0, 0), at(60, 60), at(0, 0)])
    own, others = clip_i(references, references)
    assert own.tolist() == pytest.approx([100.0] * 3) and others.tolist() == pytest.approx([50.0] * 3)
    assert clip_i(references[:2], references[:2])[1].tolist() == pytest.approx([50.0] * 2)


def test_a_reference_that_others_are_shown_too_is_no_other_reference():
    references = torch.stack([at(0, 0), at(0, 0), at(90, 90)])
    own, others = clip_i(references, references)
    assert own.tolist() == pytest.approx([100.0] * 3) and others.tolist() == pytest.approx([0.0] * 3, abs=1e-4)
    own, others = clip_i(references, references[:1].expand(3, -1, -1))
    assert torch.equal(own, others)
    observed = Observed({"clip.frames": references}, reference={"clip.frames": references})
    assert values("clip_i", observed) == pytest.approx([100.0] * 3)
    assert get_metric("clip_i_other").missing(observed) == ["other"]


@pytest.mark.parametrize(("name", "role"), [("fvd", "i3d"), ("fvd_videomae", "videomae")])
def test_a_frechet_distance_of_sets_has_an_interval_and_a_floor(name, role):
    generator = torch.Generator().manual_seed(0)
    real, same, moved = (torch.randn(200, 3, generator=generator) for _ in range(3))
    real_set = Observed({f"{role}.features": real})
    close = get_metric(name).estimate(Observed({f"{role}.features": same}, real=real_set))
    far = get_metric(name).estimate(Observed({f"{role}.features": moved + 1}, real=real_set))
    assert 0 <= close.low < close.value < 0.2 and close.high < far.low < 3 < far.high  # 3 dimensions, moved by 1
    (text, floor), *_ = get_metric(name).lines(Observed({f"{role}.features": same}, real=real_set)).items()
    assert text == f"{get_metric(name).column} of 100 real videos against other real ones" and 0 < floor < 0.2
    few = Observed({f"{role}.features": same[:3]}, real=real_set)
    with pytest.raises(DataError, match="more than 3 videos"):
        get_metric(name).estimate(few)
    few.allow_few = True
    assert get_metric(name).estimate(few).value > 0


@pytest.mark.parametrize(("name", "role"), [("kvd", "i3d"), ("kvd_videomae", "videomae")])
def test_a_kernel_distance_works_for_sets_that_are_smaller_than_their_features(name, role):
    generator = torch.Generator().manual_seed(0)
    real, same, moved = (torch.randn(20, 64, generator=generator) for _ in range(3))
    real_set, metric = Observed({f"{role}.features": real}), get_metric(name)
    close = metric.estimate(Observed({f"{role}.features": same}, real=real_set))
    far = metric.estimate(Observed({f"{role}.features": moved + 0.5}, real=real_set))
    assert close.low < 0 < close.high and far.low > close.high
    (text, floor), *_ = metric.lines(Observed({f"{role}.features": same}, real=real_set)).items()
    assert text == f"{metric.column} of one half of the real videos against the other"
    assert abs(floor) < far.value / 5


def values(name: str, observed: Observed) -> list:
    metric: Metric = get_metric(name)
    assert not metric.missing(observed)
    return metric.values(observed).tolist()
