"""What to do when the database is away for a moment: the same again, for a while.

Only whole transactions are tried again, and only what may be stored twice without harm: a
connection that breaks during a commit leaves open whether the commit took place. So `work` is
told when it runs again, and then looks first whether its rows are there.

The waits double from a tenth of a second to `LONGEST`, each shortened at random by up to a
half, so that many workers do not come back at the same moment (M. Brooker, "Exponential
backoff and jitter", AWS Architecture Blog, 2015).
"""

import itertools
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from droptune.errors import StoreError, TransientError

PATIENCE = 60.0
"""How long the same is tried again, in seconds; a server restarts in less."""
LONGEST = 5.0
"""The longest wait between two tries, in seconds."""

_QUIET_TRIES = 3  # a deadlock is over after one, and nobody need hear of it
_log = logging.getLogger("droptune")
T = TypeVar("T")


def again(work: Callable[[bool], T], passing: type[TransientError] = TransientError) -> T:
    """Return what `work` returns, tried again while it raises what passes by itself.

    Args:
        work: is given False at first, then True: an earlier try may have been stored.
        passing: what is worth another try; of a server that never answered the address is as
            likely wrong, which is to be told at once.

    Raises:
        StoreError: it did not work for `PATIENCE` seconds.
    """
    give_up = time.monotonic() + PATIENCE
    for tries in itertools.count(1):
        try:
            return work(tries > 1)
        except passing as error:
            left = give_up - time.monotonic()
            if left <= 0:
                raise StoreError(
                    f"{error}; tried again for {PATIENCE:g} s; what is stored is kept, and the "
                    "same command goes on from there"
                ) from None
            if tries == _QUIET_TRIES:
                _log.warning("%s; trying again for up to %.0f s", error, left)
            wait = min(LONGEST, 0.1 * 2 ** (tries - 1))
            time.sleep(min(left, wait * random.uniform(0.5, 1)))
    raise AssertionError("count() does not end")
