"""Loader processes and the signals that ask a training to end.

A terminal, `timeout` and cluster schedulers send a signal to the loader processes too. If they died of it, the training
would end with an error for want of its next batch, before its last checkpoint is written.
"""

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a training to write a checkpoint and to end."""


def outlive_first_signal(worker: int) -> None:
    """Let the loader process that calls this go on after the first of each of SIGNALS; a second one ends it.

    The second is for its own end: a loader terminates processes that do not end by themselves. A signal that is ignored
    already (SIGHUP, by nohup) stays so. `worker`, the number of the process, is not needed.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end_next_time)


def _end_next_time(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
