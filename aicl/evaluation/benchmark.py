"""What a benchmark is: prompts, the references that go with them, and the real videos that results are compared with.

A sample is a pure function of (seed, number). All rows of a table draw the same ones, so they differ by the model and
its settings alone, and a row with one reference shows the first of the three. To add a data set, write one file in
`aicl/evaluation/benchmarks` that ends in `register_benchmark(kind, build)`.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aicl.evaluation.sample import Clip, Sample
from lvdm.config import check_keys
from lvdm.errors import ConfigError, VideoError
from lvdm.hashing import file_hash
from lvdm.registry import FirstUse, import_modules
from lvdm.video import load_clip, probe, to_pixels

_READERS = 8  # threads


class Benchmark(Protocol):
    """A data set to evaluate on. `str(benchmark)` says in words what it is, and tells two apart.

    frames, fps, size: (height, width); at which all videos are compared, generated and real alike. pool: the classes of
    its samples. count: how many samples a seed has, None for any number. paper: which of the paper's data sets it is,
    "ucf101" or "webvid", None for others.
    """

    frames: int
    fps: float
    size: tuple[int, int]
    pool: tuple[str, ...] | None
    count: int | None
    paper: str | None

    def samples(self, seed: int, start: int, stop: int) -> list[Sample]:
        """Samples number `start` to `stop` - 1 of a seed."""
        ...

    def real(self, count: int | None) -> list[Clip]:
        """The set of real videos, or `count` of them. Raises DataError where there are fewer."""
        ...

    def content(self, clip: Clip) -> str:
        """What identifies the content of a clip: equal for equal pixels only."""
        ...

    def load(self, clips: Sequence[Clip]) -> tuple[Tensor, list[float]]:
        """Clips as they are compared, uint8 (n, frames, *size, 3), and their own frame rates. Raises VideoError."""
        ...

    def shown(self, clips: Sequence[Clip]) -> list[Any]:
        """The clips as a model is given them: files, or pixels uint8 (t, h, w, 3)."""
        ...

    def facts(self, samples: Sequence[Sample], shown: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        """Further truths about samples and the references shown to them, each (n, ...), for the benchmark's metrics."""
        ...


def read_as(benchmark: Benchmark) -> str:
    """In words, which frames of a video are compared, and at what size (height, width)."""
    return f"{benchmark.frames} frames at {benchmark.fps:g} a second from the middle, {benchmark.size}"


class FileBenchmark:
    """What benchmarks of video files have in common. Clips are taken from the middle, scaled to cover and cropped.

    They are read on the CPU, whatever the device.
    """

    pool: tuple[str, ...] | None = None
    count: int | None = None
    paper: str | None = None

    def __init__(self, device: torch.device | str, frames: int, fps: float, size: tuple[int, int]) -> None:
        if frames < 2 or not fps > 0 or min(size) < 1:
            raise ConfigError(
                f"videos of {frames} frames at {fps:g} a second and {size[1]}x{size[0]} pixels cannot be compared: "
                "set benchmark.frames to 2 or more, fps and size to positive numbers"
            )
        self.frames, self.fps, self.size = frames, float(fps), (size[0], size[1])
        self._hashes: dict[Path, str] = {}

    def content(self, clip: Clip) -> str:
        """SHA-256 of the file."""
        path = _path(clip)
        if path not in self._hashes:
            self._hashes[path] = file_hash(path)
        return self._hashes[path]

    def load(self, clips: Sequence[Clip]) -> tuple[Tensor, list[float]]:
        """See `Benchmark`. Shorter videos are slowed down, as a model that is shown them sees them."""

        def read(clip: Clip) -> tuple[Tensor, float]:
            frames = load_clip(_path(clip), self.frames, self.size, fps=self.fps)
            return to_pixels(frames), probe(_path(clip)).fps

        with ThreadPoolExecutor(_READERS) as readers:
            pixels, rates = zip(*readers.map(read, clips))
        return torch.stack(pixels), list(rates)

    def shown(self, clips: Sequence[Clip]) -> list[str | os.PathLike[str]]:
        """Their files."""
        return [_path(clip) for clip in clips]

    def facts(self, samples: Sequence[Sample], shown: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        """None."""
        return {}


Build = Callable[..., Benchmark]
"""(device, **options) -> a benchmark."""

_BENCHMARKS: dict[str, Build] = {}


@FirstUse
def _find() -> None:
    """Import every module that registers a benchmark."""
    from aicl.evaluation import benchmarks
    from aicl.extensions import load_extensions

    import_modules(benchmarks)
    load_extensions()


def register_benchmark(kind: str, build: Build) -> None:
    """Make a kind of benchmark known. Raises ConfigError where another one has that name."""
    if _BENCHMARKS.setdefault(kind, build) is not build:
        raise ConfigError(f"two benchmarks are called '{kind}': give one of them another name")


def build_benchmark(options: Mapping[str, Any], device: torch.device | str) -> Benchmark:
    """The benchmark that a preset's section `benchmark` describes: `kind`, and what that kind takes.

    Raises ConfigError for an unknown kind or option, DataError for a data set that is not there.
    """
    _find()
    options = dict(options)
    kind = options.pop("kind", None)
    check_keys([str(kind)], _BENCHMARKS, "benchmark.kind")
    build = _BENCHMARKS[str(kind)]
    parameters = list(inspect.signature(build).parameters.values())[1:]
    check_keys(options, [parameter.name for parameter in parameters], "benchmark")
    for parameter in parameters:
        if parameter.default is inspect.Parameter.empty and options.get(parameter.name) is None:
            raise ConfigError(f"the benchmark '{kind}' needs benchmark.{parameter.name}=...")
    return build(device, **options)


def benchmark_kinds() -> list[str]:
    """All known kinds, sorted."""
    _find()
    return sorted(_BENCHMARKS)


def _path(clip: Clip) -> Path:
    if clip.path is None:
        raise VideoError(f"the clip {clip.key} has no file")
    return clip.path
