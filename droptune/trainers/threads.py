"""How many of torch's threads train an epoch on CPU: as many as are fastest now.

The operations of a small model take microseconds, and at each of them all threads wait for the
last. On an idle machine more of them are faster; where other processes want its cores, a thread
that has to wait for its turn makes all others wait, and one alone is several times as fast.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: Seconds. A step that takes longer has operations long enough for all threads.
SHORT_STEP = 0.05
_APART = 4  # from one number of threads to the next
#: Epochs until a number that was slower is tried again, at first and at most; they double.
_SOON, _LATE = 8, 256


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


def rehearsed(run: Callable[[], tuple[float, list[Tensor]]]) -> tuple[float, list[int]]:
    """Run some steps with different numbers of threads; `run` is warm already.

    Args:
        run: returns seconds a step, and all that came of the steps.

    Returns:
        The least seconds a step, and numbers of threads whose results are the same, bit for
        bit; the last is what torch is set to.
    """
    *fewer, usual = counts_to_try()
    seconds, results = run()
    if fewer and seconds > SHORT_STEP:  # for itself, or because others have the processor
        seconds = min(seconds, run()[0])
    same = [usual]
    for count in reversed(fewer if seconds <= SHORT_STEP else []):
        with threads(count):
            taken, found = run()
        if all(map(torch.equal, found, results)):
            same.insert(0, count)
            seconds = min(seconds, taken)
    return seconds, same


class Threads:
    """Chooses how many threads train the next epoch, by how long epochs took.

    Args:
        counts: numbers of threads that give the same results; the last is the usual one.
    """

    def __init__(self, counts: list[int]) -> None:
        self._usual = counts[-1]
        self._seconds = dict.fromkeys(reversed(counts), 0.0)
        self._pauses = dict.fromkeys(counts, _SOON)
        self._due = dict.fromkeys(counts, 0)
        self._epochs = -1  # the first, in which steps are traced, does not count

    def next(self) -> int:
        """Return the number for the next epoch."""
        if self._epochs < 0:
            return self._usual
        fastest = min(self._seconds, key=self._seconds.__getitem__)
        due = (count for count in self._seconds if self._due[count] <= self._epochs)
        return next((count for count in due if count != fastest), fastest)

    def took(self, count: int, seconds: float) -> None:
        """Note how long an epoch took."""
        if self._epochs >= 0:
            self._seconds[count] = seconds
            if seconds > min(self._seconds.values()):
                self._due[count] = self._epochs + self._pauses[count]
                self._pauses[count] = min(2 * self._pauses[count], _LATE)
            else:
                self._pauses[count] = _SOON
        self._epochs += 1

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Train an epoch within."""
        if len(self._seconds) == 1:
            yield
            return
        count, started = self.next(), time.perf_counter()
        with threads(count):
            yield
        self.took(count, time.perf_counter() - started)
