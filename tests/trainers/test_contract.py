"""What every trainer keeps to, run for the fused, the serial and the function trainer."""

import math
from abc import ABC, abstractmethod

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from droptune.data import batches
from droptune.errors import PlanError, TrainingError
from droptune.plan import Plan
from droptune.trainers import (
    FunctionTrainer,
    FusedTrainer,
    SerialTrainer,
    Task,
    Trainer,
)

NONE = Plan.none()
LIGHT = Plan({"1": ("standard", 0.2)})
HEAVY = Plan({"@input": ("standard", 0.3), "1": ("gaussian", 0.5), "3": ("standard", 0.5)})
#: The rate at which the function trainer's loop pretends to diverge.
WRECK = Plan({"1": ("standard", 0.875)})


def curves(trainer: Trainer, epochs: int) -> dict[int, list[list[float]]]:
    """Train on and return slot -> one row an epoch: train loss, then the metrics."""
    result: dict[int, list[list[float]]] = {}
    for _ in range(epochs):
        for slot, scores in trainer.epoch().items():
            assert scores.failed is None and scores.seconds >= 0
            result.setdefault(slot, []).append([scores.train_loss, *scores.metrics.values()])
    return result


def begun(trainer: Trainer, plans: dict[int, Plan], seed=3, clock=0) -> Trainer:
    trainer.begin(seed, clock)
    for slot, plan in plans.items():
        trainer.start(slot, plan)
    return trainer


