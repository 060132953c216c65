"""strategy: auto, on a GPU that is made up: what is chosen for the memory that there is."""

import logging
from types import SimpleNamespace

import pytest
import torch

from lvdm.training import choice, train
from lvdm.training.choice import GIB, Memory, choose, divisors, first_batch
from lvdm.training.run import build_run
from lvdm.training.settings import Settings, TrainingSettings
from tests.lvdm.training_runs import MODEL, losses, make_clips, tiny_config

KEPT, RECOMPUTED = Memory(2 * GIB, GIB // 16, 6 * GIB), Memory(2 * GIB, GIB // 16, 2 * GIB)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of so many GiB, or that share of a larger one; a pass that keeps activations takes KEPT there, one that
    recomputes them RECOMPUTED."""

    def make(gib, share=1.0):
        monkeypatch.setattr(choice, "training_device", lambda settings: torch.device("cuda"))
        properties = SimpleNamespace(total_memory=int(gib / share * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)

        def measure(settings, build, device):
            memory = RECOMPUTED if settings.gradient_checkpointing else KEPT
            return memory if memory.rest + memory.sample < gib * GIB else None

        monkeypatch.setattr(choice, "measure", measure)

    return make


@pytest.mark.parametrize(
    ("gib", "devices", "strategy", "accumulated", "recomputed"),
    [
        (48, 1, "single", 1, False),  # 2 + 0.75 + 6 x 6
        (24, 1, "single", 1, True),  # three, or all with recomputing: 2 + 0.75 + 6 x 2
        (12, 1, "single", 2, True),  # three with recomputing
        (8, 1, "single", 3, True),
        (4, 1, "deepspeed_zero2_offload", 6, True),
        (24, 2, "ddp", 1, False),  # 3 on each
    ],
)
def test_the_fastest_that_fits(gpu, gib, devices, strategy, accumulated, recomputed):
    gpu(gib)
    settings = TrainingSettings(steps=1, batch_size=6, strategy="auto", devices=devices)
    chosen, sentence, _ = choose(settings, build=None)
    assert chosen.strategy == strategy
    assert (chosen.gradient_accumulation_steps, chosen.gradient_checkpointing) == (accumulated, recomputed)
    assert (chosen.batch_size, chosen.devices, chosen.lr) == (6, devices, settings.lr)
    assert sentence.startswith("strategy auto: ") and f"{gib:.1f} GiB" in sentence and strategy in sentence


def test_a_limit_of_the_allocator_is_the_memory_that_there_is(gpu):
    gpu(12, share=0.25)
    chosen, sentence, _ = choose(TrainingSettings(steps=1, batch_size=6, strategy="auto"), build=None)
    assert chosen.gradient_accumulation_steps == 2 and chosen.gradient_checkpointing
    assert "about 8.8 of 12.0 GiB" in sentence


def test_checkpointing_that_was_asked_for_stays(gpu):
    gpu(80)
    settings = TrainingSettings(steps=1, batch_size=6, strategy="auto", gradient_checkpointing=True)
    assert choose(settings, build=None)[0].gradient_checkpointing


def test_the_average_of_weights_is_in_memory_when_it_is_measured(tmp_path, monkeypatch):
    make_clips(tmp_path / "clips", 2)
    config = tiny_config(tmp_path, "base", model={"config": MODEL}, training={"ema": 0.9})
    sections = Settings.read(config)
    module, data = build_run(config, sections.run, sections.training)[1:]
    moved: list[torch.device] = []
    monkeypatch.setattr(module.ema, "to", moved.append)
    first_batch(module, data, torch.device("cpu"))
    assert moved == [torch.device("cpu")]


def test_divisors():
    assert divisors(6) == [6, 3, 2, 1]


def test_on_a_cpu_auto_trains_as_single_does(tmp_path, caplog):
    make_clips(tmp_path / "clips")
    for name in ("single", "auto"):
        settings = {"steps": 2, "strategy": name}
        with caplog.at_level(logging.INFO):
            train(tiny_config(tmp_path, "base", model={"config": MODEL}, training=settings, run={"name": name}))
    assert "strategy auto: single on the CPU" in caplog.text
    assert losses(tmp_path / "runs" / "auto") == losses(tmp_path / "runs" / "single") != {}
