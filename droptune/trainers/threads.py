"""How many of torch's threads train an epoch on CPU: as many as are fastest now.

The operations of a small model take microseconds, and at each of them all threads wait for the
last. On an idle machine more of them are faster; where other processes want its cores, a thread
that has to wait for its turn makes all others wait, and one alone is several times as fast.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

_APART = 4  # from one number of threads to the next
#: Epochs until a number that was slower is tried again, if that may have been chance.
_SOON = 8
#: If it was none: trying takes this part of the time at most.
_TRYING = 0.05


def counts_to_try() -> list[int]:
    """Return numbers of threads, rising, the last of them what torch is set to."""
    most = torch.get_num_threads()
    return [*(count for power in range(6) if (count := _APART**power) < most), most]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch use so many threads on CPU meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rehearsed(run: Callable[[], tuple[float, list[Tensor]]]) -> dict[int, float]:
    """Run some steps with different numbers of threads; `run` is warm already.

    Args:
        run: returns seconds a step, and all that came of the steps.

    Returns:
        Number of threads -> seconds a step, for those whose results are, bit for bit, the same
        as with as many as torch is set to.
    """
    *fewer, usual = counts_to_try()
    seconds, results = run()
    same = {usual: seconds}
    for count in fewer:
        with threads(count):
            seconds, found = run()
        if all(map(torch.equal, found, results)):
            same[count] = seconds
    return same


class Threads:
    """Chooses how many threads train the next epoch, by how long epochs took.

    Args:
        seconds: number of threads -> what a step took in a rehearsal.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self._seconds = dict(seconds)
        self._losses = dict.fromkeys(seconds, 1)
        self._due = dict.fromkeys(seconds, 0)
        self._epochs = -1  # the first, in which steps are traced, does not count
        for count in seconds:
            self._put_off(count)

    def next(self) -> int:
        """Return the number for the next epoch."""
        fastest = min(self._seconds, key=self._seconds.__getitem__)
        due = (count for count in self._seconds if self._due[count] <= self._epochs)
        return next((count for count in due if count != fastest), fastest)

    def took(self, count: int, seconds: float) -> None:
        """Note how long an epoch took."""
        if not self._epochs:  # what is known of the others is of another scale
            factor = seconds / self._seconds[count]
            self._seconds = {known: factor * took for known, took in self._seconds.items()}
        if self._epochs >= 0:
            self._seconds[count] = seconds
            self._put_off(count)
        self._epochs += 1

    def _put_off(self, count: int) -> None:
        """Set when to try a number again that was not the fastest."""
        slower = self._seconds[count] / min(self._seconds.values())
        self._losses[count] = self._losses[count] + 1 if slower > 1 else 0
        pause = _SOON if self._losses[count] < 2 else max(_SOON, round(slower / _TRYING))
        self._due[count] = self._epochs + pause

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Train an epoch within."""
        if len(self._seconds) == 1 or torch.get_num_threads() != max(self._seconds):
            yield  # there is no choice, or another setting than was rehearsed
            return
        count, started = self.next(), time.perf_counter()
        with threads(count):
            yield
        self.took(count, time.perf_counter() - started)
