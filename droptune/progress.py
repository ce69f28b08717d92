"""How far a study is: live on a terminal, plain lines elsewhere, or nothing at all.

All of it goes to stderr, so that stdout stays for data. Knows nothing of the rest of droptune:
the study hands in a `Status`, whatever it trains on.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TextIO

LINE_EVERY = 5.0  # seconds between plain lines
FRAME_EVERY = 0.1  # seconds between frames on a terminal


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    Attributes:
        phase: "search" or "confirm".
        done: trials (search) or runs (confirm) that have ended, however they ended.
        total: how many there will be; None if only time limits them.
        running: how many train now.
        pruned: how many of `done` were stopped early.
        failed: how many of `done` failed.
        best: best value of the objective so far.
        objective: name of the objective, such as "val_loss".
        epochs_per_second: training epochs of single members per second, all slots together.
        seconds_left: estimate until the end of the phase, in seconds.
        elapsed: since the start of the phase, in seconds.
        note: what else there is to say, which block of confirmation it is, or what more
            trials are expected to gain.
    """

    phase: str
    done: int
    total: int | None
    running: int
    pruned: int
    failed: int
    best: float | None
    objective: str
    epochs_per_second: float | None
    seconds_left: float | None
    elapsed: float
    note: str = ""


class Progress(Protocol):
    """What a study tells about itself. Leaving the context closes it."""

    def update(self, status: Status) -> None:
        """Show `status`; cheap enough to call after every epoch."""

    def message(self, text: str) -> None:
        """Show one line that stays."""

    def close(self) -> None:
        """Show the last status and give the terminal back; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def progress(quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """Return the progress that suits `stream`.

    Args:
        quiet: show nothing.
        stream: where to write; None: stderr.
    """
    stream = stream or sys.stderr
    if quiet:
        return SilentProgress()
    if stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return LiveProgress(stream)
    return LineProgress(stream)


class _Closing:
    """Closes at the end of a `with` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class SilentProgress(_Closing):
    """Show nothing."""

    def update(self, status: Status) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class LineProgress(_Closing):
    """Write a plain line now and then, and one at the end of each phase.

    Args:
        stream: where to write; None: stderr.
        every: seconds between two lines of a phase.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        every: float = LINE_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream = stream or sys.stderr
        self._every = every
        self._clock = clock
        self._written_at = clock()
        self._pending: Status | None = None  # the latest status, if no line shows it yet

    def update(self, status: Status) -> None:
        """Write a line if the last one is long ago or the phase has changed."""
        if self._pending and self._pending.phase != status.phase:
            self._write_pending()
        self._pending = status
        if self._clock() - self._written_at >= self._every:
            self._write_pending()

    def message(self, text: str) -> None:
        """Write `text` as a line."""
        self._line(text)

    def close(self) -> None:
        """Write the last status, unless a line has shown it."""
        self._write_pending()

    def _write_pending(self) -> None:
        if self._pending:
            self._line(describe(self._pending))
            self._pending = None
            self._written_at = self._clock()

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LiveProgress(_Closing):
    """Keep a bar and a line of figures at the bottom of the terminal.

    Frames are drawn by `update` itself, without a thread, so a process that forks workers has
    none to lose.

    Args:
        stream: a terminal; None: stderr.
        clock: seconds that never run backwards.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console  # takes 50 ms, and only a terminal needs it
        from rich.live import Live

        self._console = Console(file=stream or sys.stderr)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,  # the last status of a phase stays as a plain line instead
            redirect_stdout=False,
        )
        self._clock = clock
        self._drawn_at = -math.inf
        self._latest: Status | None = None
        self._live.start()

    def update(self, status: Status) -> None:
        """Draw a frame, unless one was drawn a moment ago."""
        if self._latest and self._latest.phase != status.phase:
            self.message(describe(self._latest))
        self._latest = status
        if self._clock() - self._drawn_at >= FRAME_EVERY:
            self._live.update(_panel(status), refresh=True)
            self._drawn_at = self._clock()

    def message(self, text: str) -> None:
        """Print `text` above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar and leave the last status as a line."""
        if self._live.is_started:
            self._live.stop()
            if self._latest:
                self.message(describe(self._latest))


def describe(status: Status) -> str:
    """Return `status` as one line, without what is not known yet."""
    time_used = f"{duration(status.elapsed)} so far"
    parts = [f"{status.phase} {_count(status)}", *_figures(status), time_used, *_left(status)]
    return ", ".join(parts)


def _panel(status: Status):
    """Return the bar with count and time left, and below it the figures; always two lines."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = ProgressBar(total=status.total, completed=status.done, pulse=status.total is None)
    top = Table.grid(padding=(0, 1), expand=True)
    top.add_column(no_wrap=True)
    top.add_column(ratio=1)
    top.add_column(no_wrap=True)
    ends = ", ".join([_count(status), *_left(status)])
    top.add_row(Text(status.phase, style="bold"), bar, Text(ends))
    figures = ", ".join(_figures(status))
    return Group(top, Text(figures, no_wrap=True, overflow="ellipsis", style="dim"))


def _count(status: Status) -> str:
    """Return "34/64", or "34" without a total."""
    return f"{status.done}" if status.total is None else f"{status.done}/{status.total}"


def _figures(status: Status) -> list[str]:
    """Return what the members do, the best value so far, and the speed."""
    parts = [status.note] if status.note else []
    counts = {"running": status.running, "pruned": status.pruned, "failed": status.failed}
    parts += [f"{count} {word}" for word, count in counts.items() if count]
    if _known(status.best):
        parts.append(f"best {status.objective} {status.best:.4g}")
    if _known(status.epochs_per_second):
        speed = status.epochs_per_second
        parts.append(f"{speed:,.0f} epochs/s" if speed >= 10 else f"{speed:.2g} epochs/s")
    return parts


def _left(status: Status) -> list[str]:
    """Return the time left, if it is known."""
    known = _known(status.seconds_left) and status.seconds_left > 0
    return [f"{duration(status.seconds_left)} left"] if known else []


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def duration(seconds: float) -> str:
    """Return seconds as "45 s", "3 min 20 s" or "2 h 05 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
