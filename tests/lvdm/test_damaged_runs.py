"""Runs that were killed, damaged, started twice or ran out of disk: what was learned is kept, in one sentence."""

import os
import pty
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lvdm.errors import CheckpointError, ConfigError, DiskError, UserError
from lvdm.training import TrainingSettings, train
from lvdm.training.checkpoints import check_checkpoint, check_state, list_checkpoints
from lvdm.training.logs import CSVLog, read_metrics
from lvdm.training.module import TrainingModule
from lvdm.training.strategy import first_process
from tests import processes
from tests.lvdm.disks import full_disk, read_only_disk
from tests.lvdm.training_runs import MODEL, losses, make_clips, save_config, tiny_config

STEPS = 6


def config_in(folder: Path, clips: Path, **sections):
    sections["training"] = {"steps": STEPS, "checkpoint_every": 2, "keep": 3} | sections.get("training", {})
    sections["data"] = {"path": str(clips)} | sections.get("data", {})
    return tiny_config(folder, "autoencoder", model={"config": MODEL}, **sections)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("damaged") / "clips")


@pytest.fixture(scope="module")
def finished(clips, tmp_path_factory):
    """A run of six steps that nothing happened to; tests take copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    assert train(config_in(folder, clips)) == 0
    return folder / "runs/autoencoder"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of that run, with its three checkpoints, in the place where `config_in(tmp_path, clips)` looks."""
    return Path(shutil.copytree(finished, tmp_path / "runs/autoencoder"))


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


DAMAGES = {
    "state cut short": lambda step: overwrite(step / "state.ckpt", (step / "state.ckpt").read_bytes()[:-1000]),
    "state of NUL bytes": lambda step: overwrite(step / "state.ckpt", b"\0" * 5000),
    "one bit of the state": lambda step: overwrite(step / "state.ckpt", _flipped((step / "state.ckpt").read_bytes())),
    "state missing": lambda step: (step / "state.ckpt").unlink(),
    "progress of NUL bytes": lambda step: overwrite(step / "progress.json", b"\0" * 60),
    "progress empty": lambda step: overwrite(step / "progress.json", b""),
    "progress of another shape": lambda step: overwrite(step / "progress.json", b'["step", 6]'),
    "progress with another step": lambda step: overwrite(
        step / "progress.json", b'{"step": 4, "samples": 8, "seconds": 1.0}'
    ),
    "progress below zero": lambda step: overwrite(
        step / "progress.json", b'{"step": -6, "samples": 12, "seconds": 1.0}'
    ),
    "progress too deep": lambda step: overwrite(step / "progress.json", b"[" * 100_000),
    "export cut short": lambda step: overwrite(step / "autoencoder.safetensors", b"\0" * 100),
    "sums of NUL bytes": lambda step: overwrite(step / "SHA256SUMS", b"\0" * 100),
}


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run, tmp_path, clips, finished, damage):
    newest = run / "checkpoints/step_00000006"
    DAMAGES[damage](newest)
    with pytest.warns(UserWarning, match=r"going on from the checkpoint before it"):
        assert train(config_in(tmp_path, clips), resume="auto") == 0
    assert losses(run) == losses(finished)  # the two steps again
    assert [path.name for path in list_checkpoints(run / "checkpoints")][-1] == newest.name
    assert (run / "checkpoints/step_00000006.damaged").is_dir()
    check_checkpoint(newest)  # what it wrote is whole


