"""Population-based training: who gives way to whom, with which rates, and what becomes of it."""

import json
from random import Random

import pytest
import torch

from droptune import Plan
from droptune.errors import PlanError, StudyError, TrainingError
from droptune.optimize import block_seed
from droptune.plan import Entry
from droptune.population import FACTORS, Candidate, Population, moved
from droptune.report.text import plan_line
from droptune.store import Queries
from droptune.trainers import FusedTrainer, SerialTrainer
from tests.small import Notes, fresh, rows, study

STEPS = ((0.0, 0.3), (0.4, 0.24), (0.8, 0.36))
LIGHT = Plan({"2": ("standard", 0.2)})


def members(values, arm="trial", plan=LIGHT):
    return [Candidate(i, i, arm, plan, value) for i, value in enumerate(values)]


# Steps in a plan


def test_a_rate_goes_by_its_steps():
    entry = Entry("standard", 0.1, "steps", steps=STEPS)
    assert entry.rate == 0.36, "the highest"
    at = {p: entry.at(p) for p in (0.0, 0.39, 0.4, 0.79, 0.8, 1.0)}
    assert list(at.values()) == [0.3, 0.3, 0.24, 0.24, 0.36, 0.36]
    plan = Plan({"2": entry})
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan and plan.moves
    assert plan_line(plan.to_json()) == "2: standard 0.36 steps 0.3 0.24 0.36"
    assert Plan({"2": Entry("standard", 0, "steps", steps=STEPS[:2])}) != plan


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ("steps", ()),
        ("constant", STEPS),
        ("steps", ((0.1, 0.2),)),
        ("steps", ((0, 0.2), (0.5, 0.1), (0.5, 0.2))),
        ("steps", ((0, 0.2), (1.5, 0.1))),
        ("steps", ((0, 1.0),)),
        ("steps", (0.1, 0.2)),
        ("steps", "up"),
    ],
)
def test_what_are_no_steps_is_told(schedule, steps):
    with pytest.raises(PlanError, match="steps|rate"):
        Entry("standard", 0.2, schedule, steps=steps)


# Copies


@pytest.mark.parametrize("build", [SerialTrainer, FusedTrainer])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_copy_trains_on_as_its_plan_would_from_the_start(build, optimizer, tmp_path):
    task = study("", optimizer=optimizer, lr=0.05).using(epochs=6).task({"2": ("standard",)})
    whole = Plan({"2": Entry("standard", 0, "steps", steps=((0.0, 0.2), (0.6, 0.5)))})

    def losses(trainer, slot, epochs):
        seen = [trainer.epoch()[slot] for _ in range(epochs)]
        return [number for s in seen for number in (s.train_loss, s.metrics["val_loss"])]

    trainer, alone = build(task, 3), build(task, 1)
    trainer.begin(5), alone.begin(5)
    trainer.start(0, LIGHT), trainer.start(1, Plan.none()), alone.start(0, whole)
    past = losses(trainer, 0, 3)
    trainer.copy(0, 2, whole)
    state = trainer.save()
    assert past == pytest.approx(losses(alone, 0, 3), rel=1e-5)
    seen = losses(trainer, 2, 3)
    assert seen == pytest.approx(losses(alone, 0, 3), rel=1e-5)
    other = build(task, 3)
    other.restore(state)
    assert losses(other, 2, 3) == seen, "source and copy share nothing"
    with pytest.raises(TrainingError, match="slot 1 is taken"):
        trainer.copy(0, 1, LIGHT)


# Who gives way


def test_the_worst_fifth_gives_way_to_copies_of_the_best():
    population = Population(12, "minimize", 0)
    assert population.ages == {2, 4, 6, 8, 10}
    values = [0.5, 0.1, 0.9, 0.2, 0.8, 0.3, 0.4, 0.45, 0.55, 0.6]
    found = population.moves(4, members(values), 9)
    assert [move.loser for move in found] == [4, 2]
    assert {move.source for move in found} <= {1, 3}
    assert all(f"copy of trial {m.source} at epoch 4" == m.name for m in found)
    up = Population(12, "maximize", 0).moves(4, members(values), 9)
    assert {move.loser for move in up} == {1, 3}
    assert population.moves(4, members(values), 9) == found, "by the seed alone"
    assert len(population.moves(4, members(values), 1)) == 1
    assert not population.moves(4, members(values), -3), "the budget is spent"
    assert not population.moves(5, members(values), 9)
    assert not population.moves(4, members(values[:4]), 9)


def test_controls_stay_and_no_dropout_is_not_copied():
    population = Population(12, "minimize", 0)
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert not population.moves(4, members(values, "no dropout"), 9)
    assert not population.moves(4, members(values, plan=Plan.none()), 9)
    moving = Plan({"2": Entry("standard", 0.2, "early")})
    assert not population.moves(4, members(values, plan=moving), 9)


def test_what_was_done_before_an_interruption_is_not_done_again():
    population = Population(12, "minimize", 0)
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    copy = population.moves(4, members(values), 9)[0]
    again = [*members(values[:4]), Candidate(4, 9, copy.name, copy.plan, 0.5)]
    assert not population.moves(2, again, 9) and not population.moves(4, again, 9)
    assert population.moves(6, again, 9)
    seeded = [*members(values[:4]), Candidate(4, 9, "from digits", copy.plan, 0.5)]
    assert population.moves(4, seeded, 9), "a plan of another study is no copy"


