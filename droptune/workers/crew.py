"""A process a seat: started, listened to, stopped together; none outlives its parent."""

import queue
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from droptune.workers.devices import Seat
from droptune.workers.process import Worker

_TURN = 0.2  # seconds to wait for an event
QUICK = 3  # deaths in a row, of processes that have trained nothing
_MANY = 10  # deaths a seat, while no trial ends
_LONGEST_WAIT = 30.0  # seconds before another process is started


class Crew:
    """The processes of this machine that work for one parent.

    Args:
        seats: at most one process works at each.

    Attributes:
        at: seat (by its position) -> who works there.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.seats = list(seats)
        self.at: dict[int, Worker] = {}
        self._events: queue.Queue[tuple[Worker, dict[str, Any]]] = queue.Queue()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.at.values():
            worker.kill()
        for worker in self.at.values():
            worker.process.wait()

    @property
    def free(self) -> list[int]:
        """The seats where nobody works."""
        return [seat for seat in range(len(self.seats)) if seat not in self.at]

    def joined(self) -> list[int]:
        """Return seats that are new since the last look; a machine's stay the same."""
        return []

    def start(self, seat: int, job: Mapping[str, Any]) -> Worker:
        """Start a process for a job at a free seat."""
        own = {"device": self.seats[seat].device, **job["options"]}
        self.at[seat] = Worker(self.seats[seat], {**job, "options": own}, self._events)
        return self.at[seat]

    def next(self) -> tuple[int, Worker, dict[str, Any]] | None:
        """Return the next event with its seat and worker; None: nothing for a moment.

        With the event "ended" the seat is free again.
        """
        try:
            worker, event = self._events.get(timeout=_TURN)
        except queue.Empty:
            return None
        return self._noted(worker, event)

    def _noted(self, worker: Worker, event: dict[str, Any]) -> tuple[int, Worker, dict[str, Any]]:
        seat = next(seat for seat, at in self.at.items() if at is worker)
        if event["event"] == "ended":
            del self.at[seat]
        worker.trained |= event["event"] == "status"
        worker.finished |= event["event"] in ("result", "nothing", "error")
        return seat, worker, event

    def stop(self) -> None:
        """Let all end at the end of their epochs."""
        for worker in self.at.values():
            worker.stop()

    def kill(self) -> None:
        """End all at once."""
        for worker in self.at.values():
            worker.kill()


class Signals:
    """Counts Ctrl-C and SIGTERM instead of being ended by them.

    Attributes:
        count: how many came.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Signals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._counted)
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            with suppress(TypeError):  # it was not set by Python
                signal.signal(number, before)

    def _counted(self, *_: object) -> None:
        self.count += 1


class Deaths:
    """When a process that died is replaced, and when that is no use.

    A process that dies before it has trained is tried again `QUICK` times; others, for as long
    as trials end now and then.
    """

    def __init__(self, seats: int) -> None:
        self._most = _MANY * seats
        self._done, self._deaths, self._quick = -1, 0, 0

    def trained(self, done: int) -> None:
        """Count what has ended: that many trials or runs, by a process that trains."""
        self._quick = 0
        if done != self._done:
            self._done, self._deaths = done, 0

    def died(self, worker: Worker) -> float | None:
        """Return the seconds until it is replaced; None: no more."""
        self._deaths += 1
        self._quick += not worker.trained
        if self._quick > QUICK or self._deaths > self._most:
            return None
        return min(_LONGEST_WAIT, 0.5 * 2 ** (max(self._quick, 1) - 1))


def cause(code: int, tail: Sequence[str]) -> str:
    """Return in words how a process ended, with the last line that it printed."""
    how = f"exit code {code}"
    if code < 0:
        known = {-number: number.name for number in signal.Signals}
        how = f"ended by {known.get(code, f'signal {-code}')}"
        how += ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    said = [line for line in tail if line.strip()]
    return f"{how}; it printed last: {said[-1]}" if said else how
