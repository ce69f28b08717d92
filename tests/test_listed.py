"""Rates from lists: these plans and no other, and what is said of bad lists."""

import optuna
import pytest

from droptune import Plan, Space
from droptune.errors import SpaceError
from droptune.sites import Site
from tests.small import Notes, fresh, study

SITES = (
    Site("@input", "", "input", "input", "NF", 0, (6,)),
    Site("1", "1", "output", "hidden", "NF", 1, (9,)),
    Site("3", "3", "module", "head", "NF", 2, (9,), "standard", 0.25),
)
RATES = {"1": (0, 0.1, 0.5), "3": [0.0, 0.5]}
space = Space(SITES, rates=RATES)


def plans(space: Space) -> set[Plan]:
    """Return what a grid over the whole space suggests."""
    probe = optuna.trial.FixedTrial(space.encode(Plan.none()))
    space.suggest(probe)
    points = {name: list(d.choices) for name, d in probe.distributions.items()}
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(points))
    found = set()
    study.optimize(lambda trial: found.add(space.suggest(trial)) or 0.0)
    return found


def test_the_plans_are_all_combinations_of_the_listed_rates_and_no_other():
    made = {
        Plan({"1": ("standard", first), "3": ("standard", second)})
        for first in RATES["1"]
        for second in RATES["3"]
    }
    assert plans(space) == made and len(made) == 6


def test_a_listed_plan_comes_back_and_another_becomes_the_nearest():
    for plan in plans(space):
        assert space.suggest(optuna.trial.FixedTrial(space.encode(plan))) == plan
    other = Plan({"@input": ("standard", 0.3), "1": ("standard", 0.2), "3": ("standard", 0.4)})
    near = space.suggest(optuna.trial.FixedTrial(space.encode(other)))
    assert near == Plan({"1": ("standard", 0.1), "3": ("standard", 0.5)})


def test_fixed_plans_that_are_not_listed_are_left_out_but_the_controls_are_not():
    given = Plan({"3": ("standard", 0.25)})
    assert list(space.fixed_plans(given)) == ["no dropout", "as given", "0.5 before the head"]
    without_zero = Space(SITES, rates={"1": (0.1, 0.5), "3": (0.1, 0.5)})
    assert list(without_zero.fixed_plans(given)) == ["no dropout", "as given"]
    everywhere = dict.fromkeys((site.name for site in SITES), (0.1, 0.5))
    assert "0.1 everywhere" in Space(SITES, rates=everywhere).fixed_plans(given)


def test_a_space_of_lists_says_so_and_any_other_is_as_before():
    assert space.to_json()["encoding"] == "listed"
    assert space.to_json()["rates"] == {"1": [0.0, 0.1, 0.5], "3": [0.0, 0.5]}
    assert "rates" not in Space(SITES).to_json()


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({}, "rates {}: give a site -> its rates"),
        ((0, 0.3), "rates (0, 0.3): give a site -> its rates"),
        ({"2": (0, 0.3)}, "rates: unknown site '2'; known: 1, 3, @input"),
        ({"1": 0.3}, "rates of '1': 0.3 is no list of rates such as (0, 0.3)"),
        ({"1": ()}, "rates of '1': () is no list of rates such as (0, 0.3)"),
        ({"1": (0, 1)}, "rates of '1': rate 1 is outside [0, 1)"),
        ({"1": "0.3"}, "rates of '1': '0.3' is no list of rates such as (0, 0.3)"),
    ],
)
def test_what_is_no_list_of_rates_is_named(rates, said):
    with pytest.raises(SpaceError) as error:
        Space(SITES, rates=rates)
    assert str(error.value).startswith(said)


def test_a_network_is_trained_at_listed_rates(tmp_path):
    rates = {"2": (0.1, 0.3)}
    one = study(fresh(tmp_path), rates=rates, sampler="grid", trials=9, confirm_blocks=0)
    result = one.optimize(progress=Notes())
    assert [site.name for site in one.sites()] == ["@input", "2"]
    assert result.plan in {Plan({"2": ("standard", rate)}) for rate in (0, 0.1, 0.2, 0.3)}
    found = one.optimize(trials=10, progress=Notes())
    assert found.finished_before, "two rates, no dropout and the 0.2 of the model: no more"
