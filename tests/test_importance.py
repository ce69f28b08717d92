"""Importance: what mattered is found, and what cannot be told is said."""

import random

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

from droptune.importance import FEWEST, importance, place_of, places_of
from droptune.recipe import TRAINING

SPACE = {
    "dropout": CategoricalDistribution(["on", "off"]),
    "rate.layers.0": FloatDistribution(0.0, 0.6, step=0.01),
    "rate.layers.1": FloatDistribution(0.0, 0.6, step=0.01),
    "kind.layers.1": CategoricalDistribution(["standard", "gaussian"]),
    "slope": FloatDistribution(-1.0, 1.0, step=0.1),
}
PLACES = ["layers.0", "layers.1"]


def trials(number: int, loss) -> list[dict]:
    """Return trials with random parameters, and loss(first rate, second rate) as value."""
    draw = random.Random(0)
    rows = []
    for n in range(number):
        rates = [draw.randrange(61) / 100 for _ in range(2)]
        stored = [0.0, *rates, float(draw.randrange(2)), draw.randrange(-10, 11) / 10]
        params = {
            name: (v, distribution_to_json(d))
            for (name, d), v in zip(SPACE.items(), stored, strict=True)
        }
        rows.append({"number": n, "value": loss(*rates), "params": params})
    return rows


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_the_parameter_that_decides_is_the_most_important(direction, sign):
    found = importance(trials(60, lambda a, b: sign * (b - 0.3) ** 2), direction, PLACES)
    assert next(iter(found.parameters)) == "rate.layers.1"
    assert found.parameters["rate.layers.1"] > 0.5
    assert sum(found.parameters.values()) == pytest.approx(1)
    assert found.trials == 60 and found.remark is None


def test_the_direction_counts():
    rows = trials(60, lambda a, b: (b - 0.3) ** 2)
    one, other = (importance(rows, d, PLACES).parameters for d in ("minimize", "maximize"))
    assert one != other


def test_places_sum_what_acts_on_them_and_the_gate_is_left_out():
    found = importance(trials(60, lambda a, b: b), "minimize", PLACES)
    assert set(found.parameters) == set(SPACE) - {"dropout"}
    assert set(found.places) == {"layers.0", "layers.1", "all sites"}
    both = found.parameters["rate.layers.1"] + found.parameters["kind.layers.1"]
    assert found.places["layers.1"] == pytest.approx(both)
    assert list(found.places.values()) == sorted(found.places.values(), reverse=True)


def test_where_training_is_tuned_the_gate_tells_and_training_is_a_place():
    rows = trials(60, lambda a, b: 0.0)
    lr = distribution_to_json(FloatDistribution(1e-4, 1e-2, log=True))
    for row in rows:
        off = row["number"] % 3 == 0
        row["params"]["dropout"] = (float(off), row["params"]["dropout"][1])
        row["params"]["lr"] = (1e-4 * (1 + row["number"]), lr)
        row["value"] = 0.001 * row["number"] + off
    found = importance(rows, "minimize", PLACES)
    assert found.parameters["dropout"] > 0
    assert found.places["training"] == found.parameters["lr"]


def test_a_parameter_that_some_trials_lack_does_no_harm():
    rows = trials(60, lambda a, b: b)
    for row in rows[:20]:
        del row["params"]["slope"]
    assert importance(rows, "minimize", PLACES).remark is None


def test_too_few_trials_are_said():
    few = importance(trials(FEWEST - 1, lambda a, b: b), "minimize", PLACES)
    assert (few.parameters, few.places) == ({}, {})
    assert f"{FEWEST - 1} complete trials, {FEWEST} are needed" in few.remark
    assert importance(trials(FEWEST, lambda a, b: b), "minimize", PLACES).parameters


def test_equal_values_are_said():
    assert "the same value" in importance(trials(30, lambda a, b: 1.0), "minimize", []).remark


def test_no_trial_at_all_is_said():
    assert "0 complete trials" in importance([], "minimize", []).remark


def test_the_place_is_the_longest_name_that_a_parameter_ends_in():
    assert place_of("rate.layers.0", ["0", "layers.0"]) == "layers.0"
    assert place_of("drop_block.size.conv", ["conv"]) == "conv"
    assert place_of("slope", ["slope"]) == "all sites"
    assert {place_of(name, []) for name in TRAINING} == {"training"}
    assert place_of("term", []) == place_of("term.weight.r_drop", []) == "loss"


def test_places_are_sites_roles_and_places_inside_layers():
    sites = [{"name": "a", "role": "hidden"}, {"name": "b@attention", "role": "attention"}]
    assert places_of(sites) == ["a", "b@attention", "hidden", "attention", "attention@attention"]
