"""When states are kept, and how they come back."""

import pytest
import torch

from droptune.checkpoints import Checkpoints
from droptune.errors import StoreError
from droptune.keeping import Keeping
from droptune.plan import Plan
from droptune.trainers import SerialTrainer
from tests.small import study

RATES = (0.1, 0.3, 0.5)


@pytest.fixture
def said():
    return []


@pytest.fixture
def keeping(tmp_path, said):
    return Keeping(Checkpoints(tmp_path / "kept"), "1-1", said.append, every=0.0)


@pytest.fixture
def task():
    return study("sqlite://").task({"2": ("standard",)})


@pytest.fixture
def trainer(task):
    """Three members after one epoch."""
    made = SerialTrainer(task, 4)
    made.begin(5)
    for slot, rate in enumerate(RATES):
        made.start(slot, Plan({"2": ("standard", rate)}))
    made.epoch()
    return made


def keep(keeping, trainer):
    members = {f"trial {slot + 7}": [slot, 1] for slot in range(3)}
    return keeping.save(trainer.save(), {"members": members})


def test_members_go_on_in_other_slots_as_if_nothing_had_been(keeping, trainer, task):
    assert keep(keeping, trainer)
    other = SerialTrainer(task, 2)
    other.begin(5)
    assert keeping.restore(other, "1-1", {"trial 9": 0, "trial 8": 1, "trial 3": 5}) == {0: 1, 1: 1}
    after, before = other.epoch(), trainer.epoch()
    assert after[0].train_loss == before[2].train_loss
    assert after[1].train_loss == before[1].train_loss
    assert set(after) == {0, 1}, "the third was not wanted"


def test_what_is_not_there_or_damaged_begins_again(keeping, trainer, tmp_path, said):
    assert keeping.restore(trainer, "1-9", {"trial 7": 0}) == {}
    keep(keeping, trainer)
    assert keeping.restore(trainer, "1-1", {"trial 99": 0}) == {}
    for file in (tmp_path / "kept").glob("*/*.json"):
        file.write_text("{}")
    assert keeping.restore(trainer, "1-1", {"trial 7": 0}) == {}
    assert not said, "a trial that begins again is no news"
    assert keeping.restore(trainer, "../x", {"trial 7": 0}) == {}
    assert "begins again" in said[-1]


@pytest.mark.parametrize("members", [None, [], {"trial 7": 3}, {"trial 7": ["a", 1]}])
def test_a_forged_file_is_one_line(keeping, trainer, said, members):
    keeping.save(trainer.save(), {"members": members})
    assert keeping.restore(trainer, "1-1", {"trial 7": 0}) == {}
    assert "does not say whose states it has" in said[-1] and "\n" not in said[-1]


def test_a_full_disk_is_said_once_and_training_goes_on(keeping, trainer, said, monkeypatch):
    def full(*_):
        raise StoreError("checkpoint cannot be used, the disk is full; free some space")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        assert not keep(keeping, trainer) and not keep(keeping, trainer)
    assert len(said) == 1 and "training goes on without" in said[0]
    assert keep(keeping, trainer)


def test_it_is_due_after_a_while_and_the_longer_the_more_writing_costs(
    tmp_path, monkeypatch, trainer
):
    now = 100.0
    monkeypatch.setattr("droptune.keeping.time.monotonic", lambda: now)
    one = Keeping(Checkpoints(tmp_path), "1-1", print, every=60.0)
    assert not one.due
    now += 61
    assert one.due
    save = Checkpoints.save

    def slow(*args):
        nonlocal now
        now += 30
        save(*args)

    monkeypatch.setattr(Checkpoints, "save", slow)
    keep(one, trainer)
    now += 590
    assert not one.due, "30 seconds of writing are a twentieth of 600"
    now += 11
    assert one.due


def test_what_is_cleared_is_of_that_study_alone(tmp_path, trainer):
    for name in ("1-1", "1-2", "11-1"):
        keep(Keeping(Checkpoints(tmp_path), name, print), trainer)
    Keeping(Checkpoints(tmp_path), "1-3", print).clear("1-")
    assert Checkpoints(tmp_path).names() == ["11-1"]


def test_a_trainer_of_ones_own_restores_its_members_where_they_were(keeping, said):
    class Own:
        def __init__(self):
            self.members = {0: 1.0, 1: 2.0}

        def restore(self, saved):
            self.members = {int(k): float(v) for k, v in saved.tensors.items()}

        def stop(self, slot):
            del self.members[slot]

    from droptune.trainers import Saved

    saved = Saved({"0": torch.tensor(5.0), "1": torch.tensor(6.0)}, {})
    keeping.save(saved, {"members": {"a": [0, 2], "b": [1, 3]}})
    own = Own()
    assert keeping.restore(own, "1-1", {"b": 1}) == {1: 3}
    assert own.members == {1: 6.0}
    assert keeping.restore(own, "1-1", {"b": 0}) == {}
    assert "restores members where they were" in said[-1]
