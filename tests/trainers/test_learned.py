"""droptune/trainers/learned.py: rates that training learns, fused and one by one."""

import json

import pytest
import torch
from torch import nn

import droptune
from droptune.consistency import Term
from droptune.install import installed
from droptune.plan import Plan
from droptune.trainers import FusedTrainer, SerialTrainer
from droptune.trainers.learned import learners, with_penalty
from tests.small import Notes, fresh, rows, study

KINDS = {"1": ("concrete", "standard"), "3": ("concrete",)}
PLANS = [
    Plan({"1": ("concrete", 0.1), "3": ("concrete", 0.4)}),
    Plan({"1": ("concrete", 0.2, "ramp", 0.8)}),
    Plan({"3": ("concrete", 0.2)}, Term("r_drop", 0.5)),
    Plan({"3": ("concrete", 0.2)}, Term("adversarial", 0.5, 0, 0.2)),
    Plan({"1": ("standard", 0.2)}),
    Plan.none(),
]


def build():
    return nn.Sequential(
        nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()


@pytest.fixture
def task(make_task, make_data):
    return make_task(make_data(dtype=torch.float64), model=build, kinds=KINDS, lr=0.05)


def trained(cls, task, plans=PLANS, epochs=4):
    trainer = cls(task, len(plans))
    trainer.begin(2)
    for slot, plan in enumerate(plans):
        trainer.start(slot, plan)
    for _ in range(epochs):
        scores = trainer.epoch()
    return trainer, scores


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_learned_rates_are_the_same_fused_and_one_by_one(make_task, make_data, weights, optimizer):
    data = make_data(dtype=torch.float64)
    task = make_task(data, model=build, kinds=KINDS, lr=0.05, optimizer=optimizer)
    (fused, ours), (serial, theirs) = trained(FusedTrainer, task), trained(SerialTrainer, task)
    for slot in range(len(PLANS)):
        mine, reference = weights(fused, slot), weights(serial, slot)
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, reference[name], rtol=1e-10, atol=1e-10)
        assert ours[slot].metrics == pytest.approx(theirs[slot].metrics, rel=2e-6)


def test_the_learned_rates_are_among_the_scores_of_who_learns(task):
    _, scores = trained(FusedTrainer, task)
    learned = [{n: v for n, v in s.metrics.items() if "rate" in n} for s in scores.values()]
    sites = [["rate 1", "rate 3"], ["rate 1"], ["rate 3"], ["rate 3"], [], []]
    assert list(map(list, learned)) == sites
    started = [{"rate 1": 0.1, "rate 3": 0.4}, {"rate 1": 0.2}, {"rate 3": 0.2}, {"rate 3": 0.2}]
    for rates, start in zip(learned, started, strict=False):
        for name, rate in rates.items():
            assert 0 < rate < 1 and abs(rate - start[name]) > 0.001


def test_who_learns_no_rate_trains_bit_for_bit_as_without_the_others(task, weights):
    (mixed, _), (plain, _) = (
        trained(FusedTrainer, task, plans)
        for plans in (PLANS, [PLANS[4]] * 4 + PLANS[4:])
    )  # fmt: skip
    for slot in (4, 5):
        mine, alone = weights(mixed, slot), weights(plain, slot)
        assert all(torch.equal(mine[name], alone[name]) for name in mine)
        assert all(tensor == 0 for name, tensor in mine.items() if name.endswith("shift"))


def test_a_restored_member_goes_on_learning(task, weights):
    for cls in (FusedTrainer, SerialTrainer):
        whole, _ = trained(cls, task)
        first, _ = trained(cls, task, epochs=2)
        second = cls(task, len(PLANS))
        second.restore(first.save())
        for _ in range(2):
            second.epoch()
        for slot in range(len(PLANS)):
            expected = weights(whole, slot)
            for name, tensor in weights(second, slot).items():
                assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(("loss", "scale"), [("cross_entropy", 1), ("mse", 2), (max, 1)])
def test_the_loss_gains_the_entropy_of_each_layer(task, loss, scale):
    model = task.build(0).train()
    for dropout in installed(model).values():
        dropout.set(PLANS[0][dropout.site])
    buffers = dict(model.named_buffers())
    zero = torch.zeros((), dtype=torch.float64)
    assert with_penalty(zero, learners(model), buffers, loss, 40) == 0  # nothing has passed yet
    model(task.data.train.x)
    p = torch.tensor([0.1, 0.4], dtype=torch.float64)
    units = torch.tensor([16.0, 8.0], dtype=torch.float64)
    expected = (scale / 40 * units * (p * p.log() + (1 - p) * (1 - p).log())).sum()
    found = with_penalty(zero, learners(model), buffers, loss, 40)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_few_samples_drive_a_rate_up_and_many_leave_it_to_the_data(make_task, make_data):
    """The penalty is divided by the samples: what is learned falls as these grow."""
    learned = []
    for samples in (16, 512):
        data = make_data(samples, dtype=torch.float64)
        task = make_task(data, model=build, kinds=KINDS, lr=0.02, batch_size=16)
        steps = {16: 64, 512: 2}[samples]
        _, scores = trained(SerialTrainer, task, PLANS[:1], steps)
        learned.append(scores[0].metrics["rate 1"])
    assert learned[0] > learned[1] + 0.05


def test_no_key_of_the_state_is_new_and_remove_takes_all_away():
    model = build()
    keys, plan = list(model.state_dict()), Plan({"1": ("concrete", 0.3)})
    droptune.apply(model, plan)
    assert list(model.state_dict()) == keys and len(learners(model)) == 1
    assert droptune.read(model) == plan
    droptune.remove(model)
    assert not learners(model)


def test_a_study_stores_what_was_learned(tmp_path):
    url = fresh(tmp_path)
    study(url, kinds=["concrete"], trials=4, epochs=2, confirm_blocks=0).optimize(progress=Notes())
    stored = [json.loads(metrics) for (metrics,) in rows(url, "SELECT metrics FROM droptune_curve")]
    assert any(name.startswith("rate ") for metrics in stored for name in metrics)
