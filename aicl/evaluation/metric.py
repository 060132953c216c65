"""What a metric is, what a measuring network is, and the registries of both.

A number comes about in two steps. An **evaluator** (a network, or optical flow) looks at videos and says what it sees:
tensors with one row a video, which are kept on disk. A **metric** makes a number of what was seen, in an instant, so a
changed metric costs no new look, and a changed network no new video. To add a metric, write one file in
`aicl/evaluation/metrics` that ends in `register(Metric(...))`; nothing else has to know of it.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from aicl.evaluation.statistics import Estimate
from lvdm.config import check_keys
from lvdm.errors import ConfigError, DataError
from lvdm.registry import FirstUse, import_modules

CONTEXT = ("prompt", "wording", "label", "reference", "other", "target", "image", "real", "pool", "shown_labels")
"""What a metric may need beside evaluators: each video's prompt as an evaluator reads it, its wording, its class, the
first reference that was shown to it (or that other rows show), a clip of another action, a real clip of its own action,
whether that clip's first frame is the image which the video was made from; the set of real videos, the classes of the
benchmark, and the class of what each reference shows."""


@runtime_checkable
class Evaluator(Protocol):
    """Something that looks at videos: a network with its own preprocessing, or optical flow.

    role: what it is to metrics ("clip", "flow", "i3d"), the first part of the names of what it sees. name: for people.
    hash: SHA-256 of its weights, or what else identifies it. version: raised when the same weights come to say
    something else, by another preprocessing too. min_frames: how many frames a video must have.
    """

    role: str
    name: str
    hash: str
    version: int
    min_frames: int

    def observe(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (b, 3, t, h, w) in [-1, 1], 8-bit values -> tensors (b, ...), by names without the role."""
        ...


