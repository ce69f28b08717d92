"""Workers that are thought dead and are not: stopped ones, and clocks that jump."""

import random
import signal
import time
from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.faults import tasks
from tests.faults.whole import Seen, check_whole

SHORT = {"lease": 1.5, "beat": 0.2}
HOUR = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f000', seen_at, '{} hours')"}
HOUR["postgresql"] = "seen_at + interval '{} hours'"


def until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait until something is true."""
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it did not come to that"
        time.sleep(0.05)


def seen(url: str, task: str) -> Seen | None:
    """Return what is there of a study; None: nothing yet."""
    try:
        return Seen(url, task)
    except IndexError:
        return None


def trains(url: str, task: str, epochs: int, phase: str = "search") -> bool:
    """Tell whether a run is in training that has so many epochs behind it."""
    there = seen(url, task)
    return there is not None and any(
        run["state"] == "running"
        and run["phase"] == phase
        and len(there.curves[run["id"]]) >= epochs
        for run in there.runs
    )


def stale(url: str, task: str) -> list[int]:
    return [run["id"] for run in Seen(url, task).runs if run["state"] == "stale"]


@pytest.mark.parametrize(
    ("task", "ended"),
    [
        ("serial", True),
        pytest.param("serial", False, marks=pytest.mark.slow),
        pytest.param("pruned", False, marks=pytest.mark.slow),
        pytest.param("pruned", True, marks=pytest.mark.slow),
        pytest.param("fused", False, marks=pytest.mark.slow),
        pytest.param("fused", True, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_worker_writes_nothing_of_what_was_taken(nursery, url, task, ended, undisturbed):
    begin = {"before": "tests.faults.alter:change", **SHORT}
    first = nursery.start(task, url, slow=0.5, **begin)
    until(lambda: trains(url, task, 1))
    first.signal(signal.SIGSTOP)
    second = nursery.start(task, url, slow=0.0 if ended else 0.1, **begin)
    if ended:
        assert second.wait() == 0, second.said()
    else:
        until(lambda: bool(stale(url, task)))
    taken = {run: Seen(url, task).curves[run] for run in stale(url, task)}
    before = Seen(url, task).answer()
    first.signal(signal.SIGCONT)
    assert (first.wait(), second.wait()) == (0, 0), first.said() + second.said()
    there = check_whole(url, task, getattr(tasks, task).trials)
    assert taken and {run: there.curves[run] for run in taken} == taken
    if ended:
        assert there.answer() == before
    if task == "serial":
        assert there.answer() == undisturbed(task)


def jump(url: str, hours: int) -> None:
    """Let a worker's sign of life be of another time, as if the database's clock had jumped."""
    engine = create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool
    )
    moved = HOUR[engine.dialect.name].format(f"{hours:+}")
    last = "(SELECT max(id) FROM droptune_worker)" if random.random() < 0.5 else "1"
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE droptune_worker SET seen_at = {moved} WHERE id = {last}"))


def test_a_clock_that_jumps_costs_time_and_nothing_else(nursery, url, undisturbed):
    begin = {"before": "tests.faults.alter:change", "slow": 0.1, "beat": 3.0}
    crew = [nursery.start("serial", url, **begin) for _ in range(2)]
    until(lambda: trains(url, "serial", 2))
    jumps = 0
    while any(worker.code is None for worker in crew):
        jump(url, random.choice((-1, 1)))
        jumps += 1
        time.sleep(0.7)
    assert [worker.wait() for worker in crew] == [0, 0], crew[0].said() + crew[1].said()
    assert jumps > 3 and stale(url, "serial")
    there = check_whole(url, "serial", tasks.TRIALS)
    assert there.answer() == undisturbed("serial")
