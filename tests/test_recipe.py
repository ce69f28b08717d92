"""What plans and spaces say of training besides dropout."""

import copy
import pickle

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from droptune import Plan, Space, apply, read
from droptune.errors import PlanError, SpaceError
from droptune.recipe import TRAINING, range_of
from droptune.report.text import plan_line
from droptune.sites import Site

SITES = (
    Site("fc1", "fc1", "output", "hidden", "NF", 0, (9,)),
    Site("fc2", "fc2", "output", "hidden", "NF", 1, (9,)),
)
OWN = {"lr": 1e-3, "weight_decay": 0.01, "label_smoothing": 0.0}
LIGHT = {"fc1": ("standard", 0.2)}


def back(space, plan):
    return space.suggest(optuna.trial.FixedTrial(space.encode(plan)))


# The plan


def test_training_is_part_of_what_a_plan_is():
    plan = Plan(LIGHT, training={"weight_decay": 0, "lr": 0.01})
    assert list(plan.training.items()) == [("lr", 0.01), ("weight_decay", 0.0)]
    twins = [Plan.from_json(plan.to_json()), pickle.loads(pickle.dumps(plan)), copy.copy(plan)]
    assert all(twin == plan and hash(twin) == hash(plan) for twin in twins)
    others = {Plan(LIGHT), Plan(LIGHT, training={"lr": 0.02, "weight_decay": 0}), Plan.none()}
    assert plan not in others and Plan(training={"lr": 0.01}) not in others


def test_a_plan_that_says_nothing_of_training_is_written_as_before():
    assert Plan(LIGHT, training={"label_smoothing": 0.0}).to_json() == Plan(LIGHT).to_json()
    assert set(Plan(LIGHT).to_json()) == {"version", "sites"}


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"learning_rate": 1}, "unknown training 'learning_rate'"),
        ({"lr": -1}, "lr -1 of a plan: a number from 0 is needed"),
        ({"lr": float("nan")}, "lr nan"),
        ({"weight_decay": float("inf")}, "weight_decay inf"),
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 of a plan: a number from 0 and below 1"),
        ({"lr": "fast"}, "lr 'fast'"),
        ({"lr": True}, "lr True"),
        ([("lr", 1)], "give names and numbers"),
    ],
)
def test_what_training_cannot_be_is_told(training, said):
    with pytest.raises(PlanError, match=said):
        Plan(LIGHT, training=training)


def test_a_line_says_how_a_plan_is_trained():
    plan = Plan(LIGHT, training={"lr": 0.003})
    assert plan_line(plan.to_json()) == str(plan) == "fc1: standard 0.2; lr 0.003"
    bare = Plan(training={"label_smoothing": 0.1})
    assert plan_line(bare.to_json()) == str(bare) == "no dropout; label_smoothing 0.1"


def test_putting_a_plan_on_a_model_reminds_of_how_it_is_trained():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    plan = Plan({"1": ("standard", 0.2)}, training={"lr": 0.003})
    with pytest.warns(UserWarning, match="training with lr 0.003, which a model cannot set"):
        assert read(apply(model, plan)) == Plan(plan)


# The space


def test_what_is_tuned_joins_the_parameters_around_the_studys_own_values():
    params = Space(SITES, tune=OWN).encode(Plan.none())
    assert params.items() >= OWN.items()
    assert not set(OWN) & set(Space(SITES).encode(Plan.none()))
    assert range_of("lr", 1e-3) == (1e-4, 1e-2, None)
    assert range_of("weight_decay", 0.0).low > 0, "it is tried by ratio"


@given(st.sampled_from([0.0, 0.1, 0.3]), st.floats(1e-4, 1e-2), st.floats(0, 0.2))
def test_a_plan_comes_back_from_its_parameters(rate, lr, smoothing):
    training = {"lr": float(f"{lr:.3g}"), "label_smoothing": round(smoothing, 2)}
    training = {name: value for name, value in training.items() if value != OWN[name]}
    plan = Plan({site.name: ("standard", rate) for site in SITES}, training=training)
    assert back(Space(SITES, "uniform", tune=OWN), plan) == plan


def test_the_studys_own_values_are_not_said():
    own = {"lr": 0.00123456, "weight_decay": 0.01}
    space = Space(SITES, tune=own)
    assert back(space, Plan.none()) == Plan.none()
    assert back(space, Plan(training={"lr": 5.0})).training == {"lr": 0.0123}, "the nearest"


def test_one_trial_in_three_is_without_dropout_where_training_is_tuned():
    space = Space(SITES, tune=OWN)
    bare = [number for number in range(12) if space.given(number)]
    assert bare == [0, 3, 6, 9]
    given = space.given(3)
    assert given["dropout"] == "off" and not set(given) & set(OWN)
    assert all(value == 0 for name, value in given.items() if name.startswith("rate"))
    assert not any(map(Space(SITES).given, range(12)))


def test_the_definition_names_what_is_tuned_only_where_something_is():
    assert "tune" not in Space(SITES).to_json()
    assert Space(SITES, tune=OWN).to_json()["tune"] == list(TRAINING)


def test_what_cannot_be_tuned_is_told():
    with pytest.raises(SpaceError, match="cannot tune 'momentum'"):
        Space(SITES, tune={"momentum": 0.9})
    with pytest.raises(SpaceError, match="lr 0 cannot be tuned"):
        Space(SITES, tune={"lr": 0})
