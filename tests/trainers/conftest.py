"""What the tests of trainers share: small data, small models, and tasks of both."""

import pytest
import torch
from torch import Tensor, nn

from droptune.data import Data, Split
from droptune.trainers import Task


def make_data(rows=48, shape=(6,), classes=3, seed=0, test=True, dtype=torch.float32) -> Data:
    """Return noisy classes that can be learned; `classes` 0 means regression on one number."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for n in (rows, 16, 16):
        y = torch.arange(n) % max(classes, 2)
        x = torch.randn(n, *shape, generator=generator) + y.view(-1, *(1,) * len(shape))
        parts.append((x, y if classes else x.flatten(1).mean(1)))
    data = Data(parts[0], parts[1], parts[2] if test else None)
    for name in ("train", "val", "test"):
        part = getattr(data, name)
        if part is not None:  # Data makes everything float32
            setattr(data, name, Split(part.x.to(dtype), part.y))
    return data


def mlp(activation=nn.Tanh, out=3) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, out)
    )


MLP_KINDS = {"@input": ("standard",), "1": ("standard", "gaussian"), "3": ("standard", "gaussian")}


@pytest.fixture(scope="session")
def make_task():
    """Return a function (changes) -> task: an MLP on 48 samples, in 3 batches an epoch."""

    def make(data: Data | None = None, **changes) -> Task:
        settings = {"model": mlp, "kinds": MLP_KINDS, "epochs": 6, "batch_size": 16, "lr": 1e-2}
        return Task(data=data or make_data(), **{**settings, **changes})

    return make


@pytest.fixture(scope="session", name="make_data")
def _make_data():
    return make_data


@pytest.fixture(scope="session", name="mlp")
def _mlp():
    return mlp


def weights(trainer, slot: int) -> dict[str, Tensor]:
    """Return parameters and buffers of a member, by name, from what `save` keeps."""
    mine = {
        key.removeprefix(f"{slot} "): tensor
        for key, tensor in trainer.save().tensors.items()
        if key.startswith(f"{slot} ")
    }
    return {name: tensor for name, tensor in mine.items() if not name.startswith("state ")}


@pytest.fixture(scope="session", name="weights")
def _weights():
    return weights
