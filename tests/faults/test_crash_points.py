"""A process that ends before or after any of its commits leaves a study that goes on whole."""

import pytest

from tests.faults import crash, tasks
from tests.faults.nursery import Nursery
from tests.faults.whole import Seen, check_whole
from tests.small import fresh

EACH = 30  # one point of so many is looked at in the ordinary run
SIDES = ("before", "after")
TASKS = {"at_commit": "tiny", "at_file": "tiny"}


@pytest.fixture(scope="module")
def points(nursery, tmp_path_factory):
    """Return how many points a study has that nobody disturbs, and its answer."""
    known = {}

    def count(kind: str) -> tuple[int, dict]:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            url, log = fresh(folder), folder / "log"
            worker = begin(nursery, kind, url, log=str(log))
            assert worker.wait() == 0, worker.said()
            known[kind] = int(log.read_text()), Seen(url, TASKS[kind]).answer()
        return known[kind]

    return count


def begin(nursery: Nursery, kind: str, url: str, **values: object):
    return nursery.start(TASKS[kind], url, before=f"tests.faults.crash:{kind}", **values)


def check(nursery, folder, kind: str, at: int, side: str, expected: dict) -> None:
    """Crash at a point, run the same command again, and look at what there is."""
    task, url = TASKS[kind], fresh(folder)
    first = begin(nursery, kind, url, at=at, side=side)
    assert first.wait() == crash.CODE, first.said()
    second = nursery.start(task, url)
    assert second.wait() == 0, second.said()
    seen = check_whole(url, task, getattr(tasks, task).trials)
    assert seen.answer() == expected


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", list(TASKS))
@pytest.mark.parametrize(
    ("first", "step"), [(1, EACH), pytest.param(1, 1, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_study_goes_on_from_every_point(nursery, points, tmp_path, kind, side, first, step):
    count, expected = points(kind)
    assert count > 20
    for at in range(first, count + 1, step):
        folder = tmp_path / str(at)
        folder.mkdir()
        try:
            check(nursery, folder, kind, at, side, expected)
        except AssertionError as error:
            raise AssertionError(f"{side} point {at} of {count}: {error}") from error
