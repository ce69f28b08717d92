"""The serial trainer against a training loop written by hand, in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from droptune import columns
from droptune.data import batches
from droptune.errors import ModelError
from droptune.plan import Plan
from droptune.trainers import FusedTrainer, SerialTrainer, Task, build
from tests.narrowing import narrow


def by_hand(task: Task, seed: int, epochs: int) -> list[float]:
    """Return the training losses of the untouched model, with torch's own scheduler."""
    model = build(task.model, seed)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = (
        torch.optim.AdamW(params, task.lr, weight_decay=task.weight_decay, foreach=False)
        if task.optimizer == "adamw"
        else torch.optim.SGD(
            params, task.lr, momentum=task.momentum, weight_decay=task.weight_decay
        )
    )
    steps = task.steps * task.epochs
    scheduler = {
        "one-cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, task.lr, total_steps=steps, cycle_momentum=False
        ),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    }[task.lr_schedule]()
    losses, step = [], 0
    for epoch in range(epochs):
        total = 0.0
        for rows in batches(len(task.data.train), task.batch_size, seed, epoch):
            loss = F.cross_entropy(model(task.data.train.x[rows]), task.data.train.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step < steps:
                scheduler.step()
            total += loss.item() * len(rows)
        losses.append(total / len(task.data.train))
    return losses


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_no_dropout_trains_like_the_untouched_model(make_task, make_data, optimizer, schedule):
    def model():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GELU(), nn.Dropout(0.0), nn.Flatten(), nn.Linear(16, 3)
        ).double()

    task = make_task(
        make_data(40, (1, 4, 4), dtype=torch.float64),
        model=model,
        kinds={"2": ["standard"], "@input": ["channel"]},
        optimizer=optimizer,
        lr_schedule=schedule,
        weight_decay=0.1,
    )
    trainer = SerialTrainer(task)
    trainer.begin(5)
    trainer.start(0, Plan.none())
    losses = [trainer.epoch()[0].train_loss for _ in range(task.epochs)]
    assert losses == pytest.approx(by_hand(task, 5, task.epochs), rel=1e-6)


def test_dropout_that_the_model_came_with_is_off_unless_the_plan_says_otherwise(make_task):
    def model():
        return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.9), nn.Linear(16, 3))

    losses = []
    for kinds, plan in [
        ({}, Plan.none()),
        ({"1": ["standard"]}, Plan.none()),
        ({"1": ["standard"]}, Plan({"1": ("standard", 0.9)})),
    ]:
        trainer = SerialTrainer(make_task(model=model, kinds=kinds))
        trainer.begin(0)
        trainer.start(0, plan)
        losses.append(trainer.epoch()[0].train_loss)
    assert losses[0] == losses[1] != losses[2]


class Failing(nn.Linear):
    def __init__(self, error):
        super().__init__(6, 3)
        self.error = error

    def forward(self, x):
        raise self.error


def started(task):
    trainer = SerialTrainer(task)
    trainer.begin(0)
    trainer.start(0, Plan.none())
    return trainer


def test_a_model_that_fails_names_the_shape_of_the_batch(make_task):
    task = make_task(model=lambda: Failing(ValueError("too odd\nmore")), kinds={})
    message = r"^the model fails on a batch of shape \(16, 6\): too odd$"
    with pytest.raises(ModelError, match=message):
        started(task).epoch()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 TB"),
    ],
)
def test_memory_that_ends_is_no_fault_of_the_model(make_task, error):
    with pytest.raises(RuntimeError) as raised:
        started(make_task(model=lambda: Failing(error), kinds={})).epoch()
    assert raised.value is error


def test_controlled_dropout_uses_smaller_matrices_and_trains_like_fused(
    make_task, make_data, mlp, weights, monkeypatch
):
    monkeypatch.setattr(columns, "pays", lambda *_: True)
    task = make_task(
        make_data(dtype=torch.float64),
        model=lambda: mlp().double(),
        kinds={site: ["standard", "controlled"] for site in ("1", "3")},
    )
    plan = Plan({"1": ("controlled", 0.5, "early", 0.5), "3": ("controlled", 0.25)})
    serial, fused = SerialTrainer(task), FusedTrainer(task, 1)
    for trainer in (serial, fused):
        trainer.begin(3)
        trainer.start(0, plan)
        for _ in range(4):
            trainer.epoch()
    assert narrow(serial._members[0].model) == ["0", "2"]
    ours, theirs = weights(serial, 0), weights(fused, 0)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-11)
