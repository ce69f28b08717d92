"""What may be asked for as objectives, and what they make of a study's definition."""

import pytest

from droptune.errors import StudyError
from tests.small import mlp, study

TWO = ("val_loss", "val_calibration_error")


def gap(output, target):
    return 0.0


def own(model, *, seed, device):
    yield {"score": 1.0, "cost": 2.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": ()}, "objective (): give a metric"),
        ({"objective": ("loss", "val_loss")}, "'val_loss' is given twice"),
        ({"objective": ("loss", "gap")}, "unknown objective 'gap'; allowed: val_loss"),
        ({"objective": ("loss", 3)}, "objective 3: give a name"),
        ({"objective": TWO, "direction": "minimize"}, "there are 2 objectives; give one for each"),
        ({"objective": TWO, "direction": ("up", None)}, "unknown direction 'up'; allowed"),
        (
            {"objective": TWO, "direction": (None, "maximize")},
            "'maximize' contradicts objective 'val_calibration_error'",
        ),
        ({"objective": ("loss", gap)}, "'val_gap' is a function of your own; say whether"),
        ({"objective": "loss", "direction": ("minimize", None)}, "there are 1 objectives"),
        ({"objective": TWO, "sampler": "cmaes"}, "take one of tpe, gp, qmc, random, grid"),
        ({"objective": TWO, "sampler": "autodropout"}, "follows a single objective"),
        ({"objective": TWO, "pruner": "median"}, "'median' follows a single objective"),
        ({"objective": TWO, "strategy": "pbt", "trials": 10}, "take strategy 'search'"),
        ({"objective": TWO, "encoding": "auto"}, "take encoding 'shape'"),
        ({"objective": TWO, "patience": 5}, "patience 5 follows a single objective"),
        ({"objective": TWO, "margin": 0.01}, "is in the unit of one objective"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(settings, message):
    with pytest.raises(StudyError) as error:
        study("sqlite:///never.db", **settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_names_and_directions_of_several():
    several = study(
        "sqlite:///never.db", objective=["loss", "f1", gap], direction=(None, None, "maximize")
    )
    assert several.objectives == ("val_loss", "val_f1", "val_gap")
    assert several.directions == ("minimize", "maximize", "maximize")
    definition = several.definition()
    assert definition["objective"] == ["val_loss", "val_f1", "val_gap"]
    assert definition["direction"] == ["minimize", "maximize", "maximize"]
    assert definition["training"]["objective_function"][:2] == [None, None]
    assert definition["training"]["objective_function"][2].endswith("test_objectives.gap")
    assert [metric.name for metric in several.task({}).metrics] == ["f1", "gap"]


def test_one_objective_is_defined_as_it_always_was():
    one, listed = (study("sqlite:///never.db", objective=o) for o in ("f1", ["f1"]))
    assert one.objective == listed.objective == "val_f1"
    assert one.definition() == listed.definition()
    assert one.definition()["objective"] == "val_f1"
    assert one.definition()["direction"] == "maximize"
    assert "objective_function" not in one.definition()["training"]


def test_the_metrics_of_a_loop_of_ones_own_keep_their_names():
    found = study(
        "sqlite:///never.db", model=mlp, train=own, objective=("score", "cost"),
        direction=("maximize", None),
    )  # fmt: skip
    assert found.objectives == ("score", "cost")
    assert found.directions == ("maximize", "minimize")
