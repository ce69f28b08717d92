"""Tokens without labels: no figure of a split counts them, however its batches fall."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from droptune.data import Data
from droptune.metrics import METRICS
from droptune.plan import Plan
from droptune.trainers.base import EVAL_BATCHES, Task, build
from droptune.trainers.fused import FusedTrainer
from droptune.trainers.ignored import summed
from droptune.trainers.serial import SerialTrainer

WORDS, LENGTH, BATCH = 7, 5, 8
ROWS = BATCH * EVAL_BATCHES  # evaluated at once


class Tagger(nn.Module):
    """Logits `batch x words x length`."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 6), nn.Linear(6, WORDS)

    def forward(self, x):
        return self.head(self.words(x).relu()).transpose(1, 2)


def split(rows: int):
    """Return samples of which the first have fewer labels, and the last, a batch, have none."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randint(0, WORDS, (rows, LENGTH), generator=generator)
    y = x.clone()
    y[: rows // 2, 1:] = -100
    y[-BATCH:] = -100
    return x, y


@pytest.fixture(scope="module")
def task():
    # Two batches to evaluate, of which the second has no label.
    data = Data(train=split(4 * BATCH), val=split(ROWS + BATCH))
    metrics = [METRICS["accuracy"], METRICS["f1"]]
    return Task(Tagger, data, lr=0.0, batch_size=BATCH, epochs=1, metrics=metrics)


@pytest.mark.parametrize("trainer", [SerialTrainer, FusedTrainer])
def test_only_labels_that_are_there_count(task, trainer):
    members = trainer(task, 2)
    members.begin(seed=3)
    members.start(0, Plan.none())
    scores = members.epoch()[0]
    val, train = task.data.val, task.data.train
    model = build(Tagger, 3)
    with torch.no_grad():
        output = model(val.x)
        expected = F.cross_entropy(output, val.y).item()
        trained = F.cross_entropy(model(train.x), train.y).item()
    known = val.y != -100
    right = (output.argmax(1) == val.y)[known].float().mean().item()
    assert scores.failed is None
    assert scores.metrics["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert scores.train_loss == pytest.approx(trained, rel=1e-5)
    assert scores.metrics["val_accuracy"] == pytest.approx(right)
    shares = torch.bincount(train.y[train.y != -100]) / (train.y != -100).sum()
    entropy = -torch.special.xlogy(shares, shares).sum().item()
    assert members.fit(0)["fit_constant_loss"] == pytest.approx(entropy)


def test_a_batch_without_a_label_adds_nothing():
    means = torch.tensor([float("nan"), float("nan")])
    assert summed("cross_entropy", means, torch.full((4, LENGTH), -100)).tolist() == [0.0, 0.0]