class TrainerContract(ABC):
    """Rules for any trainer; a subclass gives `build` and how close equal curves must be."""

    tolerance = 0.0

    @abstractmethod
    def build(self, task: Task, slots: int) -> Trainer:
        """Return the trainer under test."""

    @pytest.fixture
    def make(self, make_task):
        """Return a function (slots, task's changes) -> trainer."""
        return lambda slots, **changes: self.build(make_task(**changes), slots)

    def start_diverging(self, trainer: Trainer, slot: int) -> None:
        trainer.start(slot, Plan(training={"lr": 1e30}))

    def same(self, one, other) -> None:
        assert len(one) == len(other)
        for row, twin in zip(one, other, strict=True):
            assert row == pytest.approx(twin, rel=self.tolerance, abs=self.tolerance / 10)

    def test_members_learn_and_the_clock_counts_epochs(self, make):
        trainer = begun(make(2), {0: NONE, 1: LIGHT})
        seen = curves(trainer, 5)
        assert trainer.clock == 5
        for curve in seen.values():
            assert curve[-1][0] < 0.9 * curve[0][0]
            assert curve[-1][1] < 0.9 * curve[0][1]

    def test_scores_name_the_metrics_of_the_validation_split(self, make):
        scores = begun(make(1), {0: NONE}).epoch()[0]
        assert list(scores.metrics) == ["val_loss", "val_accuracy"]
        assert 0 <= scores.metrics["val_accuracy"] <= 1

    def test_different_plans_give_different_curves_from_the_same_weights(self, make):
        seen = curves(begun(make(3), {0: NONE, 1: LIGHT, 2: HEAVY}), 2)
        assert seen[0] != seen[1] != seen[2] != seen[0]

    def test_the_same_plan_twice_in_one_block_gives_the_same_curve(self, make):
        seen = curves(begun(make(4), {0: HEAVY, 1: LIGHT, 3: HEAVY}), 4)
        self.same(seen[0], seen[3])

    def test_a_run_can_be_repeated(self, make):
        first = curves(begun(make(2), {0: HEAVY, 1: LIGHT}), 4)
        assert first == curves(begun(make(2), {0: HEAVY, 1: LIGHT}), 4)

    def test_another_seed_is_another_run(self, make):
        one = curves(begun(make(1), {0: NONE}, seed=3), 1)
        assert one != curves(begun(make(1), {0: NONE}, seed=4), 1)

    def test_who_else_trains_changes_nothing(self, make):
        alone = curves(begun(make(1), {0: HEAVY}), 4)[0]
        company = begun(make(4), {0: LIGHT, 1: NONE, 2: HEAVY, 3: LIGHT})
        self.same(curves(company, 4)[2], alone)

    def test_a_freed_slot_is_refilled_while_the_others_train_on(self, make):
        undisturbed = curves(begun(make(4), {0: NONE, 1: LIGHT, 2: HEAVY}), 5)
        trainer = begun(make(4), {0: NONE, 1: LIGHT, 2: HEAVY})
        seen = curves(trainer, 2)
        trainer.stop(1)
        for slot, curve in curves(trainer, 1).items():
            seen[slot] += curve
        trainer.start(1, HEAVY)
        trainer.start(3, NONE)
        late = curves(trainer, 2)
        assert sorted(late) == [0, 1, 2, 3]
        for slot in (0, 2):
            self.same(seen[slot] + late[slot], undisturbed[slot])

    def test_a_slot_that_is_refilled_starts_from_the_blocks_weights(self, make):
        trainer = begun(make(2), {0: HEAVY, 1: NONE})
        curves(trainer, 2)
        trainer.stop(0)
        trainer.start(0, LIGHT)
        alone = begun(make(1), {0: LIGHT}, clock=2)
        self.same(curves(trainer, 3)[0], curves(alone, 3)[0])

    def test_a_member_that_entered_late_can_be_repeated_alone_at_its_clock(self, make):
        trainer = begun(make(3), {0: NONE, 2: LIGHT})
        curves(trainer, 3)
        trainer.start(1, HEAVY)
        alone = begun(make(1), {0: HEAVY}, clock=3)
        self.same(curves(trainer, 3)[1], curves(alone, 3)[0])

    def test_a_block_begins_empty(self, make):
        trainer = begun(make(2), {0: NONE, 1: LIGHT})
        first = curves(trainer, 2)
        trainer.begin(3)
        assert trainer.clock == 0 and not trainer.epoch()
        trainer.start(1, LIGHT)
        self.same(curves(trainer, 2)[1], first[1])

    def test_a_second_block_is_as_in_a_new_trainer(self, make):
        trainer = begun(make(2), {0: NONE, 1: LIGHT})
        curves(trainer, 2)
        again = curves(begun(trainer, {0: HEAVY, 1: NONE}, seed=8), 3)
        assert again == curves(begun(make(2), {0: HEAVY, 1: NONE}, seed=8), 3)

    @pytest.mark.parametrize("kept_as", ["tensor", "number"])
    def test_what_a_model_draws_and_keeps_as_it_is_belongs_to_its_block(self, make, mlp, kept_as):
        class Drawn(nn.Module):
            """Keeps a random number that is neither parameter nor buffer."""

            def __init__(self):
                super().__init__()
                self.inner = mlp()
                drawn = torch.rand(())
                self.scale = drawn.item() if kept_as == "number" else drawn

            def forward(self, x):
                return self.inner(x * self.scale)

        if kept_as == "tensor" and self.device != "cpu":
            pytest.skip("such a tensor does not move with its model")
        trainer = begun(make(1, model=Drawn, kinds={}), {0: NONE}, seed=3)
        trainer.epoch()
        again = curves(begun(trainer, {0: NONE}, seed=4), 2)
        assert again == curves(begun(make(1, model=Drawn, kinds={}), {0: NONE}, seed=4), 2)

    def test_nobody_trains_and_the_clock_stands_still(self, make):
        trainer = make(2)
        trainer.begin(0, 5)
        assert dict(trainer.epoch()) == {} and trainer.clock == 5
        assert dict(trainer.test()) == {}

    def test_the_global_generator_is_left_alone(self, make):
        trainer = begun(make(2), {0: HEAVY, 1: NONE})
        before = torch.get_rng_state()
        trainer.epoch()
        trainer.test()
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_global_seed_changes_nothing(self, make):
        torch.manual_seed(1)
        one = curves(begun(make(1), {0: HEAVY}), 2)
        torch.manual_seed(2)
        assert one == curves(begun(make(1), {0: HEAVY}), 2)

    def test_the_test_split_is_scored_where_there_is_one(self, make):
        trainer = begun(make(3), {0: NONE, 2: LIGHT})
        curves(trainer, 1)
        scores = trainer.test()
        assert sorted(scores) == [0, 2]
        for metrics in scores.values():
            assert list(metrics) == ["test_loss", "test_accuracy"]
            assert all(map(math.isfinite, metrics.values()))

    def test_without_a_test_split_no_test_metrics(self, make, make_data):
        trainer = begun(make(2, data=make_data(test=False)), {1: LIGHT})
        curves(trainer, 1)
        assert {slot: dict(metrics) for slot, metrics in trainer.test().items()} == {1: {}}

    def test_scoring_the_test_split_changes_no_curve(self, make):
        expected = curves(begun(make(2), {0: HEAVY, 1: NONE}), 3)
        trainer = begun(make(2), {0: HEAVY, 1: NONE})
        trainer.epoch()
        trainer.test()
        assert curves(trainer, 2) == {slot: curve[1:] for slot, curve in expected.items()}

    def test_a_member_that_diverges_is_reported_alone(self, make):
        expected = curves(begun(make(3), {0: LIGHT, 2: NONE}), 3)
        trainer = begun(make(3), {0: LIGHT, 2: NONE})
        self.start_diverging(trainer, 1)
        for epoch in range(3):
            scores = trainer.epoch()
            assert scores[1].failed.startswith("diverged: ")
            for slot in (0, 2):
                assert scores[slot].failed is None
                row = [scores[slot].train_loss, *scores[slot].metrics.values()]
                self.same([row], [expected[slot][epoch]])

    def test_a_slot_of_a_diverged_member_can_be_used_again(self, make):
        trainer = begun(make(2), {0: LIGHT})
        self.start_diverging(trainer, 1)
        trainer.epoch()
        trainer.stop(1)
        trainer.start(1, HEAVY)
        self.same(curves(trainer, 2)[1], curves(begun(make(1), {0: HEAVY}, clock=1), 2)[0])

    @pytest.mark.parametrize(
        ("plan", "names"),
        [
            (Plan({"2": ("standard", 0.1)}), ["2: standard", "1: standard/gaussian"]),
            (Plan({"@input": ("alpha", 0.1)}), ["@input: alpha", "@input: standard"]),
        ],
    )
    def test_an_unknown_site_or_kind_is_named_with_what_is_allowed(self, make, plan, names):
        trainer = begun(make(1), {})
        with pytest.raises(PlanError) as error:
            trainer.start(0, plan)
        assert all(name in str(error.value) for name in names)
        trainer.start(0, LIGHT)  # the slot is still free

    def test_a_taken_slot_says_so(self, make):
        trainer = begun(make(2), {1: NONE})
        with pytest.raises(TrainingError, match="slot 1 is taken; stop"):
            trainer.start(1, LIGHT)

    @pytest.mark.parametrize("slot", [-1, 2])
    def test_a_slot_that_does_not_exist_says_which_do(self, make, slot):
        with pytest.raises(TrainingError, match=f"slot {slot}: this trainer has slots 0 to 1"):
            begun(make(2), {}).start(slot, NONE)

    def test_a_free_slot_cannot_be_stopped(self, make):
        with pytest.raises(TrainingError, match="slot 0 is free; slots with a member: 1"):
            begun(make(2), {1: NONE}).stop(0)


