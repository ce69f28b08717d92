"""When the states of members in training are written to files, and how they come back.

Not after each epoch: what is lost with a process is at most `EVERY` seconds of training, and
writing takes at most a twentieth of the time.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from droptune.checkpoints import Checkpoints
from droptune.errors import StoreError
from droptune.trainers import Saved

EVERY = 60.0
"""Seconds between two checkpoints, at least."""
_SHARE = 0.05  # of the time, that writing may take


class Keeping:
    """The checkpoints that one worker writes for a study, and reads of any.

    If they cannot be written, for the disk is full, that is said once and training goes on.

    Args:
        checkpoints: the study's.
        name: under which this worker's are written.
        say: is given a line.
        every: seconds between two, at least.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        name: str,
        say: Callable[[str], object],
        every: float = EVERY,
    ) -> None:
        self.name = name
        self._checkpoints, self._say, self._every = checkpoints, say, every
        self._next = time.monotonic() + every
        self._failed = False

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() >= self._next

    def save(self, saved: Saved, about: Mapping[str, Any]) -> bool:
        """Write a checkpoint; return whether it could be written."""
        began = time.monotonic()
        try:
            self._checkpoints.save(self.name, saved, about)
        except StoreError as error:
            if not self._failed:
                self._say(f"{error}; training goes on without checkpoints")
            self._failed = True
            return False
        finally:
            ended = time.monotonic()
            self._next = ended + max(self._every, (ended - began) / _SHARE)
        self._failed = False
        return True

    def load(self, name: str) -> tuple[Saved, dict[str, Any]] | None:
        """Return what a worker kept under a name, and what it said of it; None: nothing whole."""
        try:
            return self._checkpoints.load(name)
        except StoreError as error:
            self._say(f"{error}; what was kept there begins again")
            return None
