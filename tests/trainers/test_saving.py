"""droptune/trainers/saving.py: members go on elsewhere, for every trainer that can save."""

import json
from abc import ABC, abstractmethod

import pytest
import torch
from torch import nn

from droptune.consistency import Term
from droptune.errors import DroptuneError, PlanError, TrainingError
from droptune.plan import Entry, Plan
from droptune.trainers import (
    FunctionTrainer,
    FusedTrainer,
    Saved,
    SerialTrainer,
    TableTrainer,
    Trainer,
    part_of,
    restore_into,
    saved_by,
)
from tests.trainers.test_contract import HEAVY, LIGHT, NONE, ON_GPU, begun, curves

SMOOTH = Plan(LIGHT, training={"label_smoothing": 0.2, "lr": 3e-3, "weight_decay": 0.3})
TERMS = [Plan(LIGHT, Term("r_drop", 0.5)), Plan(LIGHT, Term("adversarial", 0.5, 0.2, 0.2))]
MOVING = Plan({"1": Entry("standard", 0.4, "ramp", 0.8)})


def through_a_file(saved: Saved) -> Saved:
    """Return it as it comes back from disk: JSON, and tensors with memory of their own."""
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in saved.tensors.items()
    }
    return Saved(tensors, json.loads(json.dumps(saved.rest)))


