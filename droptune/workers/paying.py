"""Whether more processes than one pay for a study: seen from the study itself, not guessed.

A process takes seconds to start, for each imports torch, loads the data and measures its
trainer. So one process begins, and after its first epochs knows how long the study takes. More
pay if that is long, and there is something for them:

- other GPUs, or
- other cores, where trials train one at a time. Trials that train fused are best left together:
  a step of all of them costs little more than a step of one.

The one process then stops, as Ctrl-C would stop it, and the others go on from what it stored.
"""

import signal

from droptune.progress import Progress, SilentProgress, Status, duration
from droptune.watch import STOPPING

WORTH = 60.0
"""Seconds that one process would still need, from which on more are started."""
_SURE = 3  # statuses in a row that say so, or one after `_SURE_AFTER`: the first epochs are slow
_SURE_AFTER = 15.0  # seconds
_WARM = 3.0  # seconds, before which no status counts


class Scout(SilentProgress):
    """A progress that passes all on, and stops the study where more processes pay.

    Args:
        progress: that is shown.
        processes: how many there could be.
        gpus: whether each has a GPU.

    Attributes:
        found: why more processes pay, as a line; None: they do not, so far.
    """

    def __init__(self, progress: Progress, processes: int, gpus: bool) -> None:
        self._progress, self._processes, self._gpus = progress, processes, gpus
        self._in_row, self._stops = 0, False
        self.found: str | None = None

    def update(self, status: Status) -> None:
        """Show the status, and look whether it is worth more processes."""
        self._progress.update(status)
        self._in_row = self._in_row + 1 if self._pays(status) else 0
        sure = self._in_row >= _SURE or (self._in_row and status.elapsed >= _SURE_AFTER)
        if sure and not self._stops and self.found is None:
            each = "one GPU" if self._gpus else "one thread"
            why = "" if self._gpus else "the model trains one trial at a time, and "
            left = duration(status.seconds_left)
            self.found = (
                f"{self._processes} processes of {each} each from here on: {why}alone this would "
                f"take {left} more"
            )
            signal.raise_signal(signal.SIGINT)

    def message(self, text: str) -> None:
        """Show a line; not the one about Ctrl-C where nobody pressed it."""
        self._stops |= text == STOPPING
        if self.found is None or text != STOPPING:
            self._progress.message(text)

    def _pays(self, status: Status) -> bool:
        left, total = status.seconds_left, status.total
        several = total is None or total - status.done > max(status.running, 1)
        alone = self._gpus or status.running == 1
        long = left is not None and left > WORTH and status.elapsed > _WARM
        return several and alone and long