class PacedContract(TrainerContract):
    """Rules of trainers that step the optimiser themselves."""

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    def test_each_slot_has_its_own_learning_rate_and_weight_decay(self, make, optimizer):
        trainer = begun(make(4, optimizer=optimizer), {0: LIGHT})
        said = [{}, {"lr": 1e-3}, {"weight_decay": 0.5}, {"lr": 1e-3, "weight_decay": 0.0}]
        for slot, changes in enumerate(said[1:], 1):
            trainer.start(slot, Plan(LIGHT, training=changes))
        seen = curves(trainer, 3)
        for slot, changes in enumerate(said):
            alone = begun(make(1, optimizer=optimizer, **changes), {0: LIGHT})
            self.same(seen[slot], curves(alone, 3)[0])
        assert len({str(curve) for curve in seen.values()}) == 4

    def test_a_loss_that_becomes_nan_ends_that_member_alone(self, make):
        def fragile(output, target):
            bad = output.abs().amax() > 50
            return F.cross_entropy(output, target) + torch.where(bad, math.nan, 0.0)

        trainer = begun(make(2, loss=fragile), {0: LIGHT})
        trainer.start(1, Plan(training={"lr": 100.0}))
        scores = trainer.epoch()
        assert scores[0].failed is None and math.isfinite(scores[0].train_loss)
        assert scores[1].failed == "diverged: train_loss is nan"

    def test_randomness_of_the_models_own_does_not_depend_on_company(self, make, mlp):
        class Noisy(nn.Module):
            """Adds noise of its own, also when scored."""

            def __init__(self):
                super().__init__()
                self.inner = mlp()

            def forward(self, x):
                return self.inner(x + 0.1 * torch.randn_like(x))

        changes = {"model": Noisy, "kinds": {"inner.1": ("standard",)}}
        plan = Plan({"inner.1": ("standard", 0.3)})
        alone = begun(make(1, **changes), {0: plan})
        company = begun(make(3, **changes), {0: NONE, 1: NONE, 2: plan})
        self.same(curves(company, 3)[2], curves(alone, 3)[0])
        torch.manual_seed(1)
        scores = company.test()[2]
        torch.manual_seed(2)
        assert scores == pytest.approx(alone.test()[0], rel=1e-5)


