"""How rates move over training: the factors, what entries say of them, and `advance`."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import droptune as dt
from droptune.errors import PlanError
from droptune.install import installed
from droptune.plan import Entry, Plan
from droptune.schedule import SCHEDULES, factor, progress

MOVING = sorted(set(SCHEDULES) - {"constant"})
parts = st.floats(0.0, 1.0)
fractions = st.floats(0.01, 1.0)


@given(st.sampled_from(MOVING), fractions, parts)
def test_factors_lie_between_0_and_1(schedule, fraction, at):
    assert 0.0 <= factor(schedule, fraction, at) <= 1.0


@given(st.sampled_from(MOVING), fractions, parts, parts)
def test_early_falls_and_the_others_rise(schedule, fraction, one, other):
    first, second = (factor(schedule, fraction, at) for at in sorted((one, other)))
    assert first >= second if schedule == "early" else first <= second


@pytest.mark.parametrize(
    ("schedule", "begin", "half", "end", "after"),
    [
        ("ramp", 0.0, 0.5, 1.0, 1.0),
        ("early", 1.0, 0.5, 0.0, 0.0),
        ("late", 0.0, 0.0, 1.0, 1.0),
        ("curriculum", 0.0, 0.99326, 0.99995, 1.0),
    ],
)
def test_factors_are_those_of_the_formulas(schedule, begin, half, end, after):
    found = [factor(schedule, 0.5, at) for at in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([begin, half, end, after], abs=1e-4)
    assert factor("constant", None, 0.3) == 1.0


def test_progress_runs_from_the_first_epoch_to_the_last():
    assert [progress(epoch, 5) for epoch in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert progress(7, 5) == 1.0
    assert progress(0, 1) == 0.0


def test_an_entry_knows_its_rate_at_any_time():
    entry = Entry("standard", 0.4, "early", 0.5)
    assert [entry.at(part) for part in (0.0, 0.25, 0.5, 1.0)] == [0.4, 0.2, 0.0, 0.0]
    assert Entry("standard", 0.4).at(0.7) == 0.4


def test_a_schedule_has_its_own_fraction_by_default_and_constant_has_none():
    assert Entry("standard", 0.1, "late").fraction == pytest.approx(1 / 6)
    assert Entry("standard", 0.1, "ramp").fraction == 1.0
    assert Entry("standard", 0.1, "constant", 0.3) == Entry("standard", 0.1)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, "half", float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(PlanError, match=r"^fraction .* of schedule 'late' is outside \(0, 1\]"):
        Entry("standard", 0.1, "late", fraction)


def test_plans_keep_their_schedules_through_json_and_text():
    plan = Plan({"0": ("standard", 0.2, "late", 0.25), "2": ("standard", 0.1)})
    assert Plan.from_json(plan.to_json()) == plan
    assert "fraction" not in plan.to_json()["sites"]["2"]
    assert str(plan) == "0: standard 0.2 late 0.25, 2: standard 0.1"
    assert plan.moves and not Plan({"2": ("standard", 0.1)}).moves


def rates(model: nn.Module) -> dict[str, float]:
    return {
        site: round(kind.rate.item(), 6)
        for site, dropout in installed(model).items()
        for kind in dropout.kinds.values()
    }


@pytest.mark.parametrize(
    "again", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_advance_moves_the_rates_and_read_still_tells_the_plan(again):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = Plan({"0": ("standard", 0.4, "ramp"), "1": ("gaussian", 0.2)})
    model = again(dt.apply(model, plan))
    assert rates(model) == {"0": 0.0, "1": 0.2}
    dt.advance(model, 0.5)
    assert rates(model) == {"0": 0.2, "1": 0.2}
    dt.advance(model, 1.0)
    assert rates(model) == {"0": 0.4, "1": 0.2}
    assert dt.read(model) == plan
    x = torch.ones(2, 4)
    assert torch.equal(model.eval()(x), dt.remove(model).eval()(x))
