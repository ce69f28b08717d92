"""Workers, databases, and what undisturbed studies come to."""

import pytest

from tests.faults.nursery import Nursery
from tests.faults.whole import Seen
from tests.small import fresh


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    """What starts the workers of a module's tests; none of them outlives it."""
    with Nursery(tmp_path_factory.mktemp("workers")) as nursery:
        yield nursery


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The URL of a new database that has all tables, and no study."""
    if request.param == "sqlite":
        return fresh(tmp_path)
    return request.getfixturevalue("postgres").fresh()


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    """Return the answer of a task that one worker trains on SQLite and nobody disturbs."""
    known = {}

    def answer(task: str) -> dict:
        if task not in known:
            url = fresh(tmp_path_factory.mktemp(task))
            worker = nursery.start(task, url)
            assert worker.wait() == 0, worker.said()
            known[task] = Seen(url, task).answer()
        return known[task]

    return answer
