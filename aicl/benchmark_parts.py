"""All benchmarks of one model in one call: a part that fails is written down, and the others run all the same."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from aicl.benchmarks import overhead, train
from lvdm import config as configs
from lvdm import speed, speed_devices
from lvdm.benchmarks import Record
from lvdm.errors import UserError
from lvdm.models.components import ModelConfig
from lvdm.models.quantization import has_fp8
from lvdm.training.choice import free_memory
from lvdm.training.throughput import compare_strategies

Part = Callable[[], Iterable[Record]]
"""Makes the records of one benchmark."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, the training that has it as its base, and where.

    training, model: files of both configs. devices: names, of which the first serves parts that need one.
    steps: of denoising, in the parts that make whole videos. clips: a folder with captions.csv for the trainings, which
    are left out without one. upstream: see `speed.time_upstream`. limits: GiB, for `strategies`.
    """

    config: ModelConfig
    training: Path
    model: Path
    devices: Sequence[str]
    steps: int = 50
    clips: Path | None = None
    upstream: Path | None = None
    limits: Sequence[float] = (80, 48, 24)
    overrides: Sequence[str] = ()


def parts(subject: Subject) -> dict[str, Part]:
    """Every benchmark of the subject by its name, what people wait for most first."""
    config, device, steps = subject.config, subject.devices[0], subject.steps
    found: dict[str, Part] = {
        "step": lambda: [speed.denoising_step(config, device)],
        "clip": lambda: [speed.clip(config, device, steps=min(25, steps))],
        "clip with a step cache": lambda: [speed.clip(config, device, steps=min(25, steps), step_cache=2)],
        "batches": lambda: speed.batches(config, device, sizes=(1, 2, 4)),
        "overhead": lambda: overhead(subject.training, subject.model, (1, 3), steps, device, repeats=1),
        "offload": lambda: [speed.offloaded(config, device, steps=min(4, steps))],
    }
    if torch.device(device).type == "cuda" and has_fp8(torch.device(device)):
        found["step with fp8"] = lambda: [speed.denoising_step(config, device, quantization="fp8")]
    if subject.upstream is not None:
        found["step beside upstream"] = lambda: [speed.denoising_step(config, device, upstream=subject.upstream)]
    if len(subject.devices) > 1:
        found["devices"] = lambda: speed_devices.devices(config, subject.devices)
    if subject.clips is not None:
        clips = subject.clips
        for cached in (False, True):
            name = "train from a cache" if cached else "train from files"
            found[name] = lambda cached=cached: [  # type: ignore[misc]
                _trained(subject, clips, cached)
            ]
        found["strategies"] = lambda: strategies(
            subject.training, subject.model, clips, subject.limits, subject.overrides
        )
    return found


def _trained(subject: Subject, clips: Path, cached: bool) -> Record:
    with tempfile.TemporaryDirectory(prefix="aicl-benchmark-") as folder:
        overrides = list(subject.overrides)
        return train(subject.training, subject.model, clips, Path(folder), 10, overrides, cached=cached)


def run_parts(parts: Mapping[str, Part]) -> Iterator[Record]:
    """The records of all parts, each with its part's name as `benchmark`, and `seconds` since the part's last record.

    Which part has begun is said on stderr, since some take minutes.
    A part that ends with an error gives a record with `failed`, one line, in place of what is missing.
    """
    for number, (name, part) in enumerate(parts.items(), start=1):
        print(f"part {number} of {len(parts)}: {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            for record in part():
                yield {"benchmark": name, **record, "seconds": round(time.perf_counter() - start, 1)}
                start = time.perf_counter()
        except Exception as error:  # whatever it is (no memory, a kernel, a missing package): the next part may work
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            yield {"benchmark": name, "failed": " ".join(said.split())[-500:]}
        free_memory()


def strategies(
    training: Path, model: Path, clips: Path, limits: Sequence[float], overrides: Sequence[str] = ()
) -> Iterator[Record]:
    """`strategy: auto` beside the best by hand of a training on these clips: see `compare_strategies`."""
    import aicl.tasks  # noqa: F401 (makes the tasks known)
    from lvdm.training.tasks import config_schema

    changes = ["base.path=null", f"base.config={model}", "data.kind=folder", f"data.path={clips}"]
    changes += [f"data.captions={clips / 'captions.csv'}", "training.preview_every=null", *overrides]
    yield from compare_strategies(configs.load(training, changes, schema=config_schema()), limits)
