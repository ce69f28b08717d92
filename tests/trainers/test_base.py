"""The task, losses, scores and learning rates that all trainers share."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from droptune.errors import ModelError, TrainingError
from droptune.plan import Plan
from droptune.trainers.base import (
    build,
    check_kinds,
    correct,
    diverged,
    learning_rate,
    matched,
    mean_loss,
    stacked_losses,
)


def torchs_rates(schedule, base, steps):
    """Return the learning rates that torch's own scheduler gives, one a step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], base)
    scheduler = {
        "one-cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, base, total_steps=steps, cycle_momentum=False
        ),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    }[schedule]()
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < steps:
            scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 97])
def test_learning_rates_are_those_of_torchs_schedulers(schedule, steps):
    expected = torchs_rates(schedule, 0.3, steps)
    got = [learning_rate(schedule, 0.3, step, steps) for step in range(steps)]
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(
    st.sampled_from(["one-cycle", "cosine", "constant"]),
    st.floats(1e-6, 10),
    st.integers(1, 500),
    st.integers(0, 600),
)
def test_a_learning_rate_lies_between_zero_and_the_highest(schedule, base, steps, step):
    assert 0 <= learning_rate(schedule, base, step, steps) <= base * (1 + 1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; allowed: adamw, sgd"),
        ({"lr_schedule": "step"}, "unknown lr_schedule 'step'; allowed: constant, cosine"),
        ({"loss": "hinge"}, "unknown loss 'hinge'; allowed: cross_entropy, .*callable"),
        ({"epochs": 0}, "epochs 0: a whole number from 1"),
        ({"epochs": 1.5}, "epochs 1.5: a whole number from 1"),
        ({"batch_size": True}, "batch_size True: a whole number from 1"),
        ({"lr": -0.1}, "lr -0.1: a number from 0"),
        ({"lr": "fast"}, "lr 'fast': a number from 0"),
        ({"weight_decay": math.nan}, "weight_decay nan: a number from 0"),
        ({"momentum": math.inf}, "momentum inf: a number from 0"),
    ],
)
def test_a_bad_setting_says_what_was_given_and_what_is_allowed(make_task, changes, message):
    with pytest.raises(TrainingError, match=message):
        make_task(**changes)


def test_the_last_smaller_batch_is_a_step(make_task, make_data):
    assert make_task(make_data(rows=48)).steps == 3
    assert make_task(make_data(rows=49)).steps == 4


def test_a_model_is_built_from_its_seed_and_leaves_the_global_generator_alone(mlp):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one, same, other = build(mlp, 1), build(mlp, 1), build(mlp, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[0].weight, same[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)


def broken():
    raise ValueError("no such layer\nsecond line")


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (broken, "the model builder fails: ValueError: no such layer; it is called without"),
        (lambda: None, "the model builder returns NoneType; it must return a new torch.nn.Module"),
        (lambda size: nn.Linear(size, 1), "the model builder fails: TypeError"),
    ],
)
def test_a_builder_that_fails_is_one_line(builder, message):
    with pytest.raises(ModelError, match=message) as error:
        build(builder, 0)
    assert "\n" not in str(error.value)


# Losses


@pytest.mark.parametrize(
    ("loss", "output", "target", "shape"),
    [
        ("mse", (5, 1), (5,), (5,)),
        ("mse", (5,), (5,), (5,)),
        ("mse", (5, 1), (5, 1), (5, 1)),
        ("mse", (5, 3), (5, 3), (5, 3)),
        ("binary_cross_entropy", (5, 1), (5,), (5,)),
        ("binary_cross_entropy", (5, 4), (5, 4), (5, 4)),
    ],
)
def test_outputs_and_targets_are_matched_element_by_element(loss, output, target, shape):
    one, other = matched(loss, torch.zeros(output), torch.zeros(target))
    assert one.shape == other.shape == shape


def test_labels_become_floats_where_the_loss_needs_them():
    _, target = matched("binary_cross_entropy", torch.zeros(3, 1).double(), torch.ones(3).long())
    assert target.dtype == torch.float64


