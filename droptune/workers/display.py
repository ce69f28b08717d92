"""One progress display of several processes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from droptune.progress import Progress, Status
from droptune.workers.process import Worker

_MOST = 10_000  # lines that are remembered
_PHASES = ("search", "confirm")


class Display:
    """Shows what the processes of one study tell; what several of them say is shown once.

    Args:
        progress: that shows it.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._statuses: dict[Worker, Status] = {}
        self._said: dict[str, Worker | None] = {}  # line -> who said it first

    def show(self, worker: Worker, event: Mapping[str, Any]) -> Status | None:
        """Show an event; return the status of all, if the event has changed it."""
        what = event["event"]
        if what in ("message", "printed"):
            self.say(event["text"], worker)
        if what == "status":
            self._statuses[worker] = Status(**event["status"])
        if what == "ended":
            self._statuses.pop(worker, None)
        if what not in ("status", "ended") or not self._statuses:
            return None
        status = together(list(self._statuses.values()))
        self._progress.update(status)
        return status

    def say(self, text: str, worker: Worker | None = None) -> None:
        """Show a line, unless another process has said it before.

        What processes say at their start may also differ in numbers, which they measured.
        """
        starts = worker is not None and not worker.trained
        alike = re.sub(r"[\d.]+", "#", text) if starts else text
        first = [self._said.get(key, worker) for key in (text, alike)]
        if text.strip() and all(one is worker for one in first):
            self._progress.message(text)
        if len(self._said) < _MOST:
            self._said |= {key: self._said.get(key, worker) for key in (text, alike)}


def together(statuses: Sequence[Status]) -> Status:
    """Return the status of processes that share a study, from one of each.

    All see the same trials: who saw the most of them is right about their number and the best.
    The rest adds up. Each expects to do alone what is left, so the time left is that of one,
    on average over them, at the speed of all.
    """
    phase = max(statuses, key=lambda one: _PHASES.index(one.phase)).phase
    of_phase = [one for one in statuses if one.phase == phase]
    latest = max(of_phase, key=lambda one: one.done)
    speeds = [one.epochs_per_second or 0.0 for one in of_phase]
    timed = [
        one.seconds_left * speed
        for one, speed in zip(of_phase, speeds, strict=True)
        if one.seconds_left is not None
    ]
    speed = sum(speeds)
    return replace(
        latest,
        running=sum(one.running for one in of_phase),
        epochs_per_second=speed or None,
        seconds_left=sum(timed) / len(timed) / speed if timed and speed else None,
        elapsed=max(one.elapsed for one in of_phase),
    )
