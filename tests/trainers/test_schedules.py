"""Rates that move over training, in every trainer."""

import json

import pytest
import torch
import torch.nn.functional as F

from droptune.install import installed
from droptune.plan import Plan
from droptune.schedule import SCHEDULES
from droptune.trainers import FunctionTrainer, FusedTrainer, Saved, SerialTrainer

EPOCHS = 6
SITES = ("@input", "1", "3")


def moving(schedule: str, fraction: float | None = 0.5) -> Plan:
    return Plan({site: ("standard", 0.4, schedule, fraction) for site in SITES})


PLANS = [moving(schedule) for schedule in SCHEDULES]
NONE, CONSTANT = Plan.none(), moving("constant", None)


def curve(trainer, plan: Plan, epochs: int = EPOCHS) -> list[list[float]]:
    trainer.begin(seed=3)
    trainer.start(0, plan)
    return [
        [s.train_loss, *s.metrics.values()] for _ in range(epochs) for s in trainer.epoch().values()
    ]


@pytest.mark.parametrize("Trainer", [FusedTrainer, SerialTrainer])
class TestBoth:
    def test_late_is_no_dropout_first_and_early_is_no_dropout_last(self, make_task, Trainer):
        trainer = Trainer(make_task(epochs=EPOCHS), 1)
        none, constant = curve(trainer, NONE), curve(trainer, CONSTANT)
        late, early = curve(trainer, moving("late")), curve(trainer, moving("early"))
        # Epochs 0, 1, 2 of 6 are before the half of training, for the last is at 1.
        assert late[:3] == none[:3]
        assert late[3] != none[3]
        assert early[0] == constant[0]
        assert early[1] != constant[1] and early[1] != none[1]

    def test_a_ramp_ends_at_the_whole_rate(self, make_task, Trainer, weights):
        trainer = Trainer(make_task(epochs=EPOCHS), 1)
        curve(trainer, moving("ramp", 1.0), EPOCHS - 1)
        before = [v for name, v in weights(trainer, 0).items() if name.endswith("standard.rate")]
        trainer.epoch()
        after = [v for name, v in weights(trainer, 0).items() if name.endswith("standard.rate")]
        assert before == pytest.approx([0.4 * 0.8] * 3)
        assert after == pytest.approx([0.4] * 3)

    def test_going_on_from_what_was_saved_moves_on_too(self, make_task, Trainer):
        trainer = Trainer(make_task(epochs=EPOCHS), 1)
        whole = curve(trainer, moving("ramp", 1.0))
        curve(trainer, moving("ramp", 1.0), 3)
        saved = trainer.save()
        again = Trainer(make_task(epochs=EPOCHS), 1)
        again.restore(Saved(saved.tensors, json.loads(json.dumps(saved.rest))))
        rest = [
            [s.train_loss, *s.metrics.values()] for _ in range(3) for s in again.epoch().values()
        ]
        assert rest == whole[3:]


def test_each_member_moves_by_its_own_age_and_as_it_does_alone(make_task):
    fused = FusedTrainer(make_task(epochs=EPOCHS), len(PLANS) + 1)
    fused.begin(seed=3)
    for slot, plan in enumerate(PLANS):
        fused.start(slot, plan)
    found: dict[int, list[float]] = {slot: [] for slot in range(len(PLANS) + 1)}
    for epoch in range(EPOCHS + 2):
        if epoch == 2:  # one enters late
            fused.start(len(PLANS), moving("ramp"))
        if epoch == EPOCHS:
            for slot in range(len(PLANS)):
                fused.stop(slot)
        for slot, scores in fused.epoch().items():
            found[slot].append(scores.train_loss)
    serial = SerialTrainer(make_task(epochs=EPOCHS), 1)
    for slot, plan in enumerate([*PLANS, moving("ramp")]):
        serial.begin(seed=3, clock=2 if slot == len(PLANS) else 0)
        serial.start(0, plan)
        alone = [serial.epoch()[0].train_loss for _ in range(EPOCHS)]
        assert found[slot] == pytest.approx(alone, rel=1e-5)


def test_the_users_own_loop_sees_the_rates_move(make_task):
    seen = []

    def train(model, *, seed, device):
        for _ in range(EPOCHS):
            model.train()
            seen.append(installed(model)["1"].standard.rate.item())
            loss = F.cross_entropy(model(torch.zeros(2, 6)), torch.tensor([0, 1]))
            yield {"val_loss": loss.item()}

    trainer = FunctionTrainer(make_task(epochs=EPOCHS), train)
    trainer.begin(seed=0)
    trainer.start(0, moving("ramp", 1.0))
    for _ in range(EPOCHS):
        trainer.epoch()
    assert seen == pytest.approx([0.4 * epoch / (EPOCHS - 1) for epoch in range(EPOCHS)])
