"""Several objectives in the search: the front, the finalists of it, and the stored trials."""

import math

import numpy as np
import optuna
import pytest

from droptune.errors import StudyError
from droptune.front import front
from droptune.plan import Plan
from droptune.ranking import spread
from tests.search.tiny import TinySpace, rate, storage, stored

BOTH = ("minimize", "maximize")


def both(plan):
    """Two objectives at odds: the first wants a low rate in front, the second a high one."""
    front_rate, back = rate(plan, "0"), rate(plan, "2")
    return 1 + front_rate + (back - 0.3) ** 2, front_rate - (back - 0.3) ** 2


def searched(search, trials=30, **options):
    found = search(direction=BOTH, **options)
    found.enqueue("no dropout", Plan.none())
    while found.finished < trials and (asked := found.ask()) is not None:
        found.tell(asked.number, both(asked.plan))
    return found


def dominated(one, other):
    """Tell whether `other` is nowhere worse than `one`, and somewhere better; small is good."""
    return all(b <= a for a, b in zip(one, other, strict=True)) and other != one


def test_the_front_is_what_nothing_dominates():
    draw = np.random.default_rng(0)
    values = [tuple(map(float, row)) for row in draw.integers(0, 8, (60, 3))]
    losses = [(a, -b, c) for a, b, c in values]
    expected = [i for i, a in enumerate(losses) if not any(dominated(a, b) for b in losses)]
    assert front(values, ("minimize", "maximize", "minimize")) == expected
    assert 1 < len(expected) < 60


def test_the_best_in_each_objective_come_first_then_what_is_nearest_to_the_ideal():
    values = [(0.0, 10.0), (4.0, 6.0), (2.0, 2.0), (10.0, 0.0), (1.0, 9.0), (9.0, 9.0)]
    both_small = ("minimize", "minimize")
    assert spread(values, both_small, 3) == [0, 3, 2]
    # (4, 6) is dominated by (2, 2); it comes when the front is used up, before (9, 9).
    assert spread(values, both_small, 10) == [0, 3, 2, 4, 1, 5]
    mirrored = [(a, -b) for a, b in values]
    assert spread(mirrored, ("minimize", "maximize"), 3) == [0, 3, 2]
    # The unit of an objective does not matter.
    assert spread([(a, 1000 * b) for a, b in values], both_small, 10) == [0, 3, 2, 4, 1, 5]
    assert spread([(1.0, 1.0)] * 3, both_small, 2) == [0, 1]
    assert spread([], both_small, 3) == []


@pytest.mark.parametrize("sampler", ["tpe", "gp", "qmc", "random"])
def test_the_finalists_are_of_optunas_front_and_survive_a_restart(search, url, sampler):
    found = searched(search, sampler=sampler)
    with storage(url) as opened:
        study = optuna.load_study(study_name="s", storage=opened)
        best = {trial.number for trial in study.best_trials}
        assert [d.name for d in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    k = min(3, len(best))
    finalists = found.finalists(k)
    assert {number for number, *_ in finalists} <= best
    assert finalists[0] == found.best() and finalists[0][2] == both(finalists[0][1])[0]
    seconds = found.finalists(k, objective=1)
    assert [one[:2] for one in seconds] == [one[:2] for one in finalists]
    assert [one[2] for one in seconds] == [both(plan)[1] for _, plan, _ in finalists]
    found.close()
    assert search(direction=BOTH, sampler=sampler).finalists(k) == finalists


def test_what_is_excluded_is_not_on_the_front(search):
    found = searched(search)
    every = found.finalists(100)
    assert len(every) == len({plan for _, plan, _ in every}) == len(found.ranked(100))
    rest = found.finalists(2, exclude=[every[0][1]])
    assert every[0] not in rest and len(rest) == 2


def test_a_restart_goes_on_with_a_new_draw(search, url):
    searched(search, 12, sampler="tpe").close()
    searched(search, 20, sampler="tpe")
    values = [tuple(trial.values) for trial in stored(url)]
    assert len(values) == 20 == len(set(values))


def test_a_trial_without_one_of_its_values_has_failed(search, url):
    found = search(direction=BOTH)
    asked = found.ask()
    with pytest.raises(StudyError, match="told with 1 values; give 2, one for each objective"):
        found.tell(asked.number, 0.5)
    found.tell(asked.number, (0.5, math.nan))
    (trial,) = stored(url)
    assert (
        trial.state.name == "FAIL" and trial.user_attrs["message"] == "the objective was 0.5, nan"
    )
    assert found.best() is None and found.finalists(3) == []


def test_the_stored_directions_stay(search):
    search(direction=BOTH).close()
    with pytest.raises(StudyError, match="minimize and maximize, not to minimize; give"):
        search(direction="minimize")


@pytest.mark.parametrize(
    "options", [{"sampler": "cmaes"}, {"sampler": "autodropout"}, {"pruner": "median"}]
)
def test_what_follows_one_objective_is_refused(search, url, options):
    with pytest.raises(StudyError, match="there are 2; take one of tpe, gp, qmc, random, grid"):
        search(direction=BOTH, rungs=(3, 9), space=TinySpace(), **options)