def test_several_damaged_checkpoints_are_passed_over_and_all_damaged_is_an_error(run, tmp_path, clips, finished):
    for step in (4, 6):
        overwrite(run / f"checkpoints/step_0000000{step}/state.ckpt", b"\0" * 100)
    shutil.copytree(run, tmp_path / "copy")
    with pytest.warns(UserWarning) as caught:
        assert train(config_in(tmp_path, clips), resume="auto") == 0
    assert len([each for each in caught if "going on from" in str(each.message)]) == 2
    assert losses(run) == losses(finished)

    shutil.rmtree(run)
    shutil.copytree(tmp_path / "copy", run)
    overwrite(run / "checkpoints/step_00000002/progress.json", b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
        train(config_in(tmp_path, clips), resume="auto")
    assert len(list_checkpoints(run / "checkpoints")) == 3  # nothing is thrown away


def test_checkpoints_without_sums_are_held_against_those_of_their_archive(run, tmp_path, clips, finished):
    for step in list_checkpoints(run / "checkpoints"):
        (step / "SHA256SUMS").unlink()
    state = run / "checkpoints/step_00000006/state.ckpt"
    overwrite(state, _flipped(state.read_bytes()))
    with pytest.warns(UserWarning, match=r"state.ckpt is damaged"):
        assert train(config_in(tmp_path, clips), resume="auto") == 0
    assert losses(run) == losses(finished)


def test_a_damaged_checkpoint_that_was_named_is_an_error(run, tmp_path, clips):
    overwrite(run / "checkpoints/step_00000004/state.ckpt", b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"state.ckpt is damaged"):
        train(config_in(tmp_path, clips, run={"name": "b"}), resume=str(run / "checkpoints/step_00000004"))
    assert not (tmp_path / "runs/b").exists()


@pytest.mark.parametrize("change", ["nan", "shape", "missing", "no state", "text"])
def test_a_state_that_is_whole_but_wrong_is_an_error(run, tmp_path, clips, change):
    path = run / "checkpoints/step_00000006/state.ckpt"
    state = torch.load(path, weights_only=True)
    name = next(iter(state["state_dict"]))
    if change == "nan":
        state["state_dict"][name][0] = torch.nan
    elif change == "shape":
        state["state_dict"][name] = torch.zeros(3)
    elif change == "missing":
        del state["state_dict"][name]
    state = {"no state": {}, "text": "text"}.get(change, state)
    torch.save(state, path)
    (path.parent / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"NaN|do not fit|cannot be read"):
        train(config_in(tmp_path, clips, training={"steps": 8}), resume="auto")


@pytest.mark.parametrize(
    ("folder", "strategy", "message"),
    [
        (
            True,
            "single",
            "a training with DeepSpeed, .*=single cannot .* set it to a strategy of DeepSpeed's",
        ),
        (
            False,
            "deepspeed_zero2",
            "training without DeepSpeed, .*=deepspeed_zero2 cannot .* set it to single or ddp",
        ),
    ],
)
def test_a_strategy_that_cannot_read_a_state_is_named(tmp_path, folder, strategy, message):
    (tmp_path / "state.ckpt").mkdir() if folder else (tmp_path / "state.ckpt").touch()
    module = TrainingModule(TrainingSettings(steps=1, batch_size=1, strategy=strategy), {})
    with pytest.raises(CheckpointError, match=message):
        check_state(tmp_path, module)


def test_what_a_killed_run_was_writing_is_removed(run, tmp_path, clips):
    left = run / "checkpoints/.writing_step_00000007"
    shutil.copytree(run / "checkpoints/step_00000006", left)
    train(config_in(tmp_path, clips), resume="auto")
    assert not left.exists()


def test_going_on_from_an_earlier_checkpoint_puts_the_later_ones_aside(run, tmp_path, clips):
    """They are of a course that was left: kept, but neither gone on from nor counted among those to keep."""
    settings = {"training": {"steps": 5, "checkpoint_every": 1, "keep": 2}}
    assert train(config_in(tmp_path, clips, **settings), resume=str(run / "checkpoints/step_00000002")) == 0
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_00000004", "step_00000005"]
    for step in (4, 6):
        check_checkpoint(run / f"checkpoints/step_0000000{step}.abandoned")
    assert train(config_in(tmp_path, clips, training={"steps": 7}), resume="auto") == 0
    assert losses(run).keys() == set(range(1, 8))


METRICS = {
    "NUL bytes at the end": lambda text: text + b"\0" * 512,
    "NUL bytes in the middle": lambda text: text[:60] + b"\0" * 40 + text[100:],
    "all NUL bytes": lambda text: b"\0" * len(text),
    "half a line": lambda text: text + b"7,0.12",
    "half a header": lambda text: text[:3],
    "no text": lambda text: text + b"\xff\xfe\xfa,1,2,3,4\n",
    "words": lambda text: text.replace(b"\n4,", b"\nfour,"),
    "empty": lambda text: b"",
}


@pytest.mark.parametrize("damage", METRICS)
def test_damaged_metrics_lose_their_damaged_lines_only(finished, tmp_path, damage):
    before, path = losses(finished), tmp_path / "metrics.csv"
    path.write_bytes(METRICS[damage]((finished / "metrics.csv").read_bytes()))
    broken = path.read_bytes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log = CSVLog(path, resumed_at=6)
        for step in (7, 8):
            log.log_metrics({"loss": step / 2, "lr": 1e-3, "samples": 2 * step, "samples_per_s": 1.0}, step)
    after = losses(tmp_path)
    assert (after.pop(7), after.pop(8)) == ("3.5", "4.0")
    assert after.items() <= before.items()
    lines = {"all NUL bytes": 0, "half a header": 0, "empty": 0, "words": 5, "NUL bytes in the middle": 4}
    assert len(after) >= lines.get(damage, 6)
    warned = [str(each.message) for each in caught]
    if damage == "half a line":  # as any run that is killed leaves it
        assert warned == []
    else:
        assert len(warned) == 1 and "damaged lines are left out; metrics.damaged.csv keeps them" in warned[0]
        assert (tmp_path / "metrics.damaged.csv").read_bytes() == broken


def test_a_run_goes_on_with_damaged_metrics(run, tmp_path, clips, finished):
    (run / "metrics.csv").write_bytes((run / "metrics.csv").read_bytes() + b"\0" * 512)
    with pytest.warns(UserWarning, match="1 damaged lines are left out"):
        assert train(config_in(tmp_path, clips, training={"steps": 7}), resume="auto") == 0
    assert losses(run).keys() == {1, 2, 3, 4, 5, 6, 7} and losses(run).items() >= losses(finished).items()


def test_metrics_keep_columns_of_all_ages(tmp_path):
    log = CSVLog(tmp_path / "metrics.csv")
    log.log_metrics({"loss": 1.5}, 1)
    log.log_metrics({"loss": 1.0, "gradient/norm-a.b": 2.0}, 2)
    log.log_metrics({"gradient/norm-a.b": 3.0}, 3)
    columns, rows, damaged = read_metrics(tmp_path / "metrics.csv")
    assert (columns, damaged) == (["step", "loss", "gradient/norm-a.b"], 0)
    assert [list(row.values()) for row in rows] == [["1", "1.5", ""], ["2", "1.0", "2.0"], ["3", "", "3.0"]]


def test_a_damaged_config_of_a_run_is_not_taken_for_another(run, tmp_path, clips):
    overwrite(run / "config.yaml", b"\0" * 100)
    with pytest.raises(ConfigError, match=r"config.yaml is damaged: if you are sure .* remove this file"):
        train(config_in(tmp_path, clips), resume="auto")
    (run / "config.yaml").unlink()
    assert train(config_in(tmp_path, clips), resume="auto") == 0


@pytest.mark.parametrize(
    ("environment", "first"),
    [({}, True), ({"RANK": "0", "LOCAL_RANK": "0"}, True), ({"RANK": "8", "LOCAL_RANK": "0"}, False),
     ({"LOCAL_RANK": "1"}, False), ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False), ({"NODE_RANK": "1"}, False),
     ({"SLURM_PROCID": "3"}, False), ({"SLURM_PROCID": "0"}, True)],
)  # fmt: skip
def test_one_process_of_a_training_takes_the_lock(monkeypatch, environment, first):
    """Of those of torchrun on two machines, of Lightning, of Slurm."""
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert first_process() == first


