"""Workers are killed at random moments; what they leave is one whole study."""

import random
import time

import pytest

from tests.faults import tasks
from tests.faults.nursery import Nursery
from tests.faults.whole import check_whole

#: Studies whose answer does not depend on who trains what: no pruner compares, and the sampler
#: looks at no result.
REPEATABLE = ("serial", "many", "several", "function")


def kill_at_random(nursery: Nursery, task: str, url: str, kills: int) -> int:
    """Run a study with three workers, of which so many are killed and replaced.

    Its epochs are slow enough that it lasts longer than the kills take.

    Returns:
        How many could be killed before the study ended.
    """
    seed = random.randrange(10**6)
    print(f"seed of the kills: {seed}")  # pytest shows it where the test fails
    dice, killed = random.Random(seed), 0
    slow = {"before": "tests.faults.alter:change", "slow": 0.15}
    crew = [nursery.start(task, url, **slow) for _ in range(3)]
    while killed < kills:
        time.sleep(dice.uniform(0.05, 0.4))
        running = [worker for worker in crew if worker.code is None]
        if not running:
            break
        victim = dice.choice(running)
        victim.kill()
        killed += victim.code == -9
        crew[crew.index(victim)] = nursery.start(task, url, **slow)
    for worker in crew:
        assert worker.wait() == 0, worker.said()
    return killed


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "kills"),
    [
        ("serial", 5),
        ("fused", 5),
        *(pytest.param(task, 5, marks=SLOW) for task in ("pruned", "several", "function")),
        pytest.param("many", 30, marks=SLOW),
    ],
)
def test_workers_are_killed_and_the_study_is_whole(nursery, url, task, kills, undisturbed):
    killed = kill_at_random(nursery, task, url, kills)
    seen = check_whole(url, task, getattr(tasks, task).trials)
    assert killed == kills, "the study ended before all could be killed"
    if task in REPEATABLE:
        assert seen.answer() == undisturbed(task)
