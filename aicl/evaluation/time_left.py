"""How long a stage still takes: a sentence early on, and one for each row that is done."""

from collections.abc import Callable
from time import monotonic

import torch


class TimeLeft:
    """Says once, after the second batch, how long the rest takes (the first one also loads and compiles), and after
    each row what it took."""

    def __init__(self, total: int, say: Callable[[str], None] | None, doing: str) -> None:
        self._total, self._say, self._doing = total, say, doing
        self._count, self._first, self._start = 0, 0, 0.0
        self._asked = False
        self._row: tuple[str, int, float] | None = None  # its name, what was done before, and when it began

    def row(self, name: str | None) -> None:
        """What follows is of this row; None ends the last one."""
        if self._row is not None and self._row[0] != name and self._say is not None:
            count, seconds = self._count - self._row[1], monotonic() - self._row[2]
            memory = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most" if torch.cuda.is_available() else ""
            if count:
                self._say(f"{self._row[0]}: {count} videos, {seconds / count:.2g} s each{memory}")
        if name is None:
            self._row = None
        elif self._row is None or self._row[0] != name:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            self._row = name, self._count, monotonic()

    def done(self, count: int) -> None:
        """Another `count` are done; none where another program made them meanwhile."""
        if not count:
            return
        self._count += count
        if not self._first:
            self._first, self._start = self._count, monotonic()
        elif self._say is not None and not self._asked:
            self._asked = True
            seconds = (monotonic() - self._start) / (self._count - self._first)
            left = seconds * (self._total - self._count)
            if left >= 1:
                self._say(f"{self._doing}: {seconds:.2g} s each, about {duration(left)} to go")


def duration(seconds: float) -> str:
    """In words, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