@pytest.mark.parametrize(
    "settings",
    [{"seed": -1}, {"seed": 2**63}, {"name": ""}, {"name": "../x"}, {"name": "/x"}, {"name": "a\0b"},
     {"name": "x" * 300}, {"name": "\ud800"}, {"name": "."}, {"out": ""}, {"out": "a\0"}],
)  # fmt: skip
def test_runs_that_have_no_place(tmp_path, clips, settings):
    with pytest.raises(ConfigError, match=rf"run\.{next(iter(settings))}"):
        train(config_in(tmp_path, clips, run=settings))


def started(config: dict[str, Any], folder: Path, prepare: Callable[..., None] | None = None, *given: Any) -> Any:
    """A process that trains as `aicl train --config FILE --resume auto` does, after `prepare`(*given) in it."""
    file = str(save_config(folder / "config.yaml", config))
    return processes.start(train_command, file, prepare, given, log=folder / "log")


def train_command(config: str, prepare: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    if prepare:
        prepare(*given)
    processes.aicl_verb("train", "--config", config, "--resume", "auto")


def ignore_hangups() -> None:
    """As nohup does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def take_terminal(path: str) -> None:
    """Lead a session of its own whose terminal is `path`, the first that it opens."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests that run under nohup ignore it, and so do their children
    os.setsid()
    terminal = os.open(path, os.O_RDWR)
    for stream in range(3):
        os.dup2(terminal, stream)


def wait_for(process: Any, run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while max(losses(run), default=0) < step:
        assert process.is_alive() and time.monotonic() < deadline, "training ended too early"
        time.sleep(0.02)


def test_a_second_training_in_the_same_folder_is_refused_while_the_first_lives(tmp_path, clips):
    """And the first, started with nohup, does not mind a hangup."""
    config = config_in(tmp_path, clips, training={"steps": 10**6, "checkpoint_every": 2})
    run, process = tmp_path / "runs/autoencoder", started(config, tmp_path, ignore_hangups)
    wait_for(process, run, 3)
    os.kill(process.pid, signal.SIGHUP)
    for resume in ("auto", "none"):
        with pytest.raises(UserError, match=rf"process {process.pid} of .* is training there already"):
            train(config, resume=resume)
    wait_for(process, run, max(losses(run)) + 3)
    process.kill()
    process.join()
    config["training"]["steps"] = max(losses(run)) + 2
    assert train(config, resume="auto") == 0  # the lock went with the process


def test_a_terminal_that_is_closed_saves_before_it_ends(tmp_path, clips):
    config = config_in(tmp_path, clips, training={"steps": 10**6, "checkpoint_every": 10**6})
    run = tmp_path / "runs/autoencoder"
    ours, theirs = pty.openpty()
    process = started(config, tmp_path, take_terminal, os.ttyname(theirs))
    wait_for(process, run, 3)
    os.close(theirs)
    os.close(ours)  # the window is closed: SIGHUP, and nothing can be printed any more
    process.join(60)
    assert process.exitcode == 128 + signal.SIGHUP
    [checkpoint] = list_checkpoints(run / "checkpoints")
    assert int(checkpoint.name[5:]) == max(losses(run)) >= 3


def test_a_full_disk_ends_a_training_in_one_sentence_and_it_goes_on_once_there_is_room(run, tmp_path, clips, finished):
    shutil.rmtree(run / "checkpoints/step_00000006")
    size = (run / "checkpoints/step_00000004/state.ckpt").stat().st_size
    with full_disk(size // 2), pytest.raises(DiskError) as caught:
        train(config_in(tmp_path, clips), resume="auto")
    sentence = r"step_00000006: cannot be written \(.*\); make room, then go on with --resume auto"
    assert re.search(sentence, str(caught.value)) and "\n" not in str(caught.value)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000002", "step_00000004"]
    assert train(config_in(tmp_path, clips), resume="auto") == 0
    assert losses(run) == losses(finished)


def test_a_full_disk_while_metrics_are_written(run, tmp_path, clips, finished):
    shutil.rmtree(run / "checkpoints/step_00000006")
    with full_disk(150), pytest.raises(DiskError, match="cannot be written"):
        train(config_in(tmp_path, clips), resume="auto")
    assert train(config_in(tmp_path, clips), resume="auto") == 0
    assert losses(run) == losses(finished)


def test_a_full_disk_under_tensorboard(tmp_path, clips, capfd):
    """Which writes in a thread of its own, that dies of it."""
    config = config_in(
        tmp_path, clips, training={"steps": 2000, "checkpoint_every": 2000}, logging={"tensorboard": True}
    )
    with full_disk(1500), pytest.raises(DiskError, match="cannot be written"):
        train(config)
    assert "Traceback" not in capfd.readouterr().err


def test_a_read_only_disk_ends_a_training_in_one_sentence(run, tmp_path, clips):
    with read_only_disk(), pytest.raises(DiskError, match="Read-only file system"):
        train(config_in(tmp_path, clips, training={"steps": 8}), resume="auto")
    with read_only_disk(), pytest.raises(DiskError, match="Read-only file system"):
        train(config_in(tmp_path, clips, run={"name": "new"}))
