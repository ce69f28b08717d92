"""What a traced step cannot carry is noticed, and such a model is trained serially."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch
from torch import nn

from droptune.errors import ModelError
from droptune.plan import Plan
from droptune.trainers import FusedTrainer, SerialTrainer, choose


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)
        self.unused = nn.Linear(6, 3)
        self.calls = 0


class Counting(Odd):
    """Counts its calls, and stops adding noise of its own after the first."""

    def forward(self, x):
        self.calls += 1
        return self.inner(x) / self.calls


class PythonRandom(Odd):
    def forward(self, x):
        return self.inner(x) * random.random()


class NumpyRandom(Odd):
    def forward(self, x):
        return self.inner(x) * float(numpy.random.rand())


class Unused(Odd):
    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("model", [Counting, PythonRandom, NumpyRandom])
def test_a_forward_that_changes_python_state_is_not_trained_fused(make_task, model):
    task, said = make_task(model=model, kinds={}), []
    fused = FusedTrainer(task, 2)
    fused.begin(0)
    fused.start(0, Plan.none())
    with pytest.raises(ModelError, match="its forward changes an attribute, or draws from"):
        fused.epoch()
    assert isinstance(choose(task, say=said.append), SerialTrainer)
    assert "so it is trained serially" in said[0]


def test_a_parameter_that_the_forward_does_not_use_keeps_a_model_fused(make_task):
    curves = []
    for kind in (FusedTrainer, SerialTrainer):
        trainer = kind(make_task(model=Unused, kinds={}), 1)
        trainer.begin(0)
        trainer.start(0, Plan.none())
        curves.append([trainer.epoch()[0].train_loss for _ in range(3)])
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-5, atol=0)


class Fixed(Unused):
    """Draws no weights: torch's global generator is common to all threads."""

    def __init__(self):
        super().__init__()
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)


def test_threads_trace_one_after_the_other(make_task):
    def losses(_=None):
        task = make_task(model=Fixed, kinds={})
        found = []
        for width in (1, 2, 3):
            fused = FusedTrainer(task, width)
            fused.begin(0)
            for slot in range(width):
                fused.start(slot, Plan.none())
            found.append([scores.metrics for scores in fused.epoch().values()])
        return found

    alone = losses()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(losses, range(8))) == [alone] * 8
