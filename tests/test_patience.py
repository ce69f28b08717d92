"""droptune/patience.py: what more trials are expected to gain."""

from functools import partial

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from droptune.patience import LEAST, Outlook, Patience, look_ahead
from droptune.posterior import MOST

SPACE = {"x": FloatDistribution(0.0, 0.6, step=0.01), "y": FloatDistribution(1e-3, 1.0, log=True)}


def results(count, noise=0.05, weight=1.0, low=0.0, space=SPACE, seed=0):
    """Return results of random plans on a bowl whose bottom is at x = 0.2, y = 0.1.

    Args:
        count: how many.
        noise: deviation of a result.
        weight: of the plan.
        low: least x.
        space: of the parameters.
        seed: of all that is random.
    """
    draw, found = np.random.default_rng(seed), []
    for _ in range(count):
        x, y = draw.uniform(low, 0.6), 10 ** draw.uniform(-3, 0)
        bowl = (x - 0.2) ** 2 * 10 + (np.log10(y) + 1) ** 2 / 4
        params = {"x": x, "y": y} | {name: "a" for name in space if name not in SPACE}
        found.append((params, weight * bowl + noise * draw.standard_normal(), True))
    return found


def test_where_results_are_noise_alone_nothing_is_to_be_gained():
    ahead = look_ahead(SPACE, results(40, noise=0.1, weight=0.0), 10)
    assert ahead.over
    assert ahead.noise == pytest.approx(0.1, rel=0.4)


def test_a_search_that_has_not_come_near_the_bottom_is_worth_going_on():
    ahead = look_ahead(SPACE, results(15, noise=0.01, low=0.45), 10)
    assert not ahead.over
    assert ahead.gain > 0.1  # the nearest plan is (0.45 - 0.2)² · 10 = 0.6 above the bottom


def test_the_gain_falls_as_the_search_goes_on_and_the_end_comes():
    gains = [look_ahead(SPACE, results(count), 10).gain for count in (10, 40, 160)]
    assert gains[0] > gains[2] > 0
    assert look_ahead(SPACE, results(160), 10).over


def test_more_trials_gain_more():
    found = results(20, noise=0.02)
    few, many = (look_ahead(SPACE, found, trials).gain for trials in (1, 20))
    assert 0 < few < many


def test_the_gain_and_the_noise_are_in_the_unit_of_the_objective():
    found = results(20)
    small = look_ahead(SPACE, found, 10)
    large = look_ahead(SPACE, [(p, 1000 * value + 7, own) for p, value, own in found], 10)
    assert large.gain == pytest.approx(1000 * small.gain, rel=0.01)
    assert large.noise == pytest.approx(1000 * small.noise, rel=0.01)


@pytest.mark.parametrize("count", [25, 30, 35, 40])
def test_a_plan_that_diverged_almost_does_not_hide_what_is_to_be_gained(count):
    found = results(count)
    calm = look_ahead(SPACE, found, 10)
    wild = look_ahead(SPACE, [(found[0][0], 1e9, True), *found[1:]], 10)
    assert calm.gain / 5 < wild.gain < 5 * calm.gain


def test_equal_results_leave_nothing_to_gain():
    ahead = look_ahead(SPACE, [(params, 0.5, True) for params, *_ in results(20)], 10)
    assert ahead == Outlook(10, 0.0, 0.0)
    assert ahead.over


@pytest.mark.parametrize("trials", [3, 25])
def test_nothing_is_said_before_enough_of_the_samplers_plans_are_known(trials):
    enough = max(LEAST, trials)
    fixed = [(params, value, False) for params, value, _ in results(8, seed=1)]
    assert look_ahead(SPACE, fixed + results(enough - 1), trials) is None
    assert look_ahead(SPACE, fixed + results(enough), trials) is not None


def test_what_the_sampler_has_not_varied_stays_where_it_is():
    kinds = SPACE | {"kind": CategoricalDistribution(["a", "b"])}
    found = results(30, space=kinds)
    other = [({**params, "kind": "b"}, value - 3, False) for params, value, _ in results(3, seed=2)]
    gains = [look_ahead(kinds, found + extra, 10).gain for extra in ([], other)]
    assert gains[1] < gains[0]  # the fixed plans of kind b are out of reach for further trials
    free = [({**params, "kind": "ab"[i % 2]}, value, True) for i, (params, value, _) in
            enumerate(found)]  # fmt: skip
    assert look_ahead(kinds, free, 10).gain > 0


def test_the_same_results_say_the_same():
    assert look_ahead(SPACE, results(20), 10) == look_ahead(SPACE, results(20), 10)


def test_of_very_many_results_the_best_and_the_latest_count():
    many = results(MOST + 100)
    latest = sorted(range(len(many)), key=lambda i: many[i][1])[: MOST // 2]
    kept = [many[i] for i in sorted({*latest, *range(len(many) - MOST // 2, len(many))})]
    assert look_ahead(SPACE, many, 5) == look_ahead(SPACE, kept, 5)


def test_patience_looks_once_for_each_number_of_results(monkeypatch):
    calls = []
    monkeypatch.setattr("droptune.patience.look_ahead", lambda *args: calls.append(args))
    patience = Patience(10)
    for count in (11, 11, 12):
        patience.outlook(SPACE, count, partial(results, count))
    assert [len(found) for _, found, _ in calls] == [11, 12]
    assert Patience(0).outlook(SPACE, 40, partial(results, 40)) is None
    assert len(calls) == 2


def test_the_line_names_trials_gain_and_unit():
    ahead = Outlook(10, 0.000314, 0.01)
    assert ahead.line("nats") == "expected gain of 10 more trials: 0.00031 nats"
    assert ahead.line() == "expected gain of 10 more trials: 0.00031"
