"""Other ways than AICL's of showing references to a base model: what `method` of a row names.

A package that brings one registers a dataclass of its settings in `METHODS`; `aicl.baselines` does.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from aicl.evaluation.benchmark import Benchmark
from aicl.evaluation.row import Row
from aicl.evaluation.sample import Clip, Sample
from aicl.extensions import load_extensions
from aicl.pipeline import AICLPipeline
from lvdm import config as configs
from lvdm.errors import ConfigError
from lvdm.models.components import ModelConfig
from lvdm.registry import Registry

ADAPTATION_FILE = "adaptation.json"  # beside a row's videos: what the method did before it made the first one

Maker = Callable[[Sequence[Sample]], Tensor]
"""Samples -> their videos, uint8 (n, t, h, w, 3) on the CPU."""


@dataclass(frozen=True)
class Work:
    """What a method is given to make a row with.

    pipeline: the base model, without an adapter. samples: all of the row, of every seed. shown: the references of a
    sample; captions: theirs. adapter: the row's trained file, None where it names none. folder: where the row's videos
    are; what the method keeps there is found again by the next process. guidance_scale, num_inference_steps: the row's.
    """

    pipeline: AICLPipeline
    benchmark: Benchmark
    samples: Sequence[Sample]
    shown: Callable[[Sample], Sequence[Clip]]
    captions: Callable[[Sample], Sequence[str]]
    folder: Path
    adapter: Path | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None


class Method(Protocol):
    """A dataclass of settings that makes videos of samples.

    trained: whether the row's `adapter` names a file that it reads. pooled: whether a video depends on the references
    of all samples of its row, not on those of its own sample alone. several: whether it reads more than one reference
    of a sample. captioned: whether it reads captions of references other than the prompt.
    """

    trained: ClassVar[bool]
    pooled: ClassVar[bool]
    several: ClassVar[bool]
    captioned: ClassVar[bool]

    def check(self, config: ModelConfig, sample: Sample) -> None:
        """Raise ConfigError for a base model or samples that it cannot work with."""
        ...

    def start(self, work: Work) -> AbstractContextManager[Maker]:
        """What makes the row's videos. The base model is as before when the context ends."""
        ...


METHODS: Registry[type[Any]] = Registry("method")
"""By the name in `method.kind` of a row: a dataclass that is a `Method`."""


def check_row(method: Method, row: Row) -> None:
    """Raise ConfigError for references or captions of a row that its method would not read."""
    if row.references > 1 and not method.several:
        raise ConfigError(f"this method reads one reference and the row shows {row.references}: set references to 1")
    if row.reference_captions != "prompt" and not method.captioned:
        raise ConfigError(
            f"this method reads references under the prompt: leave reference_captions ({row.reference_captions}) out"
        )


def build_method(section: Mapping[str, Any]) -> Method:
    """The method that a row's section `method` describes: `kind`, and the settings of that kind.

    Raises ConfigError for an unknown kind or setting.
    """
    load_extensions()
    settings = dict(section)
    kind = settings.pop("kind", None)
    if kind is None:
        raise ConfigError(f"a row's method needs a kind: choose from {', '.join(METHODS)}")
    method: Method = configs.from_mapping(METHODS[str(kind)], settings, where=f"method {kind}")
    return method
