"""Every kind of dropout, trained fused and one by one: the same noise, steps and weights."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from droptune.kinds import KINDS
from droptune.plan import Entry, Plan
from droptune.trainers import FusedTrainer, SerialTrainer, Task

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
#: Of the kind that draws once a batch, so many that each rate drops something.
BATCH = {"layer_drop": 4}
#: Kinds for places that these layers do not have, and where they are trained.
ELSEWHERE = {"drop_key": "tests/test_functional_training.py"}


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
        batch_size=BATCH.get(kind, 16),
        kinds={"1": ["gaussian", kind] if kind != "gaussian" else [kind], "3": [kind]},
    )
    check(task, [Plan({"1": (kind, rate), "3": (kind, rate / 2)}) for rate in RATES], weights)


def spread(kind: str, part: float, rate: float) -> Entry:
    """Return an entry whose settings lie at some part of their bounds; every other is turned."""
    known = KINDS[kind].settings.items()
    settings = {
        name: s.nearest(s.low + abs(i % 2 - part) * (s.high - s.low))
        for i, (name, s) in enumerate(known)
    }
    return Entry(kind, rate, "late", 0.6, settings)


@pytest.mark.parametrize(
    ("kind", "layout"), [(kind, layout) for kind, layout in FITTING if KINDS[kind].settings]
)
def test_members_may_differ_in_settings(make_task, make_data, weights, kind, layout):
    task = make_task(
        make_data(40, LAYERS[layout][2], dtype=torch.float64),
        model=partial(build, layout),
        kinds={"1": [kind], "3": ["standard", kind]},
        epochs=2,
    )
    parts = (0.2, 0.4, 0.6, 0.8)  # at the ends a grid may hit nothing, or all
    plans = [Plan({"1": spread(kind, part, 0.7), "3": spread(kind, 1 - part, 0.5)})
             for part in parts]  # fmt: skip
    check(task, [*plans, Plan({"1": (kind, 0.7), "3": ("standard", 0.5)})], weights)


def check(task: Task, plans: list[Plan], weights) -> None:
    """Train plans fused and one by one: losses and weights are equal, no two members' alike."""
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
    inside = {name for name in KINDS if KINDS[name].only_inside()}  # test_recurrent.py
    assert {kind for kind, _ in FITTING} | inside == set(KINDS) - set(ELSEWHERE)
    for kind, path in ELSEWHERE.items():
        assert f'"{kind}"' in (Path(__file__).parents[2] / path).read_text()
