"""Training on two machines: two launchers of torchrun that find each other over the network, here over loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lvdm.training import train
from lvdm.training.checkpoints import list_checkpoints
from tests.lvdm.training_runs import MODEL, ROOT, losses, make_clips, save_config, tiny_config

STEPS = 6


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(config, machine, port, log):
    """The launcher of one machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={machine}"]
    command += ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", "--max-restarts=0"]
    command += [str(ROOT / "scripts/train.py"), "--config", str(config), "--resume", "auto"]
    threads = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    with log.open("a") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | threads, cwd=config.parent)


def switch_off(process):
    """End a launcher and its training process at once, without a chance to tell anybody."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with contextlib.suppress(OSError):
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.wait(30)


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
            assert all(machine.poll() is None for machine in machines), logs[0].read_text() + logs[1].read_text()
            time.sleep(0.02)
        switch_off(machines[1])
        machines[0].wait(60)  # the first notices, and does not wait for ever
        assert machines[0].returncode != 0
    finally:
        for machine in machines:
            switch_off(machine)
    reached = max(losses(folder))
    assert 2 <= reached < STEPS

    machines = start(free_port())
    try:
        for machine in machines:
            assert machine.wait(120) == 0, logs[0].read_text()
    finally:
        for machine in machines:
            switch_off(machine)
    alone, found = losses(tmp_path / "runs" / "alone"), losses(folder)
    assert found.keys() == alone.keys()
    for step, loss in alone.items():
        assert float(found[step]) == pytest.approx(float(loss), rel=1e-4), step