class SavingContract(ABC):
    """Rules for any trainer that can save; `tolerance` where a stack has another width."""

    tolerance = 0.0
    device = "cpu"
    plans = {0: HEAVY, 1: LIGHT, 2: NONE, 4: MOVING}

    @abstractmethod
    def build(self, task, slots: int) -> Trainer:
        """Return the trainer under test."""

    @pytest.fixture
    def make(self, make_task):
        """Return a function (slots, task's changes) -> trainer."""
        return lambda slots, **changes: self.build(make_task(**changes), slots)

    def same(self, one, other) -> None:
        assert len(one) == len(other)
        for row, twin in zip(one, other, strict=True):
            assert row == pytest.approx(twin, rel=self.tolerance, abs=self.tolerance / 10)

    @pytest.mark.parametrize("epochs", [0, 2])
    def test_members_go_on_in_a_new_trainer_as_if_never_interrupted(self, make, epochs):
        trainer = begun(make(len(self.plans) + 1), self.plans, clock=1)
        curves(trainer, epochs)
        trainer.stop(2)
        saved = through_a_file(trainer.save())
        expected = curves(trainer, 3)
        other = begun(make(len(self.plans) + 1), {0: NONE})  # who was there is gone
        other.restore(saved)
        assert other.clock == 1 + epochs
        assert curves(other, 3) == expected

    def test_what_was_saved_does_not_train_on(self, make):
        trainer = begun(make(2), {0: HEAVY, 1: LIGHT})
        curves(trainer, 1)
        saved = trainer.save()
        expected = curves(trainer, 2)
        for _ in range(2):  # nor does restoring it
            other = make(2)
            other.restore(saved)
            assert curves(other, 2) == expected

    def test_what_is_saved_is_json_and_tensors_on_the_cpu(self, make):
        trainer = begun(make(len(self.plans) + 1), self.plans)
        curves(trainer, 1)
        saved = trainer.save()
        assert json.loads(json.dumps(saved.rest)) == saved.rest
        assert {str(tensor.device) for tensor in saved.tensors.values()} <= {"cpu"}

    def test_a_restored_trainer_takes_new_members(self, make):
        trainer = begun(make(3), {0: HEAVY, 1: LIGHT})
        curves(trainer, 2)
        other = make(3)
        other.restore(through_a_file(trainer.save()))
        other.start(2, NONE)
        alone = begun(make(1), {0: NONE}, clock=2)
        self.same(curves(other, 2)[2], curves(alone, 2)[0])

    def test_members_go_on_among_more_slots_and_new_members(self, make):
        trainer = begun(make(3), {0: HEAVY, 2: LIGHT})
        curves(trainer, 2)
        saved, expected = trainer.save(), curves(trainer, 2)
        other = make(7)
        other.restore(through_a_file(saved))
        for slot in (1, 3, 6):
            other.start(slot, NONE)
        seen = curves(other, 2)
        assert sorted(seen) == [0, 1, 2, 3, 6]
        for slot in (0, 2):
            self.same(seen[slot], expected[slot])

    def test_too_few_slots_say_so(self, make):
        trainer = begun(make(len(self.plans) + 1), self.plans)
        last = max(self.plans)
        why = f"slots up to {last}, this trainer has slots 0 to {last - 1}; restore fewer"
        with pytest.raises(TrainingError, match=why):
            make(last).restore(trainer.save())

    def test_some_members_go_on_in_other_slots(self, make):
        trainer = begun(make(len(self.plans) + 1), self.plans)
        curves(trainer, 2)
        saved, expected = through_a_file(trainer.save()), curves(trainer, 2)
        other = make(2)
        other.restore(part_of(saved, {4: 0, 1: 1}))
        seen = curves(other, 2)
        assert sorted(seen) == [0, 1]
        self.same(seen[0], expected[4])
        self.same(seen[1], expected[1])
        other.restore(part_of(saved, {}))
        assert dict(other.epoch()) == {}

    def test_members_that_are_not_wanted_can_be_stopped(self, make):
        trainer = begun(make(len(self.plans) + 1), self.plans)
        curves(trainer, 2)
        saved, expected = trainer.save(), curves(trainer, 2)
        other = make(len(self.plans) + 1)
        other.restore(through_a_file(saved))
        for slot in self.plans.keys() - {1}:
            other.stop(slot)
        seen = curves(other, 2)
        assert sorted(seen) == [1]
        self.same(seen[1], expected[1])

    def test_a_copy_is_saved_with_what_it_was_copied_from(self, make):
        trainer = begun(make(3), {0: LIGHT, 1: NONE})
        curves(trainer, 2)
        steps = ((0.0, 0.2), (0.4, 0.6))
        trainer.copy(0, 2, Plan({"1": Entry("standard", 0, "steps", steps=steps)}))
        saved, tested = trainer.save(), trainer.test()
        expected = curves(trainer, 2)
        other = make(3)
        other.restore(through_a_file(saved))
        assert other.test() == tested
        assert curves(other, 2) == expected

    @pytest.mark.parametrize(
        "damage",
        [
            lambda rest: rest.pop("members"),
            lambda rest: rest.update(members=[1]),
            lambda rest: rest["members"].update({"x": {}}),
            lambda rest: rest["members"].update({"-1": rest["members"].pop("1")}),
            lambda rest: rest["members"]["1"].pop("plan"),
            lambda rest: rest["members"]["1"].update(plan={"version": 1}),
            lambda rest: rest["members"]["1"].update(plan=Plan({"0": ("alpha", 0.1)}).to_json()),
            lambda rest: rest.update(clock="soon"),
            lambda rest: rest.update(rows=[0] * 3),
            lambda rest: rest.update(rows=7),
        ],
    )
    def test_what_is_of_another_study_or_by_an_attacker_is_refused_in_one_line(self, make, damage):
        trainer = begun(make(3), {0: HEAVY, 1: LIGHT})
        saved = through_a_file(trainer.save())
        damage(saved.rest)
        other = make(3)
        with pytest.raises((TrainingError, PlanError)) as error:
            other.restore(saved)
        assert "\n" not in str(error.value)
        begun(other, {0: NONE}).epoch()


