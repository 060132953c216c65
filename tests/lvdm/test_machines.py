"""Training on two machines: two launchers of torchrun that find each other over the network, here over loopback."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, get_args_parser

from lvdm.training import train
from lvdm.training.checkpoints import list_checkpoints
from tests import processes
from tests.lvdm.training_runs import MODEL, losses, make_clips, save_config, tiny_config

STEPS = 6


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def torchrun(*arguments):
    """What `torchrun` does with its arguments, but its workers are forked and need not import everything."""
    config, verb, given = config_from_args(get_args_parser().parse_args(arguments))
    config.start_method = "fork"
    elastic_launch(config, processes.aicl_verb)(verb, *given)


def launch(config, machine, port, log):
    """The launcher of one machine."""
    options = ["--nnodes=2", f"--node-rank={machine}", "--nproc-per-node=1", "--max-restarts=0", "--no-python"]
    options += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    command = ["train", "--config", str(config), "--resume", "auto"]
    return processes.start(torchrun, *options, *command, log=log, environment={"GLOO_SOCKET_IFNAME": "lo"})


def switch_off(process):
    """End a launcher and its training process at once, without a chance to tell anybody."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError):
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.join(30)


@pytest.mark.slow
def test_two_machines_train_like_one_and_go_on_after_one_was_lost(tmp_path):
    make_clips(tmp_path / "clips")
    model, settings = {"config": MODEL}, {"steps": STEPS, "batch_size": 4, "checkpoint_every": 2}
    train(tiny_config(tmp_path, "base", model=model, training=settings, run={"name": "alone"}))
    two = settings | {"strategy": "ddp", "nodes": 2}
    config = save_config(
        tmp_path / "two.yaml", tiny_config(tmp_path, "base", model=model, training=two, run={"name": "two"})
    )
    folder = tmp_path / "runs" / "two"
    logs = [tmp_path / f"machine{i}.txt" for i in range(2)]

    def start(port):
        return [launch(config, machine, port, log) for machine, log in enumerate(logs)]

    machines = start(free_port())
    try:
        deadline = time.monotonic() + 120
        while not list_checkpoints(folder / "checkpoints"):
            assert time.monotonic() < deadline, logs[0].read_text()
            assert all(machine.is_alive() for machine in machines), logs[0].read_text() + logs[1].read_text()
            time.sleep(0.02)
        switch_off(machines[1])
        machines[0].join(60)  # the first notices, and does not wait for ever
        assert machines[0].exitcode
    finally:
        for machine in machines:
            switch_off(machine)
    reached = max(losses(folder))
    assert 2 <= reached < STEPS

    machines = start(free_port())
    try:
        for machine in machines:
            machine.join(120)
            assert machine.exitcode == 0, logs[0].read_text()
    finally:
        for machine in machines:
            switch_off(machine)
    alone, found = losses(tmp_path / "runs" / "alone"), losses(folder)
    assert found.keys() == alone.keys()
    for step, loss in alone.items():
        assert float(found[step]) == pytest.approx(float(loss), rel=1e-4), step