def test_rates_that_were_equal_are_moved_together():
    plan = Plan({"a": ("standard", 0.2), "b": ("standard", 0.2), "c": ("standard", 0.75)})
    seen = set()
    for seed in range(20):
        found = moved(plan, 0.5, Random(seed))
        assert found["a"] == found["b"]
        assert found["a"].at(0.49) == 0.2 and found["a"].at(0.5) in (0.16, 0.24)
        assert found["c"].at(1.0) <= 0.8
        seen.add((found["a"].at(1.0), found["c"].at(1.0)))
    assert len(seen) == len(FACTORS) ** 2
    later = moved(found, 0.8, Random(0))
    assert later["a"].at(0.6) == found["a"].at(0.6), "the past stays"


# The study


def run(url, **changes):
    settings = {"strategy": "pbt", "epochs": 6, "trials": 24, "slots": 12, "finalists": 2}
    notes = Notes(changes.pop("hook", lambda status: None))
    return study(url, **settings | changes).optimize(progress=notes)


def copies(url):
    found = [row for row in Queries(url).trials("mine") if "copy of" in (row["name"] or "")]
    return [row for row in found if row["state"] == "complete"]


@pytest.mark.parametrize("trainer", ["serial", "fused"])
def test_a_schedule_that_was_found_is_a_plan_with_that_value(tmp_path, trainer):
    url = fresh(tmp_path)
    run(url, trainer=trainer, confirm_blocks=0)
    found = Queries(url).trials("mine")
    assert len(found) == 24 and {row["state"] for row in found} == {"complete", "pruned"}
    assert copies(url)
    defined = study(url, epochs=6)
    kinds = defined.space.kinds
    alone = SerialTrainer(defined.task(kinds))
    for row in copies(url)[:3]:
        plan = Plan.from_json(row["plan"])
        assert any(entry.steps for entry in plan.values())
        alone.begin(block_seed(0, 0))
        alone.start(0, plan)
        curve = [alone.epoch()[0] for _ in range(6)]
        stored = Queries(url).trial("mine", row["number"])["curve"]
        assert [s.metrics["val_loss"] for s in curve] == pytest.approx(
            [epoch["metrics"]["val_loss"] for epoch in stored], rel=1e-4
        )
        assert row["value"] == pytest.approx(curve[-1].metrics["val_loss"], rel=1e-4)


def test_a_schedule_is_confirmed_like_any_plan(tmp_path):
    url = fresh(tmp_path)
    run(url, lr=0.1)
    arms = rows(url, "SELECT arm, plan FROM droptune_run WHERE phase = 'confirm'")
    chosen = {plan for arm, plan in arms if arm.startswith("finalist")}
    best = sorted(Queries(url).trials("mine"), key=lambda r: (r["value"] is None, r["value"]))
    assert any('"steps"' in plan for plan in chosen) == any(
        any(e.get("steps") for e in row["plan"]["sites"].values())
        for row in [r for r in best if r["plan"]["sites"] and r["name"] != "as given"][:2]
    )


@pytest.mark.parametrize("epoch", [2, 4])
def test_an_interrupted_population_goes_on_as_it_was(tmp_path, epoch):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, parted = fresh(tmp_path / "a"), fresh(tmp_path / "b")
    run(whole, confirm_blocks=0, trials=20)
    seen = []

    def dies(status):
        seen.append(status)
        if len(seen) == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(parted, confirm_blocks=0, trials=20, hook=dies)
    run(parted, confirm_blocks=0, trials=20)

    # Behind the last copy are new plans; a sampler that begins again draws others.
    last = max(row["number"] for row in copies(whole))

    def told(url):
        found = Queries(url).trials("mine")[: last + 1]
        return [(r["number"], r["state"], r["plan"], r["value"]) for r in found]

    assert told(parted) == told(whole) and last > 10


def test_a_model_that_trains_faster_alone_has_company_all_the_same(tmp_path, monkeypatch):
    url = fresh(tmp_path)
    monkeypatch.setattr("droptune.optimize.choose", lambda task, **_: SerialTrainer(task))
    run(url, trainer="auto", slots="auto", confirm_blocks=0)
    assert copies(url)


def test_a_copy_that_does_not_fit_into_memory_costs_no_trial(tmp_path, monkeypatch):
    url, whole = fresh(tmp_path), SerialTrainer.copy

    def full(trainer, source, slot, plan):
        if trainer.slots == 12:
            raise torch.OutOfMemoryError("too large")
        whole(trainer, source, slot, plan)

    monkeypatch.setattr(SerialTrainer, "copy", full)
    run(url, confirm_blocks=0)
    found = Queries(url).trials("mine")
    assert len(found) == 24 and {row["state"] for row in found} <= {"complete", "pruned"}


def loop(model, *, seed, device):
    yield {"val_loss": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": loop}, "train= keeps the state of its training"),
        ({"schedules": ["constant", "early"]}, "finds schedules of its own"),
        ({"pruner": "median", "epochs": 8}, "leave pruner 'median' out"),
        ({"slots": 4}, "takes slots from 5; it has 4"),
        ({"trials": 9}, "takes trials from 10; it has 9"),
        ({"trials": 10, "epochs": 1}, "takes epochs from 2; it has 1"),
        ({"strategy": "evolution"}, "unknown strategy 'evolution'"),
    ],
)
def test_what_a_population_cannot_do_is_told(changes, said):
    with pytest.raises(StudyError, match=said):
        study("sqlite:///x.db", **{"strategy": "pbt", "trials": 24, **changes})


def test_a_schedule_of_steps_cannot_be_asked_of_a_space(tmp_path):
    with pytest.raises(Exception, match="unknown schedule 'steps'"):
        study(fresh(tmp_path), schedules=["steps"]).optimize(progress=Notes())
