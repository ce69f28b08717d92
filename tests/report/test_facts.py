"""What the page of a study shows, against what is stored."""

import math
import random

import pytest
import torch
from torch import nn

from droptune.errors import StudyError
from droptune.report.facts import AS_GIVEN, BEST, CONTROL, TUNED, gather
from droptune.space import AS_GIVEN as GIVEN
from droptune.space import CONTROL as NONE
from droptune.space import TUNED as BARE
from droptune.store import Store
from droptune.store.drawn import Drawn
from droptune.study import Study
from droptune.trainers import TableTrainer
from tests.report.storing import (
    BINS,
    RUN,
    add_block,
    add_trial,
    begin,
    plan,
    value,
    verdict,
    whole,
)


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'droptune.db'}"


def facts(url: str):
    with Drawn(url) as queries:
        return gather(queries, "mine")


def final(curve) -> float:
    return curve[-1]["metrics"]["val_loss"]


def test_the_names_of_the_arms_are_those_of_the_space():
    assert (CONTROL, AS_GIVEN, TUNED) == (NONE, GIVEN, BARE)


def test_the_pairs_are_the_differences_within_blocks(url):
    whole(url, blocks=4)
    pairs = facts(url).pairs
    assert list(pairs) == ["finalist 1", "finalist 2"]
    for block in range(1, 5):
        expected = value(0.25, 0.0, block) - value(0.0, 0.0, block)
        assert pairs["finalist 2"][block] == pytest.approx(expected)


def tuned_outcome(plan, seed, epoch):
    """Rates near 0.3 help a little; a learning rate apart from 0.01 costs."""
    rates = [entry.rate for entry in plan.values()]
    rng = random.Random(f"{seed} {rates}")
    off = abs(math.log10(plan.training.get("lr", 1e-3)) + 2)
    return {"val_loss": 2 - 0.02 * bool(rates) + 0.1 * off + rng.gauss(0, 0.01)}


@pytest.mark.parametrize("tune", [(), ("lr",)])
def test_the_pairs_of_a_study_are_those_that_its_verdict_counts(url, tune):
    def build():
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2))

    study = Study(
        "mine",
        build,
        example=torch.zeros(2, 4),
        trainer=TableTrainer.of(tuned_outcome),
        epochs=1,
        trials=20,
        confirm_blocks=5,
        tune=tune,
        store=url,
    )
    result = study.optimize()
    assert result.verdict.details["selection"]["blocks"]
    found = facts(url)
    pairs = found.pairs[found.compared]
    assert found.control == (TUNED if tune else CONTROL)
    assert sum(pairs.values()) / len(pairs) == pytest.approx(result.difference.mean)
    assert found.named("val_loss") == "val_loss"  # its own trainer says not what it is


def test_the_curves_are_those_of_winner_and_control_by_block(url):
    whole(url, blocks=3)
    found = facts(url)
    assert found.compared == "finalist 1" and found.confirmed
    assert list(found.curves) == ["no dropout", "finalist 1"]
    ends = [final(curve) for curve in found.curves["finalist 1"]]
    assert ends == [value(0.2, 0.0, block) for block in (1, 2, 3)]
    assert found.reliability["finalist 1"] == [BINS] * 3


def test_a_name_that_stood_for_another_plan_before_is_the_verdicts_plan(url):
    with Store(url) as store:
        study_id, study = begin(store, "mine")
        add_trial(store, study_id, study, (0.0, 0.0), name="no dropout")
        add_block(store, study_id, 1, {"no dropout": (0.0, 0.0), "finalist 1": (0.2, 0.0)})
        add_block(store, study_id, 2, {"no dropout": (0.0, 0.0), "finalist 1": (0.5, 0.0)})
        store.save_verdict(study_id, verdict(1))  # of the first of the two
    assert list(facts(url).pairs["finalist 1"]) == [1]


def test_a_run_that_failed_is_no_pair(url):
    whole(url, blocks=2)
    with Store(url) as store:
        for arm, rates, state in (("no dropout", 0.0, "complete"), ("finalist 1", 0.2, "failed")):
            run = store.start_run(1, phase="confirm", arm=arm, plan=plan(rates), block=3, **RUN)
            store.record([(run, 1, 1.0, {"val_loss": 1.0})])
            store.end_run(run, state, seconds=1.0, epochs=1)
        add_block(store, 1, 4, {"finalist 1": (0.2, 0.0)})  # no dropout is still to come
    assert list(facts(url).pairs["finalist 1"]) == [1, 2]


def test_where_nothing_helps_the_nearest_finalist_is_compared(url):
    whole(url)
    with Store(url) as store:
        row = verdict(4)
        row |= {"verdict": "no benefit", "plan": plan(0.0), "best": row["control"]}
        row["details"] = {"finalists": {"finalist 1": {"mean": 9.0}, "finalist 2": {"mean": None}}}
        store.save_verdict(1, row)
    assert facts(url).compared == "finalist 1"
    with Store(url) as store:
        store.save_verdict(1, row | {"verdict": "hurts"})
    assert facts(url).compared == "as given"


def test_a_verdict_that_lacks_its_details_can_be_read(url):
    whole(url)
    row = verdict(4) | {"verdict": "undecided", "best": None, "details": None, "control": None}
    with Store(url) as store:
        store.save_verdict(1, row)
    assert facts(url).compared is None


def test_before_a_confirmation_the_curves_are_those_of_trials(url):
    with Store(url) as store:
        study_id, study = begin(store, "mine")
        add_trial(store, study_id, study, (0.0, 0.0), name="no dropout")
        add_trial(store, study_id, study, (0.2, 0.0))
    found = facts(url)
    assert not found.confirmed and "nothing is confirmed" in found.said
    assert [final(found.curves[arm][0]) for arm in ("no dropout", BEST)] == [
        value(0.0, 0.0),
        value(0.2, 0.0),
    ]


def test_a_study_without_trials_has_no_curves(url):
    with Store(url) as store:
        begin(store, "mine")
    found = facts(url)
    assert (found.curves, found.pairs, found.trials, found.compared) == ({}, {}, [], None)


def test_an_unknown_study_is_said(url):
    whole(url)
    with Drawn(url) as queries, pytest.raises(StudyError, match="no study 'other'"):
        gather(queries, "other")
