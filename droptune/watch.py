"""What is watched while a study runs: Ctrl-C, where the time goes, and how far it is."""

import math
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from droptune.progress import Progress, Status

STOPPING = "stopping at the end of this epoch; Ctrl-C again stops at once"
"""What the first Ctrl-C is answered with."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds between two looks whether there is something to train.
_SHORTEST, _LONGEST = 0.1, 3.0


@dataclass
class Clockwork:
    """Where the time of a study goes.

    Attributes:
        seconds: by "training", "search" and "store".
        longest: seconds by part of the training that has ended, "epoch" and others.
        now: what goes on now; None: nothing of these.
        turns: how often any of it has begun or ended.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    longest: dict[str, float] = field(default_factory=dict)
    now: str | None = None
    turns: int = 0

    @contextmanager
    def __call__(self, what: str, part: str = "other") -> Iterator[None]:
        """Count the time of a `with` block.

        Args:
            what: a key of `seconds`.
            part: of the training, a key of `longest`.
        """
        started, before, self.now = time.perf_counter(), self.now, what
        self.turns += 1
        try:
            yield
        finally:
            took = time.perf_counter() - started
            self.seconds[what] += took
            if what == "training":
                self.longest = {**self.longest, part: max(took, self.longest.get(part, 0.0))}
            self.now = before
            self.turns += 1


class NothingFree(Exception):
    """Others train all that is left of a study for now; come back later."""


class Idle:
    """Waits while other workers train what is left.

    Args:
        waits: True: for as long as it takes; else for how many seconds.
    """

    def __init__(self, waits: float) -> None:
        self._waits = math.inf if waits is True else waits
        self._next, self._waited = _SHORTEST, 0.0

    def __call__(self) -> None:
        """Wait for a moment, longer each time until `over`.

        Raises:
            NothingFree: this worker is not to wait any longer.
        """
        if self._waited >= self._waits:
            raise NothingFree
        wait = self._next * random.uniform(0.5, 1)  # not all look at the same moment
        time.sleep(wait)
        self._waited += wait
        self._next = min(2 * self._next, _LONGEST)

    def over(self) -> None:
        """Note that there was something to train."""
        self._next, self._waited = _SHORTEST, 0.0


class Interrupt:
    """Turns the first Ctrl-C into a wish to stop at the end of the epoch; the second stops now.

    SIGTERM, by which schedulers of clusters ask a process to end, counts as the first Ctrl-C. Some
    send it to a process and its children, who then hear of it from their parent, too.

    Outside the main thread, where signals cannot be caught, it never wishes.

    Args:
        say: is given one line when the first Ctrl-C comes.

    Attributes:
        wished: whether Ctrl-C was pressed.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.wished = False
        self._say = say

    def __enter__(self) -> "Interrupt":
        self._ours = threading.current_thread() is threading.main_thread()
        if self._ours:
            self._before = {one: signal.signal(one, self._wish) for one in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        if self._ours:
            for one, handler in self._before.items():
                signal.signal(one, handler)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.wished:
            if number == signal.SIGTERM:
                return
            raise KeyboardInterrupt
        self.wished = True
        with suppress(RuntimeError):  # the signal came while the same stream was being written
            self._say(STOPPING)


_LONG = 60.0  # seconds, of an epoch


class Meter:
    """How far one phase of a study is, and how long it will take.

    Args:
        progress: is told.
        phase: "search" or "confirm".
        objective: name of the metric that decides.
        epochs: length of a run that is not stopped early.
        total: trials (search) or runs (confirm) of the whole phase.
    """

    def __init__(
        self, progress: Progress, phase: str, objective: str, epochs: int, total: int
    ) -> None:
        self._progress, self._phase, self._objective = progress, phase, objective
        self._length, self._total = epochs, total
        self._began = time.monotonic()
        self._trained = 0  # epochs of single runs, now and in `_ended`
        self._first: tuple[float, int] | None = None  # when the first epoch ended, and its runs
        self._ended: list[int] = []  # the epochs that each ended run took

    def epoch(self, members: int, ended: Sequence[int]) -> None:
        """Count one epoch of so many members.

        Args:
            members: that trained.
            ended: of those that ended with it, how many epochs each took.
        """
        self._trained += members
        self._ended += ended
        if self._first is None:
            self._first = time.monotonic(), members

    def show(
        self,
        *,
        done: int,
        running: Sequence[int],
        pruned: int = 0,
        failed: int = 0,
        best: float | None = None,
        seconds_left: float | None = None,
        note: str = "",
    ) -> None:
        """Tell the progress.

        Args:
            done: trials or runs of the whole phase that have ended, however they ended.
            running: epochs so far of those that train now.
            pruned: how many of `done` were stopped early.
            failed: how many of `done` failed.
            best: value of the objective so far.
            seconds_left: of a time budget; None without one.
            note: what else there is to say.
        """
        elapsed = time.monotonic() - self._began
        speed = self._speed()
        left = self._left(speed, done, running) if speed else None
        if seconds_left is not None:
            left = seconds_left if left is None else min(left, seconds_left)
        self._progress.update(
            Status(
                phase=self._phase,
                done=done,
                total=self._total,
                running=len(running),
                pruned=pruned,
                failed=failed,
                best=best,
                objective=self._objective,
                epochs_per_second=speed,
                seconds_left=left,
                elapsed=elapsed,
                note=note,
            )
        )

    def _speed(self) -> float | None:
        """Return epochs a second, without the first: a trainer is made and warms up in it.

        The first alone tells the speed only if it took so long that this matters little.
        """
        if self._first is None:
            return None
        ended, members = self._first
        since = time.monotonic() - ended
        if self._trained > members and since > 0:
            return (self._trained - members) / since
        took = ended - self._began
        return members / took if took >= _LONG else None

    def _left(self, speed: float, done: int, running: Sequence[int]) -> float:
        """Return seconds to the end, if runs to come are as long as those that have ended."""
        usual = sum(self._ended) / len(self._ended) if self._ended else self._length
        to_come = max(self._total - done - len(running), 0) * usual
        return (to_come + sum(self._length - age for age in running)) / speed
