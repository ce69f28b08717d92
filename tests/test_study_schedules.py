"""A study in which rates may move: what is tried, stored and refused."""

import json

import pytest
import torch

import droptune
from droptune.errors import StudyError
from droptune.plan import Plan
from droptune.store import Queries
from tests.small import Notes, fresh, rows, study, trials

MOVING = ["constant", "early", "late"]


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def test_schedules_are_tried_stored_and_gone_on_with(url):
    one = study(url, schedules=MOVING, trials=24, epochs=4, confirm_blocks=0, sampler="random")
    one.using(trials=6).optimize(progress=Notes())
    result = one.optimize(progress=Notes())
    assert trials(url) == [(number, "COMPLETE") for number in range(24)]
    plans = [json.loads(p) for (p,) in rows(url, "SELECT plan FROM droptune_run")]
    used = {e["schedule"] for plan in plans for e in plan["sites"].values()}
    assert used == set(MOVING)
    with Queries(url) as queries:
        assert queries.best("mine") == result.to_json()


def test_other_schedules_are_another_study(url):
    study(url, schedules=MOVING, trials=2, epochs=2, confirm_blocks=0).optimize(progress=Notes())
    with pytest.raises(StudyError, match="mine"):
        study(url, trials=4, epochs=2, confirm_blocks=0).optimize(progress=Notes())


def test_a_plan_that_moves_is_applied_and_moved_by_hand():
    # No ReLU at random weights: in 1 of 8 cases all three units behind it are 0 anyway.
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    droptune.apply(model, Plan({"0": ("standard", 0.9, "late", 0.5)}), seed=0)
    x = torch.ones(64, 3)
    assert torch.equal(model.train()(x), model.eval()(x))
    droptune.advance(model, 0.5)
    assert not torch.equal(model.train()(x), model.eval()(x))


@pytest.mark.parametrize("schedules", ["early", None, [1], 3])
def test_what_is_no_list_of_schedules_is_refused(url, schedules):
    with pytest.raises(StudyError, match=r"give a list, such as \['constant', 'early'\]"):
        study(url, schedules=schedules)
