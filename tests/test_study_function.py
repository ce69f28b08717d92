"""A study of the user's own training loop: what is run, what is stored."""

import json

import pytest
import torch
from torch import nn

from droptune.store import Queries
from tests.small import Notes, cancer, fresh, rows, study, trials


@pytest.fixture
def url(tmp_path):
    return fresh(tmp_path)


def by_hand(model, *, seed, device):
    """Train in the user's own way; the test score must sway nothing."""
    data = cancer()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for epoch in range(9):
        model.train()
        loss = nn.functional.cross_entropy(model(data.train.x), data.train.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            score = nn.functional.cross_entropy(model(data.val.x), data.val.y).item()
        yield {"train_loss": loss.item(), "score": score, "test_score": epoch}


def own(url, **changes):
    example = torch.zeros(2, 30)
    settings = {"data": None, "train": by_hand, "example": example, "objective": "score"}
    return study(url, **settings | changes)


def test_a_training_loop_of_ones_own_is_tuned(url):
    result = own(url).optimize(progress=Notes())
    assert trials(url) == [(number, "COMPLETE") for number in range(6)]
    metrics = [json.loads(m) for (m,) in rows(url, "SELECT metrics FROM droptune_curve")]
    assert {tuple(one) for one in metrics} == {("score",)}, "the test score is kept apart"
    tests = rows(url, "SELECT phase, test FROM droptune_run")
    assert {test for phase, test in tests if phase == "search"} == {None}
    assert {test for phase, test in tests if phase == "confirm"} == {'{"test_score":2.0}'}
    assert result.test["test_score"]["control"] == 2.0
    assert rows(url, "SELECT DISTINCT trainer, slot FROM droptune_run") == [("function", 0)]
    assert own(url).optimize(progress=Notes()).finished_before


@pytest.mark.parametrize("example", [(torch.zeros(2, 30),), {"input": torch.zeros(2, 30)}])
def test_the_example_may_be_arguments_or_keywords(url, example):
    one = own(url, example=example, confirm_blocks=0)
    assert [site.name for site in one.sites()] == ["@input", "2"]
    assert one.remarks() == [] and one.trains().startswith("by its own loop")
    one.optimize(progress=Notes())
    assert trials(url) == [(number, "COMPLETE") for number in range(6)]


def test_a_training_loop_that_raises_fails_its_trial_alone(url):
    def fails(model, *, seed, device):
        yield from by_hand(model, seed=seed, device=device) if next(HEADS) else iter([{}["x"]])

    HEADS = iter([True, False] + [True] * 99)
    own(url, train=fails, confirm_blocks=0).optimize(progress=Notes())
    assert trials(url)[1] == (1, "FAIL")
    assert {state for number, state in trials(url) if number != 1} == {"COMPLETE"}
    with Queries(url) as queries:
        assert queries.trial("mine", 1)["message"] == "train= raised KeyError: 'x' at epoch 1"


def test_nats_are_claimed_of_droptunes_own_loss_alone(url):
    def theirs(model, *, seed, device):
        for score in by_hand(model, seed=seed, device=device):
            yield {"val_loss": score["score"] ** 0.5}

    changes = {"objective": "val_loss", "trials": 3, "confirm_blocks": 2}
    said = str(own(url, train=theirs, name="theirs", **changes).optimize(progress=Notes()).verdict)
    assert "paired seeds" in said and "nats" not in said
    assert " nats" in str(study(url, **changes).optimize(progress=Notes()).verdict)
