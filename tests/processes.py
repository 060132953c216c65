"""Processes that tests start, signal and kill, forked from a server that has everything imported.

Such a process starts in a moment, where a new Python needs six seconds of imports before it does anything. What counts
is the same: its number, signals, locks, output and exit status are those of any process. The server itself never
computes, so that nothing of another test is in what it forks.
"""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import aicl.cli
from lvdm import cli

ROOT = Path(__file__).parents[1]
PRELOADED = ["tests.soak.work", "aicl.tasks", "torch.distributed.run"]
_context = multiprocessing.get_context("forkserver")


def start(target: Callable[..., Any], *arguments: Any, log: Path, environment: Mapping[str, str] | None = None) -> Any:
    """Call a function of a module in a process of its own, whose output goes to the end of `log`.

    The process ends as the commands do: with 0, or with 2 for a user's mistake. `environment`: variables to set.
    """
    _context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()
    process = _context.Process(target=_work, args=(log, dict(environment or {}), target, arguments))
    process.start()
    return process


def aicl_verb(verb: str, *arguments: str) -> None:
    """What `aicl VERB ARGUMENTS` does, to be given to `start`."""
    aicl.cli.run_verb(verb, arguments)


def _work(log: Path, environment: dict[str, str], target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of its loaders, as in a process that nobody forked
    cli.run(lambda: target(*arguments))