class PacedSaving(SavingContract):
    """Rules of trainers that step the optimiser themselves."""

    plans = {0: HEAVY, 1: LIGHT, 2: NONE, 3: SMOOTH, 4: MOVING, 5: TERMS[0], 6: TERMS[1]}

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    @pytest.mark.parametrize("lr_schedule", ["constant", "one-cycle"])
    def test_all_that_a_plan_says_and_the_optimiser_remembers_goes_on(
        self, make, optimizer, lr_schedule
    ):
        changes = {"optimizer": optimizer, "lr_schedule": lr_schedule}
        trainer = begun(make(7, **changes), self.plans)
        curves(trainer, 2)
        other = make(7, **changes)
        other.restore(through_a_file(trainer.save()))
        assert curves(other, 3) == curves(trainer, 3)

    def test_convolutions_and_statistics_go_on(self, make, make_data):
        changes = {
            "data": make_data(shape=(2, 5, 5)),
            "model": lambda: nn.Sequential(
                nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
            ),
            "kinds": {"2": ("channel", "controlled", "max_drop")},
        }
        plans = [("channel", 0.4), ("controlled", 0.3), ("max_drop", 0.3)]
        trainer = begun(make(3, **changes), {i: Plan({"2": p}) for i, p in enumerate(plans)})
        curves(trainer, 1)
        other = make(3, **changes)
        other.restore(through_a_file(trainer.save()))
        assert curves(other, 2) == curves(trainer, 2)

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    def test_a_parameter_without_gradient_survives(self, make, optimizer):
        changes = {"model": Unused, "kinds": {}, "optimizer": optimizer}
        trainer, other = begun(make(1, **changes), {0: NONE}), make(1, **changes)
        curves(trainer, 1)
        other.restore(trainer.save())
        spare = other.save().tensors["0 spare.weight"]
        assert torch.equal(spare, trainer.save().tensors["0 spare.weight"])
        assert curves(other, 1) == curves(trainer, 1)

    def test_what_another_model_left_is_refused(self, make, mlp):
        trainer = begun(make(1), {0: NONE})
        for out, dtype, why in (
            (4, torch.float32, r"4.weight has torch.float32 \(3, 16\), here torch.float32 \(4, 16"),
            (3, torch.float64, r"0.weight has torch.float32 \(16, 6\), here torch.float64"),
        ):
            other = make(1, model=lambda: mlp(out=out).to(dtype))  # noqa: B023
            with pytest.raises(TrainingError, match=why):
                other.restore(trainer.save())
        saved = trainer.save()
        del saved.tensors["0 2.bias"]
        with pytest.raises(TrainingError, match="there is no 2.bias"):
            make(1).restore(saved)
        del saved.rest["members"]["0"]["pace"]
        with pytest.raises(TrainingError, match="KeyError"):
            make(1).restore(saved)


class Unused(nn.Sequential):
    """Has a parameter that its forward leaves alone."""

    def __init__(self):
        super().__init__(nn.Linear(6, 3))
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return self[0](x)


class TestSerial(PacedSaving):
    def build(self, task, slots):
        return SerialTrainer(task, slots, self.device)


class TestFused(PacedSaving):
    tolerance = 1e-6

    def build(self, task, slots):
        return FusedTrainer(task, slots, self.device)


class TestTable(SavingContract):
    def build(self, task, slots):
        def outcome(plan, seed, epoch):
            rate = plan["1"].rate if "1" in plan else 0.0
            value = abs(rate - 0.3) + seed / epoch
            return {"train_loss": value / 2, "val_loss": value, "test_loss": epoch - rate}

        return TableTrainer(task, outcome, slots)


class TestSerialOnGpu(TestSerial):
    pytestmark = ON_GPU
    device = "cuda"
    tolerance = 1e-5


