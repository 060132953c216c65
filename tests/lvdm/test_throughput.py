"""What strategy auto chooses beside the best by hand, on a card that is made up; and what is timed, on the CPU."""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lvdm.training import throughput, trials
from lvdm.training.settings import TrainingSettings
from lvdm.training.throughput import GIB, Throughput, by_hand, compare_strategies, measure_throughput
from tests.lvdm.training_runs import MODEL, make_clips, tiny_config

# samples a second and GiB of (recomputed, micro-batches), as the card of the test has them
SPEEDS = {(False, 1): (10, 40), (False, 2): (8, 22), (True, 1): (7, 18), (True, 2): (6, 10)}


@pytest.fixture
def card(monkeypatch):
    """A card of 80 GiB on which a training runs as SPEEDS says; the measurements that were made, (limit, key)."""
    limit, made = [80.0], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=80 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: limit.__setitem__(0, 80 * share))

    monkeypatch.setattr(trials, "training_device", lambda settings: torch.device("cuda"))

    def measure(config, settings):
        if settings.cuda_graphs:
            raise RuntimeError("no capture\nand more")
        key = settings.gradient_checkpointing, settings.gradient_accumulation_steps
        made.append((round(limit[0]), (*key, settings.compile)))
        speed, gib = SPEEDS[key]
        speed *= 1.5 if settings.compile else 1
        return Throughput(speed, gib) if gib <= limit[0] else None

    monkeypatch.setattr(throughput, "measure_throughput", measure)
    return made


def test_the_choice_is_compared_with_the_fastest_that_runs_under_each_limit(card, monkeypatch):
    def cautious(config, settings, build, progress):  # always the one that takes least
        return by_hand(settings)[3], "strategy auto: about 10 of 80 GiB"

    monkeypatch.setattr(throughput, "decide", cautious)
    config = {"run": {"name": "a", "task": "base"}, "training": {"steps": 1, "batch_size": 2, "cuda_graphs": True}}
    records = list(compare_strategies(config, [20, 80]))
    assert [(each["limit_gib"], each["samples_per_s"], each["best_samples_per_s"]) for each in records] == [
        (80, 6, 15),
        (20, 6, 10.5),
    ]
    assert [each["of_best"] for each in records] == [0.4, 0.571]
    assert records[1]["tried"].startswith("single, 2, activations recomputed, compiled: 10.50/s in ")
    assert [each["tried"].count("; ") for each in records] == [4, 2]
    assert records[0]["best"] == "single, 2, activations kept, compiled"
    assert "2 times 1" in records[0]["auto"] and records[0]["estimate"] == "10 of 80 GiB"
    assert "activations kept, CUDA graphs: no capture; single" in records[0]["failed"]
    # under 20 GiB: 40 is hopeless, 22 is tried again, 18 and 10 stand; the way that the best is launched is new
    assert [key for limit, key in card if limit == 20] == [(False, 2, False), (True, 1, True)]


def test_what_fails_without_compiling_or_graphs_is_an_error(card, monkeypatch):
    monkeypatch.setattr(throughput, "decide", lambda config, settings, *others: (by_hand(settings)[0], ""))
    monkeypatch.setattr(throughput, "measure_throughput", lambda config, settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(
            compare_strategies({"run": {"name": "a", "task": "base"}, "training": {"steps": 1, "batch_size": 2}}, [80])
        )


def test_steps_are_timed_on_the_cpu(tmp_path):
    make_clips(tmp_path / "clips")
    config = tiny_config(tmp_path, "base", model={"config": MODEL})
    settings = TrainingSettings(**config["training"])
    found = measure_throughput(config, replace(settings, gradient_accumulation_steps=2))
    assert found is not None and found.samples_per_s > 0 and found.peak_gib == 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_what_a_failed_attempt_held_is_in_memory_no_longer(error, tmp_path, monkeypatch):
    make_clips(tmp_path / "clips")
    config = tiny_config(tmp_path, "base", model={"config": MODEL})
    modules, build_run = [], throughput.build_run

    def fail(batch):
        raise error("this cannot run")

    def build(*arguments):
        options, module, data = build_run(*arguments)
        modules.append(weakref.ref(module))
        module.losses = fail
        return options, module, data

    monkeypatch.setattr(throughput, "build_run", build)
    known = throughput._Known(config)
    assert known.measure([TrainingSettings(**config["training"], compile=True)], limit=80) == {}
    assert list(known.failed.values()) == ["this cannot run"] * (error is RuntimeError)
    assert [module() for module in modules] == [None]  # or the next attempt would have less memory