@pytest.mark.parametrize(
    ("loss", "output", "target", "message"),
    [
        ("mse", torch.zeros(5, 2), torch.zeros(5), r"shape of the targets \(5,\), got \(5, 2\)"),
        ("mse", torch.zeros(5), torch.zeros(5, 1), r"targets \(5, 1\), got \(5,\)"),
        ("binary_cross_entropy", torch.zeros(4, 1), torch.zeros(5), r"targets \(5,\), got \(4,\)"),
        ("cross_entropy", torch.zeros(5), torch.zeros(5).long(), r"got \(5,\) and torch.int64"),
        ("cross_entropy", torch.zeros(5, 2), torch.zeros(5), "integer labels .* torch.float32"),
        ("cross_entropy", torch.zeros(4, 2), torch.zeros(5).long(), r"got \(4, 2\)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_an_error(loss, output, target, message):
    with pytest.raises(ModelError, match=message):
        matched(loss, output, target)


TOKENS = torch.arange(35).view(7, 5)


@pytest.mark.parametrize(
    ("loss", "output", "target"),
    [
        ("cross_entropy", (3, 7, 4), torch.arange(7) % 4),
        ("cross_entropy", (3, 7, 4, 5), torch.arange(35).view(7, 5) % 4),
        ("cross_entropy", (3, 7, 4, 5), torch.where(TOKENS % 3 > 0, TOKENS % 4, -100)),
        ("binary_cross_entropy", (3, 7, 1), torch.arange(7) % 2),
        ("binary_cross_entropy", (3, 7, 2), torch.arange(14).view(7, 2) % 2),
        ("mse", (3, 7, 1), torch.randn(7)),
        ("mse", (3, 7, 2), torch.randn(7, 2)),
        (lambda o, t: F.l1_loss(o[:, 0], t), (3, 7, 1), torch.randn(7)),
    ],
)
def test_stacked_losses_are_each_members_mean_loss(loss, output, target):
    outputs = torch.randn(output, generator=torch.Generator().manual_seed(0))
    got = stacked_losses(loss, outputs, target)
    expected = torch.stack([mean_loss(loss)(one, target) for one in outputs])
    torch.testing.assert_close(got, expected)


# Scores


def test_correct_predictions_of_classes():
    output = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]])
    assert correct("cross_entropy", output, torch.tensor([0, 1, 1])).tolist() == [1, 1, 0]
    stacked = torch.stack([output, -output])
    got = correct("cross_entropy", stacked, torch.tensor([0, 1, 1]), stacked=True)
    assert got.tolist() == [[1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("members", [(), (2,)])
def test_correct_predictions_of_one_logit(shape, members):
    output = torch.tensor([1.0, -1.0, 2.0]).view(shape).expand(*members, *shape)
    got = correct("binary_cross_entropy", output, torch.tensor([1, 0, 0]), bool(members))
    assert got.shape == (*members, 3)
    assert got.flatten()[:3].tolist() == [1, 1, 0]


@pytest.mark.parametrize("members", [(), (2,)])
def test_several_labels_a_sample_count_by_their_share(members):
    output = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).expand(*members, 2, 2)
    got = correct("binary_cross_entropy", output, torch.tensor([[1, 0], [0, 1]]), bool(members))
    assert got.shape == (*members, 2)
    assert got.flatten()[:2].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_one_sample_is_one_prediction(shape):
    assert correct("binary_cross_entropy", torch.ones(shape), torch.ones(1)).shape == (1,)
    stack = torch.ones(2, *shape)
    assert correct("binary_cross_entropy", stack, torch.ones(1), stacked=True).shape == (2, 1)


def test_losses_without_classes_have_no_accuracy():
    assert correct("mse", torch.zeros(3, 1), torch.zeros(3)) is None
    assert correct(F.cross_entropy, torch.zeros(3, 2), torch.zeros(3).long()) is None
    assert correct("cross_entropy", torch.zeros(3, 2, 4), torch.zeros(3, 4).long()) is None


def test_what_is_not_finite_has_diverged():
    assert diverged({"train_loss": 1.0, "val_loss": 2.0}) is None
    assert diverged({"train_loss": 1.0, "val_loss": math.inf}) == "diverged: val_loss is inf"
    assert diverged({"train_loss": math.nan}) == "diverged: train_loss is nan"


def test_a_plan_must_be_in_the_task():
    check_kinds(Plan({"a": ("standard", 0.1)}), {"a": ["standard"]})
    check_kinds(Plan.none(), {})
    with pytest.raises(Exception, match="b: standard is not in this task; it has none"):
        check_kinds(Plan({"b": ("standard", 0.1)}), {})
