"""When the states of members in training are written to files, and how they come back.

Not after each epoch: what is lost with a process is at most `EVERY` seconds of training, and
writing takes at most a twentieth of the time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from droptune.checkpoints import Checkpoints
from droptune.errors import DroptuneError, StoreError, TrainingError
from droptune.trainers import Saved, Trainer, part_of, restore_into

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

    def restore(self, trainer: Trainer, name: str, wanted: Mapping[str, int]) -> dict[int, int]:
        """Put members whose states a worker kept into a trainer.

        Args:
            trainer: whose members are replaced.
            name: under which that worker's are written.
            wanted: key of a member -> the slot where it is to go on.

        Returns:
            slot -> epochs that its member has trained; empty where nothing could be restored.
        """
        try:
            found = self._checkpoints.load(name)
            known = {} if found is None else _members(found[1])
            slots = {known[key][0]: slot for key, slot in wanted.items() if key in known}
            if not slots:
                return {}
            _put(trainer, found[0], slots, [slot for slot, _ in known.values()])
        except DroptuneError as error:  # it cannot be read, or is of another task
            self._say(f"{error}; what was kept there begins again")
            return {}
        return {slots[slot]: epochs for slot, epochs in known.values() if slot in slots}

    def clear(self, prefix: str) -> None:
        """Remove the checkpoints of all names that begin so: nobody needs them any more."""
        try:
            for name in self._checkpoints.names():
                if name.startswith(prefix):
                    self._checkpoints.drop(name)
        except StoreError as error:
            self._say(str(error))


def _members(about: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return member -> slot and epochs, as a checkpoint says; a file may say anything."""
    try:
        return {key: (int(slot), int(epochs)) for key, (slot, epochs) in about["members"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrainingError(f"a checkpoint does not say whose states it has ({error})") from error


def _put(trainer: Trainer, saved: Saved, slots: Mapping[int, int], there: Sequence[int]) -> None:
    """Restore some of the members, in other slots."""
    if "members" in saved.rest:
        return restore_into(trainer, part_of(saved, slots))
    if any(old != new for old, new in slots.items()):
        raise TrainingError("a trainer of one's own restores members where they were")
    restore_into(trainer, saved)
    for slot in there:
        if slot not in slots:
            trainer.stop(slot)