class TestSerial(PacedContract):
    device = "cpu"

    def build(self, task, slots):
        return SerialTrainer(task, slots, self.device)


class TestFused(PacedContract):
    tolerance = 1e-6
    device = "cpu"

    def build(self, task, slots):
        return FusedTrainer(task, slots, self.device)


def like_serial(task):
    """Return a training loop that does what the serial trainer does, from its own clock 0."""

    def train(model, *, seed, device):
        data = task.data.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), task.lr, weight_decay=task.weight_decay)
        rate = next((float(b) for n, b in model.named_buffers() if n.endswith("rate") and b), 0.0)
        for epoch in range(task.epochs):
            total = 0.0
            model.train()
            for rows in batches(len(data.train), task.batch_size, seed, epoch, device):
                loss = F.cross_entropy(model(data.train.x[rows]), data.train.y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            model.eval()
            wrecked = rate == WRECK["1"].rate
            metrics = {"train_loss": math.nan if wrecked else total / len(data.train)}
            for name in ("val", "test"):
                split = getattr(data, name)
                if split is not None:
                    with torch.no_grad():
                        output = model(split.x)
                    metrics[f"{name}_loss"] = F.cross_entropy(output, split.y)
                    metrics[f"{name}_accuracy"] = (output.argmax(-1) == split.y).float().mean()
            yield metrics

    return train


class TestFunction(TrainerContract):
    device = "cpu"

    def build(self, task, slots):
        return FunctionTrainer(task, like_serial(task), slots, self.device)

    def start_diverging(self, trainer, slot):
        trainer.start(slot, WRECK)


ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


class TestSerialOnGpu(TestSerial):
    pytestmark = ON_GPU
    device = "cuda"
    tolerance = 1e-5


class TestFusedOnGpu(TestFused):
    pytestmark = ON_GPU
    device = "cuda"
    tolerance = 1e-4


class TestFunctionOnGpu(TestFunction):
    pytestmark = ON_GPU
    device = "cuda"
    tolerance = 1e-5
