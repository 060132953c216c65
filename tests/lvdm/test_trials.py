"""How steps are launched fastest: the choice, with times and failures that are made up, and a true trial on the CPU."""

import json
import logging
import subprocess
from dataclasses import replace

import pytest
import torch

from lvdm.training import settling, train, trials
from lvdm.training.checkpoints import Progress
from lvdm.training.choice import Choice
from lvdm.training.settings import TrainingSettings
from lvdm.training.settling import decide
from lvdm.training.trials import Trial, TrialError, Way, fastest, time_apart, ways
from tests.lvdm.training_runs import MODEL, losses, make_clips, tiny_config

PLAIN, COMPILED, GRAPHS, BOTH = Way(False, False), Way(True, False), Way(False, True), Way(True, True)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(trials, "training_device", lambda settings: torch.device("cuda"))


def asked(**settings):
    return TrainingSettings(**{"steps": 10_000, "batch_size": 6} | settings)


def clock(**seconds):
    """(seconds of a step, seconds at the start) by way; a way that is not there fails. And the ways that were timed."""
    made = []

    def time_way(settings, limit):
        way = Way(settings.compile, settings.cuda_graphs)
        made.append(way)
        if str(way) not in seconds:
            raise TrialError("it broke")
        return Trial(*seconds[str(way)])

    return time_way, made


def test_what_the_settings_leave_open(gpu, monkeypatch):
    assert ways(asked()) == [PLAIN, GRAPHS, COMPILED, BOTH]
    assert ways(asked(gradient_checkpointing=True)) == [PLAIN, COMPILED]
    assert ways(asked(gradient_accumulation_steps=2)) == [PLAIN, COMPILED]
    assert ways(asked(compile=False)) == [PLAIN, GRAPHS]
    assert ways(asked(compile=True, cuda_graphs=False)) == [COMPILED]
    assert ways(asked(cuda_graphs=True)) == [GRAPHS, BOTH]
    assert ways(asked(strategy="deepspeed_zero2")) == [PLAIN]
    monkeypatch.setattr(trials, "training_device", lambda settings: torch.device("cpu"))
    assert ways(asked()) == [PLAIN]


@pytest.mark.parametrize(
    ("steps", "seconds", "way"),
    [
        (10_000, float("inf"), COMPILED),  # 5,700 s against 10,000
        (1_400, 1_300.0, PLAIN),  # 1,300 steps: 1,300 s against 650 and 700 of compiling
        (1_500, float("inf"), COMPILED),  # 1,450 s against 1,500
    ],
)
def test_the_way_that_ends_first(gpu, steps, seconds, way):
    time_way, made = clock(plain=(1.0, 0.0), compiled=(0.5, 700.0))
    chosen, sentence = fastest(asked(gradient_checkpointing=True), time_way, steps, seconds)
    assert (chosen.compile, chosen.cuda_graphs) == (way.compile, way.cuda_graphs) and made == [PLAIN, COMPILED]
    assert sentence.startswith(f"steps {way}, in a trial on one device {way} ")
    assert "plain 6.00 samples/s, 0 s at the start" in sentence
    assert "compiled 12.00 samples/s, 700 s at the start" in sentence


def test_a_way_that_fails_is_named_and_left_out(gpu):
    chosen, sentence = fastest(asked(), clock(plain=(1, 0), compiled=(0.9, 10))[0], 10_000)
    assert chosen.compile and not chosen.cuda_graphs
    assert sentence.endswith("; CUDA graphs left out, it broke; compiled with CUDA graphs left out, it broke")
    chosen, sentence = fastest(asked(), clock()[0], 10_000)
    assert (chosen.compile, chosen.cuda_graphs) == (False, False) and sentence.startswith("steps plain: plain left out")


def test_a_short_training_is_launched_plainly(gpu):
    time_way, made = clock(plain=(0.5, 0.0), compiled=(0.1, 0.0))
    chosen, sentence = fastest(asked(), time_way, 2000)
    assert not chosen.compile and made == [PLAIN] and "16.7 minutes are too few" in sentence


def test_trials_together_take_a_small_share_of_the_training(gpu, monkeypatch):
    now, limits = [0.0], []
    monkeypatch.setattr(trials.time, "monotonic", lambda: now[0])

    def time_way(settings, limit):
        limits.append(limit)
        took = 20.0 if len(limits) == 1 else 210.0
        now[0] += min(took, limit)
        if took > limit:
            raise TrialError(f"its trial took more than {limit:.0f} s")
        return Trial(1.0 - 0.1 * len(limits), 0.0)

    chosen, sentence = fastest(asked(), time_way, 10_000)  # of 9,000 s: 450 s for all
    assert limits == pytest.approx([300, 300, 220]) and chosen.compile and not chosen.cuda_graphs
    assert sentence.endswith("compiled with CUDA graphs left out, trials have had their 5% of the training's time")
    limits.clear()
    sentence = fastest(asked(), time_way, 2_000)[1]  # of 1,800 s: 90 s
    assert limits == pytest.approx([300, 70]) and "CUDA graphs left out, its trial took more than 70 s" in sentence
    limits.clear()
    sentence = fastest(asked(), time_way, 10_000, budget=130.0)[1]  # what was announced holds, whatever is found
    assert limits == pytest.approx([130, 110]) and "CUDA graphs left out, its trial took more than 110 s" in sentence
    limits.clear()
    sentence = fastest(asked(), time_way, 1_500)[1]  # of 1,350 s: 67.5 s, of which the plain way took 20
    assert limits == [300] and "22.5 minutes are too few" in sentence


