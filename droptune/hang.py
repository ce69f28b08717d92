"""Training that hangs: a thread notices that nothing moves, and says where it waits.

What hangs with the interpreter's lock held stops this thread, too; it also stops the signs of
life (lease.py), so that other workers take over what was trained.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from droptune.frames import place_of
from droptune.progress import Progress
from droptune.watch import Clockwork

HANG_TIME = 600.0
"""Seconds for which training may wait without computing, at least."""
EXIT_CODE = 75
"""Of a process that has ended because it hung: EX_TEMPFAIL of sysexits.h, run it again."""

_FIRST = 6  # so many times as long for the first epoch: traces, compilation, downloads
_LONGER = 10  # so many times as long as the longest so far
_WORKS = 50.0  # seconds of waiting that a second of computing makes up for


class Watchdog:
    """Watches the training of this thread, as long as the context is open.

    It hangs if no epoch, nor other part of training, has ended, and this process has computed
    next to nothing (below a fiftieth of the time), for `seconds`, or for ten times as long as the
    longest part so far took if that is more; until the first epoch has ended, for six times
    `seconds`. An epoch that takes hours therefore does not hang, nor does an endless loop. Time
    in which the whole process was stopped does not count.

    Args:
        clockwork: where the parts of training are counted.
        seconds: see above; 0: nothing ever hangs.
        hung: is given one line, in another thread, once for each part that hangs.
    """

    def __init__(self, clockwork: Clockwork, seconds: float, hung: Callable[[str], object]) -> None:
        self._clockwork, self._seconds, self._hung = clockwork, seconds, hung
        self._tick = min(1.0, seconds / 10)
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._thread = threading.get_ident()
        if self._seconds:
            name = "droptune watchdog"
            self._watcher = threading.Thread(target=self._watch, name=name, daemon=True)
            self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._seconds:
            self._watcher.join()

    @property
    def limit(self) -> float:
        """Seconds after which what trains now hangs."""
        longest = self._clockwork.longest
        if "epoch" not in longest:
            return _FIRST * self._seconds
        return max(self._seconds, _LONGER * max(longest.values()))

    def _watch(self) -> None:
        since, waited, turn = 0.0, 0.0, -1
        last, worked, told = time.monotonic(), time.process_time(), False
        while not self._over.wait(self._tick):
            now, work = time.monotonic(), time.process_time()
            gone, last = min(now - last, 2 * self._tick), now
            idle, worked = gone - _WORKS * (work - worked), work
            if self._clockwork.turns != turn or self._clockwork.now != "training":
                since, waited, turn, told = 0.0, 0.0, self._clockwork.turns, False
                continue
            since, waited = since + gone, max(waited + idle, 0.0)
            if waited >= self.limit and not told:
                told = True
                self._hung(self._said(since))

    def _said(self, waited: float) -> str:
        took = self._clockwork.longest.get("epoch")
        usual = "none has ended before" if took is None else f"the longest took {_time(took)}"
        place = place_of(self._thread) or "code that has ended"
        return f"no epoch has ended for {_time(waited)} ({usual}): waits in {place}"


def leave(shown: Progress) -> NoReturn:
    """End this process at once: the thread that hangs cannot be interrupted.

    Args:
        shown: is closed before, which gives the terminal back.
    """
    shown.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def _time(seconds: float) -> str:
    """Return a time as text: 0.5 s, 12 s, 10 min."""
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
