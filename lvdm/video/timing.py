"""When each frame of a file is shown, also where a container's time stamps are missing, repeated or start anew."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PacketTime:
    """A coded frame's times in ticks of its stream, None where the container does not say."""

    shown: int | None  # presentation time stamp
    decoded: int | None  # decoding time stamp
    key: bool  # decoding can start here


@dataclass(frozen=True)
class Timing:
    """When the frames of a file are shown, in their order.

    ticks: int64 (frames,), ascending. exact: each frame has a stamp of its own, so that it can be found by it.
    known: whether the container says any time at all; without one the ticks are evenly spaced.
    """

    ticks: np.ndarray
    exact: bool
    known: bool


def presentation(packets: Sequence[PacketTime], step: float) -> Timing:
    """Time stamps in decoding order -> times in the order of presentation; `step` is the usual distance in ticks.

    Without presentation times the decoding times stand in, whose distances are the same. Single missing ones follow the
    frame before. Key frames are shown after all that was decoded before them: where one claims an earlier time, the
    stamps started anew (joined recordings), and the rest is moved behind.
    """
    stamps = [packet.shown for packet in packets]
    exact = None not in stamps
    if not exact and all(packet.decoded is not None for packet in packets):
        stamps = [packet.decoded for packet in packets]
    known = [stamp for stamp in stamps if stamp is not None]
    if not known:
        return Timing(np.round(np.arange(len(stamps)) * step).astype(np.int64), exact=False, known=False)
    first = next(number for number, stamp in enumerate(stamps) if stamp is not None)
    times: list[float] = []
    highest, offset = -np.inf, 0.0
    for number, (packet, stamp) in enumerate(zip(packets, stamps)):
        if stamp is None:
            time = times[-1] + step if times else known[0] - (first - number) * step
        else:
            time = stamp + offset
            if packet.key and time < highest:
                offset += highest + step - time
                time, exact = stamp + offset, False
        times.append(time)
        highest = max(highest, time)
    ticks = np.sort(np.round(times).astype(np.int64))
    return Timing(ticks, exact=exact and bool((np.diff(ticks) > 0).all()), known=True)


def uneven(ticks: np.ndarray) -> bool:
    """Whether frames stand elsewhere than a constant rate, written in whole ticks, would put them."""
    if len(ticks) < 3 or ticks[-1] == ticks[0]:
        return False
    even = np.linspace(ticks[0], ticks[-1], len(ticks))
    interval = even[1] - even[0]
    return bool(np.abs(ticks - even).max() > 1 + 1e-3 * interval)
