"""Arms that several workers claim: one that was trained meanwhile is passed over."""

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from droptune.design import Block
from droptune.dispatch import Arms, Desk
from droptune.members import Members
from droptune.plan import Entry, Plan
from droptune.store import Store
from droptune.trainers import TableTrainer
from droptune.watch import Clockwork

PLANS = {"no dropout": Plan.none(), "finalist 1": Plan({"0": Entry("standard", 0.3)})}


@pytest.fixture
def store(tmp_path):
    """A store with one study, whose id is 1."""
    with Store(f"sqlite:///{tmp_path / 'droptune.db'}") as store:
        store.create_study("mine", {"objective": "val_loss"}, {}, [])
        yield store


def outcome(plan: Plan, seed: int, epoch: int) -> dict[str, float]:
    return {"val_loss": 1.0 / epoch}


def members(store: Store) -> Members:
    """Return free slots for confirmation."""
    task = SimpleNamespace(kinds={"standard": None}, terms=())
    return Members(
        store,
        1,
        phase="confirm",
        objectives=["val_loss"],
        epochs=2,
        make_trainer=lambda most, block: TableTrainer(task, outcome, most),
        folds=1,
        most=2,
        keeping=None,
        longest=None,
        clockwork=Clockwork(),
        say=print,
    )


def trained_elsewhere(store: Store, arm: str, name: str) -> None:
    """Store a run of an arm of block 1 to its end, under a name of another worker's."""
    run = store.start_run(
        1, phase="confirm", arm=name, plan=PLANS[arm].to_json(), seed=3, block=1, clock=0,
        slot=0, trainer="table", device="cpu",
    )  # fmt: skip
    store.end_run(run, "complete", seconds=1.0, epochs=2)


@pytest.mark.parametrize("name", ["finalist 1", "finalist 2"])
def test_an_arm_that_ended_elsewhere_after_the_look_is_passed_over(store, monkeypatch, name):
    """As where the lock of the study was lost, with its connection, between look and claim."""
    lock = store.exclusive
    between = iter([partial(trained_elsewhere, store, "finalist 1", name)])

    @contextmanager
    def lost(study: str):
        with lock(study) as still:
            yield lambda: next(between, still)()

    monkeypatch.setattr(store, "exclusive", lost)
    block = Block(number=1, arms=dict(reversed(PLANS.items())), note="", left=2)
    arms = Arms(Desk(store, 1, "mine", Clockwork()), store, 1, lambda others: [block])
    free = members(store)
    free.begin(seed=3, block=1)
    arms.claim(block, free)
    assert [free[slot].arm for slot in free] == ["no dropout"]
    assert arms.ended(block) == 1
    runs = store.rows(text("SELECT arm, state FROM droptune_run"))
    assert [tuple(run.values()) for run in runs] == [(name, "complete"), ("no dropout", "running")]
