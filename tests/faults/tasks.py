"""Targets of `droptune optimize`: small studies, one for each way to train and to choose."""

import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from droptune.data import Data
from droptune.study import Study

#: Of each study: epochs of a run, and trials of the search.
EPOCHS, TRIALS = 4, 10


def net() -> nn.Module:
    """Return a network for 30 inputs and 2 classes."""
    return nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


@cache
def _data() -> Data:
    x, y = load_breast_cancer(return_X_y=True)
    return Data.split((x[:240] - x.mean(0)) / x.std(0), y[:240])


def _study(name: str, **changes: Any) -> Study:
    settings = {
        "model": net,
        "data": _data(),
        "epochs": EPOCHS,
        "trials": TRIALS,
        "lr": 0.01,
        "confirm_blocks": 3,
        "trainer": "serial",
        "sampler": "random",
        "warm_start": (),
    }
    return Study(name, **settings | changes)


def own_loop(model: nn.Module, *, seed: int, device: Any) -> Iterator[dict[str, float]]:
    """Train with plain SGD, a batch an epoch."""
    data, optimizer = _data(), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(EPOCHS):
        model.train()
        loss = nn.functional.cross_entropy(model(data.train.x), data.train.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            value = nn.functional.cross_entropy(model(data.val.x), data.val.y)
        time.sleep(0.01)
        yield {"val_loss": float(value)}


serial = _study("serial")
many = _study("many", sampler="qmc", trials=80)
fused = _study("fused", trainer="fused", slots=3)
pruned = _study("pruned", pruner="median", epochs=8)
several = _study("several", objective=("val_loss", "val_accuracy"), trials=6)
function = _study(
    "function", data=None, train=own_loop, example=torch.zeros(2, 30), objective="val_loss"
)
#: A few trials alone, whose every commit is looked at.
tiny = _study("tiny", trials=5, epochs=3, confirm_blocks=2, pruner="median")
#: One run takes seconds, so that there is time to do something to it.
long = _study("long", trials=5, epochs=24, confirm_blocks=2)
long_fused = _study("long_fused", trials=6, epochs=24, confirm_blocks=2, trainer="fused", slots=3)
