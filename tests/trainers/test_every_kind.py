"""Every kind of dropout, trained fused and one by one: the same noise, steps and weights."""

from functools import partial

import pytest
import torch
from torch import nn

from droptune.kinds import KINDS
from droptune.plan import Plan
from droptune.trainers import FusedTrainer, SerialTrainer

RATES = (0.0, 0.15, 0.4, 0.7)


#: Layout -> two layers that keep it, how many numbers are left, and the shape of a sample.
LAYERS = {
    # Behind the second convolution maps are 8 x 8, larger than a block.
    "NCHW": (lambda: (nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 2)), 192, (1, 11, 11)),
    "NCL": (lambda: (nn.Conv1d(2, 4, 2), nn.Conv1d(4, 3, 2)), 30, (2, 12)),
    "NLF": (lambda: (nn.Linear(4, 6), nn.Linear(6, 5)), 35, (7, 4)),
    "NF": (lambda: (nn.Linear(4, 9), nn.Linear(9, 7)), 7, (4,)),
}
FITTING = [
    (kind, layout) for kind in KINDS for layout in LAYERS if KINDS[kind].fits(layout, "residual")
]


def build(layout: str) -> nn.Sequential:
    layers, left, _ = LAYERS[layout]
    first, second = layers()
    return nn.Sequential(
        first, nn.Tanh(), second, nn.GELU(), nn.Flatten(), nn.Linear(left, 3)
    ).double()


@pytest.mark.parametrize(("kind", "layout"), FITTING)
def test_fused_equals_serial(make_task, make_data, weights, kind, layout):
    task = make_task(
        make_data(40, LAYERS[layout][2], dtype=torch.float64),
        model=partial(build, layout),
        kinds={"1": ["gaussian", kind] if kind != "gaussian" else [kind], "3": [kind]},
    )
    plans = [Plan({"1": (kind, rate), "3": (kind, rate / 2)}) for rate in RATES]
    fused, serial = FusedTrainer(task, len(plans)), SerialTrainer(task, len(plans))
    for trainer in (fused, serial):
        trainer.begin(5, 1)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
    losses = []
    for _ in range(2):
        ours, theirs = fused.epoch(), serial.epoch()
        for slot in range(len(plans)):
            assert ours[slot].failed is None and theirs[slot].failed is None
            assert ours[slot].train_loss == pytest.approx(theirs[slot].train_loss, rel=2e-6)
            assert ours[slot].metrics == pytest.approx(theirs[slot].metrics, rel=2e-6, abs=1e-7)
        losses = [scores.train_loss for scores in ours.values()]
    assert len(set(losses)) == len(plans)
    for slot in range(len(plans)):
        mine, reference = weights(fused, slot), weights(serial, slot)
        assert mine.keys() == reference.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, reference[name], rtol=1e-10, atol=1e-12)


def test_every_kind_trains_somewhere():
    assert {kind for kind, _ in FITTING} == set(KINDS)
