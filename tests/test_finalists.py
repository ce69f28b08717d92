"""droptune/finalists.py: which plans go to confirmation."""

import numpy as np
import optuna
import pytest
from optuna.trial import FixedTrial

from droptune import Plan, Space
from droptune.finalists import expected, promising
from droptune.landscape import Landscape
from droptune.plan import Entry
from droptune.posterior import FEWEST, MOST
from droptune.sites import Site

SITES = tuple(Site(str(i), str(i), "output", "hidden", "NF", i, (9,)) for i in range(3))


def landscape(encoding):
    """Return where the plans of three sites lie."""
    space = Space(SITES, encoding)
    probe = FixedTrial(space.encode(Plan.none()))
    space.suggest(probe)
    return Landscape(space, probe.distributions)


def at(rates):
    """Return the parameters of plans of one rate everywhere."""
    return [{"dropout": "on", "rate": rate} for rate in rates]


ONE = landscape("uniform")


def bowl(x):
    """Return the expected objective of a plan; its bottom is at 0.2."""
    return 10 * (np.asarray(x) - 0.2) ** 2


def tried(values):
    """Return trials with these values, each of its own plan, the best value first."""
    return sorted(
        [(i, Plan({"0": Entry("standard", (i + 1) / 100)}), v) for i, v in enumerate(values)],
        key=lambda one: one[2],
    )


def test_the_most_promising_plan_is_better_than_the_luckiest():
    draw, regrets = np.random.default_rng(0), []
    for _ in range(20):
        rates = draw.uniform(0, 0.6, 40)
        values = bowl(rates) + 0.4 * draw.standard_normal(40)
        hopes = expected(ONE, at(rates), values.tolist())
        regrets.append([bowl(rates[np.argmin(by)]) for by in (values, hopes)])
    lucky, promised = np.mean(regrets, axis=0)
    assert promised < 0.7 * lucky


def test_what_is_expected_is_in_the_order_and_the_unit_of_the_results():
    rates = np.linspace(0, 0.6, 30)
    hopes = expected(ONE, at(rates), (1000 * bowl(rates) + 7).tolist())
    assert hopes[10] == pytest.approx(7, abs=20)
    assert np.argsort(hopes)[:3] == pytest.approx([10, 11, 9], abs=2)


def test_few_results_are_taken_as_they_are():
    values = [3.0, 1.0, 2.0] * 3
    assert len(values) < FEWEST
    assert expected(ONE, at([0.1] * 9), values) == values


def test_of_very_many_results_each_has_an_expectation():
    rates = np.random.default_rng(0).uniform(0, 0.6, MOST + 40)
    hopes = expected(ONE, at(rates), bowl(rates).tolist())
    assert len(hopes) == MOST + 40
    assert np.max(np.abs(np.array(hopes) - bowl(rates))[rates < 0.4]) < 0.1


def test_finalists_are_the_most_promising_and_the_best_value_is_among_them():
    found = tried([5.0, 1.0, 2.0, 3.0, 4.0])  # the luckiest is trial 1
    hopes = {0: 0.1, 1: 0.9, 2: 0.3, 3: 0.2, 4: 0.4}
    assert [number for number, *_ in promising(found, hopes, 1)] == [0]
    assert [number for number, *_ in promising(found, hopes, 2)] == [0, 1]
    assert [number for number, *_ in promising(found, hopes, 3)] == [0, 3, 1]
    assert [number for number, *_ in promising(found, hopes, 99)] == [0, 3, 2, 4, 1]
    assert promising([], {}, 3) == []
    assert promising(found, hopes, 0) == []


def test_a_trait_of_one_lucky_plan_is_not_believed_where_its_neighbours_are_alike():
    """Three sites, of which the mean counts: what differs at a site alone is luck."""
    draw, found = np.random.default_rng(0), landscape("site")
    rates = draw.uniform(0, 0.6, (60, 3))
    values = bowl(rates.mean(1)) + 0.1 * draw.standard_normal(60)
    params = [{"dropout": "on"} | {f"rate.{i}": r for i, r in enumerate(row)} for row in rates]
    hopes = expected(found, params, values.tolist())
    lucky, chosen = (bowl(rates.mean(1))[np.argmin(by)] for by in (values, hopes))
    assert chosen < lucky / 2


def test_of_two_plans_of_like_results_the_one_whose_neighbours_are_known_is_ahead():
    rates = [*np.linspace(0.05, 0.15, 15), 0.6]
    hopes = expected(ONE, at(rates), [0.1, -0.1, 0.0] * 5 + [0.0])
    assert hopes[-1] == max(hopes)


SPACES = [
    {"encoding": "shape", "kinds": ("standard", "gaussian"), "schedules": ("constant", "ramp")},
    {"encoding": "auto", "tune": {"lr": 1e-3}, "terms": ("none", "r_drop")},
    {"rates": {"0": (0.0, 0.5, 0.95), "2": (0.0, 0.1)}},
]


@pytest.mark.parametrize("options", SPACES)
def test_plans_of_every_space_have_expectations(options):
    """Much dropout at the first site is bad, whatever else a plan has; results are noisy."""
    space, draw = Space(SITES, **options), np.random.default_rng(0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    plans = [space.suggest(study.ask()) for _ in range(60)]
    params = [trial.params for trial in study.trials]
    known = Landscape(space, study.trials[0].distributions)
    truth = np.array([plan["0"].rate if "0" in plan else 0.0 for plan in plans])
    hopes = np.array(expected(known, params, truth + 0.2 * draw.standard_normal(60)))
    assert np.corrcoef(hopes, truth)[0, 1] > 0.6
    assert truth[np.argmin(hopes)] < 0.2
