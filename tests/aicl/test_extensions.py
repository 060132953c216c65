"""What the evaluation is open to: without the puppet world, with a new metric, with a new data set."""

import importlib
import importlib.abc
import pkgutil
import re
import sys
from pathlib import Path

import pytest
import torch

from aicl.evaluation.benchmark import FileBenchmark, build_benchmark, register_benchmark
from aicl.evaluation.engine import Experiment
from aicl.evaluation.metric import Metric, Observed, get_metric, register
from aicl.evaluation.presets import Preset
from aicl.evaluation.sample import Clip as BenchmarkClip
from aicl.evaluation.sample import Sample
from lvdm import config as configs
from lvdm.errors import ConfigError
from lvdm.video import write_video
from tests import processes
from tests.aicl.evaluation_models import save_tiny_model
from tests.aicl.real_data import moving_square

ROOT = Path(__file__).resolve().parents[2]


class Blocked(importlib.abc.MetaPathFinder):
    """Makes `aicl.puppets` a package that is not there."""

    def find_spec(self, name, path=None, target=None):
        if name == "aicl.puppets" or name.startswith("aicl.puppets."):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def import_everything_and_score(folder: str) -> None:
    """Import our packages anew without the puppet world, then score the videos in `folder`."""
    kernels = "lvdm.models.kernels"  # which register themselves with PyTorch, once in a process
    for name in [name for name in sys.modules if re.match(r"(aicl|lvdm)(\.|$)", name)]:
        if not name.startswith(kernels):
            del sys.modules[name]
    import aicl

    listed = pkgutil.iter_modules
    pkgutil.iter_modules = lambda *a, **k: [m for m in listed(*a, **k) if m.name not in ("puppets", "aicl.puppets")]
    sys.meta_path.insert(0, Blocked())
    pages = ("aicl.apps.user_study.app", "aicl.apps.user_study.page", "aicl.__main__")  # these need Gradio, or run
    for package in (aicl, importlib.import_module("lvdm")):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if module.name not in pages:
                importlib.import_module(module.name)
    import aicl.tasks
    from aicl.cli import evaluate, parse
    from aicl.evaluation.benchmark import benchmark_kinds

    assert benchmark_kinds() == ["folder", "ucf101", "webvid"]
    places = [f"{folder}/made", "--real", f"{folder}/real", "--cache", f"{folder}/cache"]
    evaluate.main(parse("evaluate", ["score", *places, "--result", f"{folder}/result.json", "--device", "cpu"]))
    assert not any(name.startswith("aicl.puppets") for name in sys.modules)


def test_everything_else_imports_and_measures_without_the_puppet_world(tmp_path):
    """In a process of its own, in which `aicl.puppets` is not there."""
    for name in ("made", "real"):
        for number in range(3):
            write_video(tmp_path / name / f"{number}.mp4", moving_square(number, frames=6), fps=8)
            (tmp_path / name / f"{number}.txt").write_text("a person is running")
    process = processes.start(import_everything_and_score, str(tmp_path), log=tmp_path / "log")
    process.join(120)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 0, said[-3000:]
    assert "Dynamic Degree" in said and (tmp_path / "result.json").is_file()


def test_nothing_outside_imports_the_puppet_world():
    from tests.test_imports import imported

    outside = [path for package in ("aicl", "lvdm", "scripts") for path in (ROOT / package).rglob("*.py")]
    outside = [path for path in outside if "puppets" not in path.relative_to(ROOT).parts[1:-1]]
    assert len(outside) > 100
    for path in outside:
        names = imported(path.read_text(encoding="utf-8"), "aicl")
        assert not [name for name in names if name == "aicl.puppets" or name.startswith("aicl.puppets.")], path


# -- a metric in one file: what follows could stand in aicl/evaluation/metrics/calm.py


def _calm(observed: Observed) -> torch.Tensor:
    return observed.videos["flow.fastest"].amax(1) < 5


register(
    Metric(
        name="calm",
        column="calm %",
        better=0,
        needs=("flow",),
        about="Share of videos in which nothing ever moves by 5% of the frame's height a frame.",
        values=_calm,
        factor=100,
    )
)


# -- a data set in one file: what follows could stand in aicl/evaluation/benchmarks/squares.py


class SquaresBenchmark(FileBenchmark):
    """Videos of squares: each sample asks for one, and is shown the next three."""

    pool = ("square",)

    def __init__(
        self, device: torch.device | str, path: str, frames: int = 4, fps: float = 8, size: tuple[int, int] = (32, 32)
    ) -> None:
        super().__init__(device, frames, fps, size)
        self._clips = [BenchmarkClip(p.name, "a square moves", "square", path=p) for p in sorted(Path(path).glob("*"))]

    def __str__(self) -> str:
        return "squares"

    def samples(self, seed: int, start: int, stop: int) -> list[Sample]:
        turned = [[self._clips[(n + k) % len(self._clips)] for k in range(4)] for n in range(start, stop)]
        return [
            Sample(start + n, 1000 * seed + n, "a square moves", "square", tuple(clips[1:]), target=clips[0])
            for n, clips in enumerate(turned)
        ]

    def real(self, count: int | None) -> list[BenchmarkClip]:
        return self._clips[:count]


register_benchmark("squares", SquaresBenchmark)


def test_a_metric_and_a_data_set_are_added_in_one_file_each(tmp_path):
    for number in range(5):
        write_video(tmp_path / "squares" / f"{number}.mp4", moving_square(number, frames=6), fps=8)
    model = save_tiny_model(tmp_path / "model", size=32, frames=4, fps=8)
    mapping = {
        "title": "Squares",
        "benchmark": {"kind": "squares", "path": str(tmp_path / "squares")},
        "rows": [
            {"label": "base", "model": "tiny"},
            {"label": "ours", "model": "tiny", "adapter": "tiny", "references": 3, "baseline": "base"},
            {"label": "wrong", "model": "tiny", "adapter": "tiny", "references": 1, "wrong": True},
        ],
        "model": {"tiny": str(model / "base")},
        "adapter": {"tiny": str(model / "adapter.safetensors")},
        "metrics": ["calm", "dynamic_degree", "motion_similarity", "motion_similarity_other"],
        "videos": 3,
    }
    experiment = Experiment(configs.from_mapping(Preset, mapping), tmp_path / "out", "cpu")
    assert experiment.run()[0] == 6
    text = experiment.write("squares")
    assert "|  | calm % | Dynamic Degree | motion similarity ↑ |" in text and "calm % of real videos: " in text
    assert "| minus base |" in text and "wrong: not run, squares has no wrong references" in text
    assert "motion_similarity_other is left out: squares has no other" in text
    ours = experiment.result(experiment.tables[0], experiment.preset.rows[1])
    assert ours.protocol.data == "squares" and ours.protocol.real == 5 and ours.metrics["calm"].method == "Wilson"


def test_a_name_that_is_taken_is_refused(tmp_path):
    other = Metric("calm", "other", 1, ("flow",), "Another.", values=_calm)
    with pytest.raises(ConfigError, match="two metrics are called 'calm'"):
        register(other)
    assert get_metric("calm").column == "calm %"
    with pytest.raises(ConfigError, match="two benchmarks are called 'squares'"):
        register_benchmark("squares", FileBenchmark)
    with pytest.raises(ConfigError, match=r"the benchmark 'squares' needs benchmark\.path"):
        build_benchmark({"kind": "squares"}, "cpu")
