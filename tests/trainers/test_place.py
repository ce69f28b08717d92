"""droptune/trainers/place.py: a line that says where in a model something went wrong."""

import sys

import pytest
import torch
from torch import nn

from droptune.errors import ModelError
from droptune.plan import Plan
from droptune.trainers import FusedTrainer
from droptune.trainers.place import place_of, why
from tests.test_recomputation import Layers


def test_the_place_is_the_first_frame_that_is_neither_torchs_nor_droptunes():
    class Asks(nn.Module):
        def forward(self, x):
            return place_of(frames())

    def frames():
        frame = sys._getframe(1)
        while frame:
            yield frame
            frame = frame.f_back

    line = Asks.forward.__code__.co_firstlineno + 1
    assert Asks()(1) == f" at test_place.py line {line}"
    assert place_of([]) == ""


def test_an_error_is_told_with_its_place():
    try:
        nn.Linear(2, 2)(torch.ones(3))
    except RuntimeError as error:
        line = error.__traceback__.tb_lineno
        assert why(error).startswith("RuntimeError: ")
        assert why(error).endswith(f" at test_place.py line {line}")
    assert why(ValueError("a\nb")) == "ValueError: a"


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_named_as_the_reason(make_task, make_data, reentrant):
    task = make_task(make_data(32, (6,)), model=lambda: Layers(reentrant), kinds={})
    fused = FusedTrainer(task, 2)
    fused.begin(0)
    fused.start(0, Plan.none())
    with pytest.raises(ModelError, match="torch.utils.checkpoint runs a part of its forward"):
        fused.epoch()
