"""Encoding auto of droptune/encodings.py: shape, and offsets for steps that are finer."""

from dataclasses import replace

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from droptune import Plan, Space
from droptune.encodings import PARTS
from tests.test_space import SITES, asks, back


@given(
    means=st.fixed_dictionaries(
        {"rate.conv": st.integers(0, 60), "rate.input": st.integers(0, 30)}
    ),
    offsets=st.lists(st.integers(-30, 30), min_size=5, max_size=5),
    slope=st.integers(-10, 10),
)
def test_refined_plans_come_back_from_every_point_of_the_grid(means, offsets, slope):
    space = Space(SITES, "auto")
    names = [name for finer in space.finer.values() for name in finer]
    params = space.encode(Plan.none()) | {name: rate / 100 for name, rate in means.items()}
    params |= {name: off / 100 for name, off in zip(names, offsets, strict=True)}
    params |= {"dropout": "on", "slope": slope / 10}
    plan = space.suggest(optuna.trial.FixedTrial(params))
    assert back(space, plan) == plan


@pytest.mark.parametrize("encoding", ["uniform", "shape", "site", "auto"])
@pytest.mark.parametrize("sites", [SITES, SITES[5:]])
def test_the_rates_of_many_plans_are_those_that_are_suggested(encoding, sites):
    space = Space(sites, encoding)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    plans = [space.suggest(study.ask()) for _ in range(60)]
    params = [trial.params for trial in study.trials]
    found = space.rates_of({name: [one[name] for one in params] for name in space.spelled})
    names = [site.name for site in space.sites]
    rates = [[plan[name].rate if name in plan else 0.0 for name in names] for plan in plans]
    assert found == pytest.approx(np.array(rates), abs=1e-9)
    assert {plan == Plan.none() for plan in plans} == {True, False}, "gates off and on"


@pytest.mark.parametrize("slope", [-1.0, -0.3, 0.0, 0.5])
def test_auto_without_offsets_is_shape_and_comes_back_without_offsets(slope):
    shape, auto = Space(SITES, "shape"), Space(SITES, "auto")
    coarse = {"dropout": "on", "slope": slope, "rate.input": 0.1, "rate.conv": 0.3}
    coarse |= {"rate.hidden": 0.2, "rate.head": 0.5}
    neutral = {name: 0.0 for finer in auto.finer.values() for name in finer}
    plan = auto.suggest(optuna.trial.FixedTrial(coarse | neutral))
    assert plan == shape.suggest(optuna.trial.FixedTrial(coarse))
    assert {auto.encode(plan)[name] for name in neutral} == {0.0}


def test_auto_refines_groups_of_several_sites_in_few_parts():
    conv = [replace(SITES[1], name=f"c{i}", depth=i) for i in range(10)]
    assert Space(SITES, "auto").finer == {
        "rate.conv": ("offset.conv.1", "offset.conv.2", "offset.conv.3"),
        "rate.hidden": ("offset.hidden.1", "offset.hidden.2"),
    }
    space = Space(conv, "auto")
    assert [len(finer) for finer in space.finer.values()] == [PARTS]
    moved = {"dropout": "on", "rate.conv": 0.2, "slope": 0.0, "offset.conv.1": 0.1}
    params = space.encode(Plan.none()) | moved
    plan = space.suggest(optuna.trial.FixedTrial(params))
    raised = [plan[site.name].rate == 0.3 for site in conv]
    assert raised == sorted(raised, reverse=True)
    assert sum(raised) in (2, 3)
    assert Space(SITES[5:], "auto").finer == {}
    assert asks(Space(SITES[5:], "auto")) == asks(Space(SITES[5:], "shape"))