@runtime_checkable
class TextEvaluator(Evaluator, Protocol):
    """One that reads prompts too, into the space of its frames."""

    def observe_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Prompts -> tensors (b, ...), by names without the role."""
        ...


@runtime_checkable
class Classifier(Evaluator, Protocol):
    """One that names actions: it sees "logits" (b, classes)."""

    classes: Sequence[str]

    def index(self, labels: Sequence[str]) -> Tensor:
        """Class names -> their numbers (n,) int64. Raises DataError for an unknown one."""
        ...


Seen = Mapping[str, Tensor]
"""What evaluators saw of n videos: "role.name" -> (n, ...), on the CPU."""

_SEEN = ("videos", "reference", "other", "target", "texts", "facts")  # fields of Observed with a row a video


@dataclass
class Observed:
    """All that a metric may ask about the n videos of one row, and about the real ones.

    videos, reference, other, target: what was seen of the videos, and of one clip beside each, see CONTEXT; empty where
    there is none. texts: of the `prompts`. real: of the set of real videos, with their own texts and labels; None
    without a set, and for real videos themselves. labels, shown_labels: the class of each prompt and of what its
    reference shows. pool: the classes of the benchmark, among which a forced choice is made.
    from_image: whether the videos were made from the first frames of `target`.
    facts: further truths of a benchmark, by name, (n, ...).
    classifier: gives labels their numbers. allow_few: measure a set though it has too few videos.
    known: what was computed of these videos before, so that it is computed once.
    """

    videos: Seen
    reference: Seen = field(default_factory=dict)
    other: Seen = field(default_factory=dict)
    target: Seen = field(default_factory=dict)
    texts: Seen = field(default_factory=dict)
    facts: Seen = field(default_factory=dict)
    prompts: Sequence[str] = ()
    labels: Sequence[str] | None = None
    shown_labels: Sequence[str] | None = None
    pool: Sequence[str] | None = None
    real: "Observed | None" = None
    classifier: Classifier | None = None
    allow_few: bool = False
    from_image: bool = False
    known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(next(iter(self.videos.values()))) if self.videos else 0

    def has(self, need: str) -> bool:
        """Whether an evaluator's observations, all ("clip") or one ("clip.frames"), a kind of CONTEXT or a fact
        ("facts.looks") are there."""
        if need in ("reference", "other", "target"):
            return bool(getattr(self, need))
        if need == "image":
            return self.from_image
        if need == "prompt":
            return bool(self.texts)
        if need == "wording":
            return bool(self.prompts)
        if need == "label":
            return self.labels is not None and all(label is not None for label in self.labels)
        if need in ("real", "pool", "shown_labels"):
            return getattr(self, need) is not None
        if need.startswith("facts."):
            return need.removeprefix("facts.") in self.facts
        return need in self.videos or any(name.partition(".")[0] == need for name in self.videos)

    def select(self, rows: Tensor) -> "Observed":
        """The videos with these numbers (k,), in this order."""
        numbers = rows.tolist()
        chosen: dict[str, Any] = {name: {key: x[rows] for key, x in getattr(self, name).items()} for name in _SEEN}
        chosen |= {
            name: None if getattr(self, name) is None else [getattr(self, name)[number] for number in numbers]
            for name in ("labels", "shown_labels")
        }
        prompts = [self.prompts[number] for number in numbers] if self.prompts else ()
        return replace(self, **chosen, prompts=prompts)

    @staticmethod
    def joined(parts: "Sequence[Observed]") -> "Observed":
        """Several sets, of the same benchmark and evaluators, as one."""
        first = parts[0]
        if len(parts) == 1:
            return first
        whole: dict[str, Any] = {
            name: {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(first, name)}
            for name in _SEEN
        }
        whole |= {
            name: None if getattr(first, name) is None else [text for part in parts for text in getattr(part, name)]
            for name in ("labels", "shown_labels")
        }
        return replace(first, **whole, prompts=[text for part in parts for text in part.prompts])

    def index(self, labels: Sequence[str] | None) -> Tensor:
        """The classifier's numbers (n,) of class names. Raises DataError where there is no classifier or no class."""
        if self.classifier is None or labels is None:
            raise DataError("naming actions needs a classifier, and the class of every video")
        return self.classifier.index(labels)


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    name: in presets and result files. column: its heading. better: 1 where more is better, -1 where less is, 0 where
    neither is. needs: roles of evaluators, or names of what they see, kinds of CONTEXT and "facts.NAME"; where one is
    missing, the metric is left out and the table says why. version: raised when the same videos come to have another
    value; results of two versions never stand in one table.

    Exactly one of: values, a number or judgement of each video: float (n,), or bool (n,) or (n, k) for k judgements,
    of which the engine makes means or shares with intervals, values of each seed and paired differences; estimate, of
    the set as a whole, with its own interval.

    unpaired: a metric with `values` that differ in number between rows, so that no paired difference is made.
    lines: what is to be read beside it, as text -> number, such as {"FC of a static video": 100.0}: floors, ceilings,
    chance levels. The engine itself adds that of real videos to metrics with `values`.
    least: how many videos a set must have, given the evaluators; fewer are refused before the work, unless few are
    allowed. factor, decimals: how a value is shown; 100 makes percents of shares. about: one sentence that defines it.
    """

    name: str
    column: str
    better: int
    needs: tuple[str, ...]
    about: str
    version: int = 1
    values: Callable[[Observed], Tensor] | None = None
    estimate: Callable[[Observed], Estimate] | None = None
    unpaired: bool = False
    lines: Callable[[Observed], dict[str, float]] | None = None
    least: Callable[[Mapping[str, Evaluator]], int] | None = None
    factor: float = 1.0
    decimals: int = 1

    def __post_init__(self) -> None:
        if (self.values is None) == (self.estimate is None):
            raise ConfigError(f"metric '{self.name}' needs either values of each video or an estimate of the set")
        if self.better not in (-1, 0, 1):
            raise ConfigError(f"metric '{self.name}': better is {self.better}, give 1, -1 or 0")

    def roles(self) -> set[str]:
        """The roles of the evaluators that it needs."""
        return {need.partition(".")[0] for need in self.needs} - {*CONTEXT, "facts"}

    def context(self) -> set[str]:
        """The kinds of CONTEXT that it needs."""
        return set(self.needs) & set(CONTEXT)

    def missing(self, observed: Observed) -> list[str]:
        """What it needs and does not get."""
        return [need for need in self.needs if not observed.has(need)]


Build = Callable[..., Evaluator]
"""(device, **options) -> an evaluator; `path` is the option that names its weights."""

_METRICS: dict[str, Metric] = {}
_EVALUATORS: dict[str, Build] = {}


@FirstUse
def _find() -> None:
    """Import every module that registers a metric or an evaluator."""
    from aicl.evaluation import evaluators, metrics
    from aicl.extensions import load_extensions

    import_modules(evaluators)
    import_modules(metrics)
    load_extensions()


def register(metric: Metric) -> Metric:
    """Make a metric known by its name. Raises ConfigError where another one has that name."""
    if _METRICS.setdefault(metric.name, metric) is not metric:
        raise ConfigError(f"two metrics are called '{metric.name}': give one of them another name")
    return metric


def register_evaluator(kind: str, build: Build) -> None:
    """Make a kind of evaluator known. Its kind is its role where it is the usual one for that role."""
    if _EVALUATORS.setdefault(kind, build) is not build:
        raise ConfigError(f"two evaluators are called '{kind}': give one of them another name")


def all_metrics() -> dict[str, Metric]:
    """Every known metric by name: those of `aicl.evaluation.metrics` and of extensions (see `aicl.extensions`)."""
    _find()
    return dict(_METRICS)


def get_metric(name: str) -> Metric:
    """The metric of this name. Raises ConfigError, with the nearest name, for an unknown one."""
    return get_metrics([name], "the metrics")[0]


def get_metrics(names: Iterable[str], where: str) -> list[Metric]:
    """The metrics of these names, in order. Raises ConfigError, with the nearest name, for an unknown one."""
    names, known = list(names), all_metrics()
    check_keys(names, known, where)
    return [known[name] for name in names]


def build_evaluators(specs: Mapping[str, Any], device: torch.device | str) -> dict[str, Evaluator]:
    """The evaluators of a preset's section `evaluators`, by role.

    A spec is the path of the weights, or a mapping of options: `path`, `kind` where it is not the usual evaluator of
    the role, and what that kind takes. One that is None is left out. Raises ConfigError for an unknown kind or option,
    CheckpointError for weights that are missing or do not fit.
    """
    _find()
    built = {}
    for role, spec in specs.items():
        if spec is None:
            continue
        options = dict(spec) if isinstance(spec, Mapping) else {"path": spec}
        kind = options.pop("kind", role)
        check_keys([kind], _EVALUATORS, "evaluators")
        build = _EVALUATORS[kind]
        parameters = list(inspect.signature(build).parameters.values())[1:]
        check_keys(options, [parameter.name for parameter in parameters], f"evaluators.{role}")
        for parameter in parameters:
            if parameter.default is parameter.empty and parameter.name not in options:
                raise ConfigError(f"evaluators.{role}: a '{kind}' needs the option {parameter.name}")
        built[role] = build(device, **options)
        if built[role].role != role:
            raise ConfigError(f"evaluators.{role}: a '{kind}' is no {role} but a {built[role].role}")
    return built
