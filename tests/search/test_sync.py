"""Several workers on one study: each takes over what the others have stored."""

import pytest
from optuna.trial import TrialState

from droptune.errors import StudyError
from droptune.plan import Plan
from droptune.samplers import SAMPLERS
from tests.search.tiny import TinySpace, loss


def train(search, asked):
    search.tell(asked.number, loss(asked.plan))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_searches_in_turns_ask_for_what_one_would_have(search, sampler):
    """But for CMA-ES, GP and the grid, whose state or order is a process's own."""
    one, *both = (search(name, sampler=sampler) for name in ("alone", "shared", "shared"))
    alone, shared = [], []
    for turn in range(14):
        asked = one.ask()
        alone.append(asked.plan)
        train(one, asked)
        other = both[turn % 2]
        other.sync()
        asked = other.ask()
        assert asked.number == turn
        shared.append(asked.plan)
        train(other, asked)
    if sampler in ("random", "tpe", "autodropout"):
        assert shared == alone
    assert len(set(shared)) == len(set(alone))


def test_what_another_has_told_is_known(search):
    one, other = search(), search()
    one.enqueue("none", Plan.none())
    asked = [one.ask() for _ in range(3)]
    other.sync()
    assert other.counts().running == 3
    assert other.orphans({0, 1, 2}) == [], "they are another worker's"
    train(one, asked[0])
    one.report(1, 9, 5.0)
    one.tell(asked[1].number, state="pruned")
    one.tell(asked[2].number, state="fail", message="diverged")
    other.sync()
    assert other.counts() == one.counts()
    assert other.best() == one.best()
    with pytest.raises(StudyError, match="it is COMPLETE"):
        other.tell(0, 1.0)


def test_a_plan_in_line_is_given_once(search):
    one, other = search(), search()
    one.enqueue("none", Plan.none())
    other.sync()
    assert other.ask().name == "none"
    one.sync()
    assert one.ask({0}).name is None
    assert one.orphans() == [0], "without knowing who lives, it is taken for left behind"


def test_an_orphan_is_adopted_and_can_then_be_told(search):
    one = search(pruner="median", rungs=(1, 9))
    asked = one.ask()
    one.report(asked.number, 1, 3.0)
    other = search(pruner="median", rungs=(1, 9))
    with pytest.raises(StudyError, match="not asked for again"):
        other.tell(asked.number, 1.0)
    assert other.orphans() == [0] and other.orphans({0}) == []
    assert other.adopt(0).plan == asked.plan
    other.recall(0)
    other.tell(0, state="pruned")
    one.sync()
    assert one.counts().pruned == 1
    trial = one._record._rdb.get_trial(one._record._ids[0])
    assert (trial.state, trial.value) == (TrialState.PRUNED, 3.0)


def test_the_same_end_told_by_two_is_told_once_and_another_end_is_an_error(search):
    one = search()
    for _ in range(2):
        one.ask()
    other = search()
    other.adopt(0), other.adopt(1)
    one.tell(0, 0.25)
    other.tell(0, 0.25)  # found as an ended run whose trial was not told
    one.tell(1, 0.25)
    with pytest.raises(StudyError, match="another process works on study"):
        other.tell(1, 0.5)


def test_a_trial_that_is_given_up_is_an_orphan(search):
    one = search()
    asked = one.ask()
    assert one.orphans() == []
    one.release(asked.number)
    assert one.orphans() == [asked.number]
    assert one.ask().number == asked.number


def test_of_what_others_have_told_only_the_new_curves_are_read(search):
    space, read = TinySpace(), []
    options = {"space": space, "pruner": "paired", "curves": lambda which: read.append(which) or {}}
    one, other = search(**options), search(**options)
    assert read == [None, None], "all, at the opening"
    for number in range(2):
        train(one, one.ask())
        other.sync()
        assert read[2 + number :] == [[number]]
    one.tell(one.ask().number, state="pruned")
    other.sync()
    assert read[4:] == [[2]]
    one.tell(one.ask().number, state="fail", message="diverged")
    other.sync()
    assert read[5:] == []