class TestFusedOnGpu(TestFused):
    pytestmark = ON_GPU
    device = "cuda"
    tolerance = 1e-4


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("trainers", [(SerialTrainer, FusedTrainer), (FusedTrainer, SerialTrainer)])
@pytest.mark.parametrize("epochs", [0, 2])
def test_one_trainer_goes_on_with_what_the_other_saved(make_task, trainers, optimizer, epochs):
    first, second = (
        trainer(make_task(optimizer=optimizer, kinds={**make_task().kinds, "1": (
            "standard", "gaussian", "concrete")}), 8)
        for trainer in trainers
    )  # fmt: skip
    learned = Plan({"1": ("concrete", 0.3)})
    begun(first, {**PacedSaving.plans, 7: learned})
    curves(first, epochs)
    second.restore(through_a_file(first.save()))
    seen, expected = curves(second, 3), curves(first, 3)
    assert sorted(seen) == sorted(expected)
    for slot, rows in seen.items():
        for row, twin in zip(rows, expected[slot], strict=True):
            assert row == pytest.approx(twin, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("build", [SerialTrainer, FusedTrainer])
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_members_go_on_on_another_device(make_task, build, devices):
    first, second = (build(make_task(), 2, device) for device in devices)
    curves(begun(first, {0: NONE, 1: NONE}), 2)
    second.restore(through_a_file(first.save()))
    for row, twin in zip(curves(second, 2)[1], curves(first, 2)[1], strict=True):
        assert row == pytest.approx(twin, rel=1e-3)


@pytest.mark.parametrize(("counts", "can"), [(1, False), (0, True)])
def test_a_model_that_counts_in_an_attribute_is_not_saved(make_task, mlp, counts, can):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen, self.last = mlp(), 0, None

        def forward(self, x):
            self.seen += counts
            self.last = x  # a cache, which nothing hangs on
            return self.inner(x * 0.9**self.seen)

    task = make_task(model=Counting, kinds={"inner.1": ("standard",)})
    trainer = begun(SerialTrainer(task), {0: Plan({"inner.1": ("standard", 0.1)})})
    assert trainer.save() is not None
    trainer.epoch()
    assert (trainer.save() is not None) is can


def test_a_loop_of_the_users_own_is_not_saved(make_task):
    def train(model, *, seed, device):
        yield {"val_loss": 1.0}

    trainer = begun(FunctionTrainer(make_task(), train), {0: LIGHT})
    trainer.epoch()
    assert saved_by(trainer) is None
    with pytest.raises(TrainingError, match="cannot be restored; start them again"):
        trainer.restore(Saved({}, {}))


def test_a_trainer_of_the_users_own_may_save_or_not():
    class Own:
        def __init__(self, result):
            self.result = result

        def save(self):
            if isinstance(self.result, Exception):
                raise self.result
            return self.result

    kept = Saved({"w": torch.zeros(1)}, {})
    assert saved_by(object()) is None and saved_by(Own(None)) is None
    assert saved_by(Own(kept)) is kept
    with pytest.raises(TrainingError, match=r"save\(\) returns dict; it must return droptune.tra"):
        saved_by(Own({}))
    with pytest.raises(TrainingError, match=r"save\(\) raised ZeroDivisionError: by zero; let it"):
        saved_by(Own(ZeroDivisionError("by zero\nagain")))
    with pytest.raises(DroptuneError, match="ours"):
        saved_by(Own(TrainingError("ours")))


@pytest.mark.parametrize("error", [MemoryError("no room\nleft"), ValueError("no room")])
def test_a_trainer_of_the_users_own_that_fails_to_restore_says_so_in_one_line(error):
    class Own:
        def restore(self, saved):
            raise error

    why = r"restore\(\) raised \w+Error: no room; what was saved starts again$"
    with pytest.raises(TrainingError, match=why):
        restore_into(Own(), Saved({}, {}))
    with pytest.raises(TrainingError, match="has no attribute 'restore'"):
        restore_into(object(), Saved({}, {}))


def test_a_part_names_members_that_were_saved_each_with_a_slot_of_its_own(make_task):
    saved = begun(SerialTrainer(make_task(), 3), {0: LIGHT, 2: NONE}).save()
    with pytest.raises(TrainingError, match="no member was saved in slot 1; there are: 0, 2"):
        part_of(saved, {1: 0})
    with pytest.raises(TrainingError, match=r"slots \[0, 0\]: each member needs one of its own"):
        part_of(saved, {0: 0, 2: 0})
