"""Reliability bins: of one member, alike in every trainer, and stored with a confirmation."""

import pytest
import torch

import droptune as dt
from droptune.data import Split
from droptune.plan import Plan
from droptune.store.drawn import Drawn
from droptune.trainers import FusedTrainer, SerialTrainer
from droptune.trainers.reliability import BINS, reliability

PLANS = {0: Plan.none(), 1: Plan({"1": ("standard", 0.5)})}


def logits(chances: torch.Tensor) -> torch.Tensor:
    """Return logits of two classes of which the second has these probabilities."""
    return torch.stack([torch.zeros_like(chances), torch.logit(chances)], -1)


def test_bins_hold_confidence_accuracy_and_count(make_task):
    chances = torch.tensor([0.9] * 15 + [0.6] * 15)
    split = Split(chances, torch.tensor([1] * 15 + [0] * 6 + [1] * 9))
    bins = reliability(make_task(batch_size=2), split, logits)
    assert len(bins) == BINS and sum(count for _, _, count in bins) == 30
    sure = [b for b in bins if b[0] > 0.75]
    assert sure[-1] == [pytest.approx(0.9), 1.0, 2]
    unsure = [b for b in bins if b[0] < 0.65]
    assert [b[0] for b in bins] == sorted(b[0] for b in bins)
    assert sum(b[1] * b[2] for b in unsure) == pytest.approx(8, abs=1)  # 9 of the 15, a bin mixed


def test_one_logit_is_as_sure_of_no_as_of_yes(make_task):
    split = Split(torch.logit(torch.tensor([0.1, 0.9])), torch.tensor([0.0, 0.0]))
    task = make_task(loss="binary_cross_entropy")
    bins = reliability(task, split, lambda x: x[:, None])
    assert [b[0] for b in bins] == [pytest.approx(0.9)] * 2
    assert sorted(b[1] for b in bins) == [0.0, 1.0]


def test_there_are_none_without_classes_or_finite_outputs(make_task, make_data):
    split = Split(torch.ones(4), torch.ones(4))
    assert reliability(make_task(loss="mse"), split, lambda x: x) == []
    labels = Split(torch.ones(4), torch.ones(4).long())
    assert reliability(make_task(), labels, lambda x: logits(x) * torch.nan) == []


def test_fused_and_serial_agree_and_accuracy_is_that_of_the_scores(make_task):
    found = []
    for kind in (FusedTrainer, SerialTrainer):
        trainer = kind(make_task(), 2)
        trainer.begin(3)
        for slot, plan in PLANS.items():
            trainer.start(slot, plan)
        scores = [trainer.epoch() for _ in range(2)][-1]
        found.append([trainer.reliability(slot) for slot in PLANS])
        for slot, bins in enumerate(found[-1]):
            accuracy = sum(b[1] * b[2] for b in bins) / sum(b[2] for b in bins)
            assert accuracy == pytest.approx(scores[slot].metrics["val_accuracy"])
    for one, other in zip(*found, strict=True):
        assert one == [pytest.approx(b, abs=1e-4) for b in other]
    assert found[0][0] != found[0][1]


def test_asking_changes_nothing(make_task):
    curves = []
    for asks in (False, True):
        trainer = FusedTrainer(make_task(), 1)
        trainer.begin(3)
        trainer.start(0, PLANS[1])
        losses = []
        for _ in range(3):
            losses.append(trainer.epoch()[0].train_loss)
            if asks:
                trainer.reliability(0)
        curves.append(losses)
    assert curves[0] == curves[1]


def test_runs_of_the_confirmation_store_them(make_data, mlp, tmp_path):
    url = f"sqlite:///{tmp_path / 'droptune.db'}"
    study = dt.Study(
        "mine",
        model=mlp,
        data=make_data(),
        epochs=2,
        trials=3,
        confirm_blocks=2,
        trainer="fused",
        slots=4,
        store=url,
    )
    study.optimize()
    with Drawn(url) as queries:
        runs = queries.confirm_runs("mine")
        ends = [run["metrics"]["reliability"] for run in runs]
        (search,) = queries.curves([queries.search_run("mine", 0)]).values()
    assert ends and all(sum(b[2] for b in bins) == 16 for bins in ends)
    assert "reliability" not in search[-1]["metrics"]
