"""The table trainer: it keeps to the contract, and what is said of an outcome that fails."""

import json
import math
import zlib

import numpy as np
import pytest

from droptune.errors import PlanError, StudyError, TrainingError
from droptune.plan import Plan
from droptune.trainers import TableTrainer
from tests.trainers.test_contract import WRECK, TrainerContract

LIGHT = Plan({"1": ("standard", 0.25)})


def lookup(task):
    """Return outcomes that fall with the epoch, differ by plan and seed, and may diverge."""

    def outcome(plan, seed, epoch):
        number = zlib.crc32(json.dumps(plan.to_json()).encode())
        level = math.exp(-0.3 * epoch) * np.random.default_rng([seed, number]).uniform(1, 2)
        scores = {"train_loss": math.nan if plan == WRECK else level}
        for name in ("val", "test"):
            if getattr(task.data, name) is not None:
                scores |= {f"{name}_loss": level, f"{name}_accuracy": 1 / (1 + level)}
        return scores

    return outcome


class TestTable(TrainerContract):
    device = "cpu"

    def build(self, task, slots):
        return TableTrainer(task, lookup(task), slots, self.device)

    def start_diverging(self, trainer, slot):
        trainer.start(slot, WRECK)


def started(make_task, outcome, **changes):
    trainer = TableTrainer(make_task(**changes), outcome, 2)
    trainer.begin(4, clock=3)
    trainer.start(0, LIGHT)
    return trainer


def test_the_outcome_is_asked_for_plan_seed_and_the_members_own_epoch(make_task):
    asked = []
    trainer = started(make_task, lambda *asked_for: asked.append(asked_for) or {"val_loss": 1})
    trainer.epoch()
    trainer.start(1, Plan.none())
    trainer.epoch()
    assert asked == [(LIGHT, 4, 1), (LIGHT, 4, 2), (Plan.none(), 4, 1)]
    assert trainer.clock == 5


def test_metrics_are_sorted_into_train_loss_validation_and_test(make_task):
    outcome = {"train_loss": 2, "val_loss": np.float64(0.5), "reward": 7, "test_loss": 0.25}
    trainer = started(make_task, lambda plan, seed, epoch: outcome)
    scores = trainer.epoch()[0]
    assert scores.train_loss == 2.0
    assert scores.metrics == {"val_loss": 0.5, "reward": 7.0}
    assert trainer.test() == {0: {"test_loss": 0.25}}


def test_an_outcome_that_is_missing_ends_the_member_and_no_other(make_task):
    table = {Plan.none(): 0.5}
    trainer = started(make_task, lambda plan, seed, epoch: {"val_loss": table[plan]})
    trainer.start(1, Plan.none())
    for _ in range(2):
        scores = trainer.epoch()
        assert scores[0].failed.startswith("the outcome raised KeyError: ")
        assert scores[1].failed is None and scores[1].metrics == {"val_loss": 0.5}


def test_an_error_of_droptunes_own_goes_up(make_task):
    def outcome(plan, seed, epoch):
        raise StudyError("the table has four seeds")

    with pytest.raises(StudyError, match="four seeds"):
        started(make_task, outcome).epoch()


@pytest.mark.parametrize(
    ("reported", "said"),
    [
        (0.5, "the outcome is float; give a dict such as {'val_loss': 0.1}"),
        ({"val_loss": "low"}, "the outcome is 'val_loss': str, which is not one number"),
    ],
)
def test_what_is_no_dict_of_numbers_is_named(make_task, reported, said):
    with pytest.raises(TrainingError) as error:
        started(make_task, lambda plan, seed, epoch: reported).epoch()
    assert str(error.value) == said


def test_what_only_a_trained_member_has_is_empty(make_task):
    trainer = started(make_task, lambda *_: {})
    assert (trainer.fit(0), trainer.reliability(0)) == ({}, [])


def test_a_copy_goes_on_at_the_age_of_its_source(make_task):
    asked = []
    trainer = started(make_task, lambda *asked_for: asked.append(asked_for) or {"val_loss": 1})
    trainer.epoch()
    trainer.copy(0, 1, Plan.none())
    trainer.epoch()
    assert asked[1:] == [(LIGHT, 4, 2), (Plan.none(), 4, 2)]
    with pytest.raises(TrainingError, match="slot 1 is taken"):
        trainer.copy(0, 1, LIGHT)


def test_a_term_is_known_where_the_task_has_it(make_task):
    plan = Plan({"1": ("standard", 0.25)}, "r_drop")
    with pytest.raises(PlanError, match="r_drop is not among this task's terms"):
        started(make_task, lambda *_: {"val_loss": 1}).start(1, plan)
    trainer = started(make_task, lambda *_: {"val_loss": 1}, terms=["r_drop"])
    trainer.start(1, plan)
    assert trainer.epoch()[1].failed is None


@pytest.mark.parametrize("make", [TableTrainer.of, lambda outcome: TableTrainer(None, outcome)])
def test_an_outcome_is_a_function(make):
    with pytest.raises(TrainingError, match="outcome is a dict; give TableTrainer.of a function"):
        make({"val_loss": 1})