def test_micro_batches_count(gpu):
    time_way, _ = clock(plain=(0.5, 0.0), compiled=(0.1, 0.0))
    chosen, sentence = fastest(asked(gradient_accumulation_steps=2), time_way, 2000)
    assert chosen.compile and "plain 6.00 samples/s" in sentence


@pytest.mark.parametrize(
    ("settings", "progress", "tried"),
    [
        ({}, Progress(), True),
        ({"steps": 390}, Progress(), False),  # 2,340 samples of at most a second
        ({}, Progress(step=9_950), False),
        ({"max_minutes": 40}, Progress(), True),
        ({"max_minutes": 40}, Progress(seconds=60), False),
        ({"compile": True, "cuda_graphs": False}, Progress(), False),
    ],
)
def test_trials_are_made_where_they_can_pay(gpu, monkeypatch, settings, progress, tried, caplog):
    chosen = asked(**settings)
    monkeypatch.setattr(settling, "choose", lambda *_: Choice(chosen, "strategy auto: fits", 1.0))
    time_way, made = clock(plain=(1.0, 0.0), compiled=(0.5, 9.0))
    monkeypatch.setattr(settling, "time_apart", lambda config, each, limit: time_way(each, limit))
    with caplog.at_level(logging.INFO):
        found, sentence = decide({}, replace(chosen, strategy="auto"), None, progress)
    assert bool(made) == tried and found.compile == (tried or settings.get("compile", False))
    minutes = 2.0 if "max_minutes" in settings else 20.0  # 5% of 40 minutes; four times the most that a trial may take
    assert (f"timing how steps are launched fastest, for at most {minutes} minutes: plain, " in caplog.text) == tried
    assert sentence.startswith("strategy auto: fits; steps compiled") if tried else sentence == "strategy auto: fits"


def test_a_run_that_goes_on_takes_what_it_recorded(tmp_path, monkeypatch, caplog):
    make_clips(tmp_path / "clips")
    settings = {"steps": 2, "strategy": "auto", "checkpoint_every": 2}
    config = tiny_config(tmp_path, "base", model={"config": MODEL}, training=settings, run={"name": "a"})
    train(config)
    path = tmp_path / "runs/a/strategy.json"
    found = json.loads(path.read_text())
    assert found["chosen"]["strategy"] == "single" and found["chosen"]["compile"] is False
    found["chosen"]["gradient_accumulation_steps"] = 2
    path.write_text(json.dumps(found))
    config["training"]["steps"] = 4
    with caplog.at_level(logging.INFO), monkeypatch.context() as patch:
        patch.setattr(settling, "choose", lambda *_: 1 / 0)
        train(config, resume="auto")
    assert "strategy auto: as chosen before and recorded in " in caplog.text
    assert json.loads(path.read_text()) == found and set(losses(tmp_path / "runs/a")) == {1, 2, 3, 4}
    path.write_text("{")  # damaged: chosen anew
    config["training"]["steps"] = 6
    train(config, resume="auto")
    assert json.loads(path.read_text())["chosen"]["gradient_accumulation_steps"] == 1


def test_trials_in_processes_of_their_own(tmp_path):
    make_clips(tmp_path / "clips", count=2)
    config = tiny_config(tmp_path, "base", model={"config": MODEL})
    settings = TrainingSettings(**config["training"])
    trial = time_apart(config, replace(settings, gradient_accumulation_steps=2), limit=300)
    assert 0 < trial.step_s < 60
    assert not (tmp_path / "runs").exists()
    with pytest.raises(TrialError, match="took more than 0 s"):
        time_apart(config, settings, limit=0.01)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("Traceback:\n  at\ntorch._dynamo.exc.BackendCompilerError: no Triton\n\nSet VERBOSE=1\n", "no Triton"),
        ("Fatal Python error\n", "its trial ended with status -11"),
    ],
)
def test_why_a_trial_failed_is_one_line(monkeypatch, stderr, reason):
    done = subprocess.CompletedProcess([], -11, stdout="trial\n", stderr=stderr)
    monkeypatch.setattr(trials.subprocess, "run", lambda *args, **options: done)
    with pytest.raises(TrialError) as failure:
        time_apart({}, asked(), limit=300)
    assert str(failure.value) == reason
