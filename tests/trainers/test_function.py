"""The function trainer: what a user's own training loop may do, and what is said if it fails."""

import math

import pytest
import torch

from droptune.errors import PlanError, TrainingError
from droptune.install import read
from droptune.plan import Plan
from droptune.trainers import FunctionTrainer

LIGHT = Plan({"1": ("standard", 0.25)})


def started(make_task, train, plan=LIGHT, slots=1):
    trainer = FunctionTrainer(make_task(), train, slots)
    trainer.begin(4)
    trainer.start(0, plan)
    return trainer


def test_the_loop_gets_the_model_with_the_plan_the_seed_and_the_device(make_task):
    seen = []

    def train(model, *, seed, device):
        seen.append((read(model), seed, device))
        yield {"val_loss": 1.0}

    started(make_task, train).epoch()
    assert seen == [(LIGHT, 4, torch.device("cpu"))]


def test_metrics_are_sorted_into_train_loss_validation_and_test(make_task):
    def train(model, *, seed, device):
        yield {"train_loss": 2, "val_loss": torch.tensor(0.5), "reward": 7, "test_loss": 0.25}

    trainer = started(make_task, train)
    scores = trainer.epoch()[0]
    assert scores.train_loss == 2.0
    assert scores.metrics == {"val_loss": 0.5, "reward": 7.0}
    assert trainer.test() == {0: {"test_loss": 0.25}}


def test_a_loop_without_a_train_loss_has_none(make_task):
    def train(model, *, seed, device):
        yield {"val_loss": 1.0}

    scores = started(make_task, train).epoch()[0]
    assert math.isnan(scores.train_loss) and scores.failed is None


def test_a_loop_that_ends_early_keeps_its_last_metrics(make_task):
    def train(model, *, seed, device):
        yield {"val_loss": 2.0}
        yield {"val_loss": 1.0}

    trainer = started(make_task, train)
    scores = [trainer.epoch()[0] for _ in range(4)]
    assert [s.metrics["val_loss"] for s in scores] == [2.0, 1.0, 1.0, 1.0]
    assert all(s.failed is None for s in scores)


def ends_at_once(model, *, seed, device):
    return
    yield


def raises(model, *, seed, device):
    yield {"val_loss": 1.0}
    raise ZeroDivisionError("by nothing\nmore")


def exits(model, *, seed, device):
    yield {"val_loss": 1.0}
    raise SystemExit(3)


def yields_a_number(model, *, seed, device):
    yield 0.5


def yields_text(model, *, seed, device):
    yield {"val_loss": "good"}


def yields_a_vector(model, *, seed, device):
    yield {"val_loss": torch.zeros(3)}


@pytest.mark.parametrize(
    ("train", "epoch", "message"),
    [
        (ends_at_once, 0, "train= ended before its first yield; yield a dict of metrics"),
        (raises, 1, "train= raised ZeroDivisionError: by nothing"),
        (exits, 1, "train= raised SystemExit: 3"),
        (yields_a_number, 0, "train= yielded float; give a dict such as {'val_loss': 0.1}"),
        (yields_text, 0, "train= yielded 'val_loss': str, which is not one number"),
        (yields_a_vector, 0, "train= yielded 'val_loss': Tensor, which is not one number"),
    ],
)
def test_a_loop_that_fails_fails_its_member_in_one_line_and_for_good(
    make_task, train, epoch, message
):
    trainer = started(make_task, train)
    failures = [trainer.epoch()[0].failed for _ in range(epoch + 2)]
    assert failures == [None] * epoch + [message] * 2


def test_a_member_that_fails_leaves_the_others_alone(make_task):
    def train(model, *, seed, device):
        yield {"val_loss": 1.0 / (read(model) != LIGHT)}

    trainer = started(make_task, train, slots=2)
    trainer.start(1, Plan.none())
    scores = trainer.epoch()
    assert scores[0].failed == "train= raised ZeroDivisionError: float division by zero"
    assert scores[1].failed is None and scores[1].metrics == {"val_loss": 1.0}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda model, seed, device: {"val_loss": 1.0}, "train= returns dict; it must be a gener"),
        (lambda model: iter(()), "train= raised TypeError.*called as train.model, seed=.*device"),
    ],
)
def test_what_is_no_training_loop_is_told_at_the_start(make_task, train, message):
    with pytest.raises(TrainingError, match=message):
        started(make_task, train)


def test_learning_rate_and_weight_decay_are_the_loops_own(make_task):
    trainer = FunctionTrainer(make_task(), raises)
    trainer.begin(0)
    with pytest.raises(PlanError, match="sets its own lr, weight_decay, so droptune cannot; leave"):
        trainer.start(0, Plan(LIGHT, training={"lr": 0.1, "weight_decay": 0.0}))


def test_a_stopped_loop_is_closed(make_task):
    closed, kept = [], []

    def train(model, *, seed, device):
        try:
            while True:
                yield {"val_loss": 1.0}
        finally:
            closed.append(seed)

    def keeping(model, **settings):
        kept.append(train(model, **settings))
        return kept[0]

    trainer = started(make_task, keeping)
    trainer.epoch()
    trainer.stop(0)
    assert closed == [4]


def test_random_numbers_of_the_loop_depend_on_its_seed_and_epoch_alone(make_task):
    def train(model, *, seed, device):
        while True:
            yield {"val_loss": torch.rand(()), "more": torch.rand(())}

    alone = started(make_task, train)
    company = started(make_task, train, slots=2)
    company.start(1, Plan.none())
    drawn = []
    for _ in range(3):
        torch.rand(5)
        first, both = alone.epoch()[0].metrics, company.epoch()
        assert both[0].metrics == both[1].metrics == first
        drawn += first.values()
    assert len(set(drawn)) == 6
