"""Metrics of a whole split: values against scikit-learn by another way, and what is refused."""

import math
import re

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics as sk

from droptune.errors import StudyError
from droptune.metrics import (
    METRICS,
    asked_for,
    check_asked,
    full_name,
    maximizes,
    own,
    scores,
    why_undefined,
)

RNG = np.random.default_rng(5)
CE, BCE, MSE = "cross_entropy", "binary_cross_entropy", "mse"


def logits(y: np.ndarray, classes: int) -> np.ndarray:
    """Return noisy logits that know something of the labels."""
    return RNG.normal(size=(*y.shape, classes)) + 1.5 * np.eye(classes)[y]


def value(name: str, loss, output, target) -> float:
    found = scores([METRICS[name]], loss, np.asarray(output), np.asarray(target))
    assert list(found) == [f"val_{name}"]
    return found[f"val_{name}"]


# Values


def test_several_classes():
    y = RNG.integers(0, 4, 200)
    output = logits(y, 4)
    hit, sure = output.argmax(1), softmax(output, axis=1)
    expected = {
        "accuracy": sk.accuracy_score(y, hit),
        "balanced_accuracy": np.mean([(hit[y == c] == c).mean() for c in range(4)]),
        "f1": sk.f1_score(y, hit, average="macro"),
        "auroc": sk.roc_auc_score(y, sure, multi_class="ovr"),
    }
    for name, score in expected.items():
        assert value(name, CE, output, y) == pytest.approx(score), name


@pytest.mark.parametrize("loss", [CE, BCE])
def test_of_two_classes_the_second_is_the_positive_one(loss):
    y = (RNG.random(200) < 0.2).astype(int)
    both = logits(y, 2)
    margin = both[:, 1] - both[:, 0]
    output = both if loss == CE else margin[:, None]  # a column, which must not broadcast
    assert value("f1", loss, output, y) == pytest.approx(sk.f1_score(y, margin > 0))
    assert value("auroc", loss, output, y) == pytest.approx(sk.roc_auc_score(y, expit(margin)))
    assert value("accuracy", loss, output, y) == np.mean((margin > 0) == y)
    others = [value(name, loss, output, y) for name in ("balanced_accuracy", "calibration_error")]
    twin = CE if loss == BCE else BCE
    same = both if twin == CE else margin
    expected = [value(name, twin, same, y) for name in ("balanced_accuracy", "calibration_error")]
    assert others == pytest.approx(expected)


def test_a_network_that_is_very_sure_is_still_ranked():
    y = np.array([0, 1, 0, 1])
    output = np.array([[0, 900.0], [0, 1000.0], [0, 800.0], [0, 1100.0]], dtype=np.float32)
    assert value("auroc", CE, output, y) == 1.0


def test_sequences_of_labels_are_so_many_samples():
    y = RNG.integers(0, 3, (20, 5))
    output = logits(y, 3)
    flat = value("f1", CE, output.reshape(-1, 3), y.reshape(-1))
    assert value("f1", CE, np.moveaxis(output, -1, 1), y) == flat


@pytest.mark.parametrize("name", ["accuracy", "f1", "auroc", "calibration_error"])
def test_tokens_without_a_label_do_not_count(name):
    y = RNG.integers(0, 3, (20, 5))
    output, known = logits(y, 3), RNG.random(y.shape) < 0.7
    there = value(name, CE, output[known], y[known])
    assert value(name, CE, np.moveaxis(output, -1, 1), np.where(known, y, -100)) == there


def test_several_labels_a_sample():
    y = (RNG.random((100, 3)) < 0.4).astype(np.float32)
    output = RNG.normal(size=(100, 3)) + y
    assert value("f1", BCE, output, y) == pytest.approx(
        np.mean([sk.f1_score(y[:, i], output[:, i] > 0) for i in range(3)])
    )
    assert value("auroc", BCE, output, y) == pytest.approx(
        np.mean([sk.roc_auc_score(y[:, i], output[:, i]) for i in range(3)])
    )


def test_a_class_without_a_sample_is_left_out_of_auroc():
    y = RNG.integers(0, 3, 100)
    output = logits(y, 4)
    sure = softmax(output, axis=1)
    expected = np.mean([sk.roc_auc_score(y == c, sure[:, c]) for c in range(3)])
    assert value("auroc", CE, output, y) == pytest.approx(expected)


def test_numbers():
    y = RNG.normal(size=(50, 2)).astype(np.float32)
    output = y + np.array([0.1, 1.0], dtype=np.float32) * RNG.normal(size=(50, 2))
    errors = (output - y) ** 2
    r2 = 1 - errors.sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    assert value("r2", MSE, output, y) == pytest.approx(r2.mean(), rel=1e-5)
    assert value("rmse", MSE, output, y) == pytest.approx(math.sqrt(errors.mean()), rel=1e-5)
    column = value("rmse", MSE, output[:, :1], y[:, 0])
    assert column == pytest.approx(math.sqrt(errors[:, 0].mean()), rel=1e-5)


def test_calibration_error_by_hand():
    # Thirty samples, two a bin; in each bin confidence p, and one of the two is right.
    p = np.repeat(np.linspace(0.55, 0.95, 15), 2)
    output = np.stack([np.zeros(30), np.log(p / (1 - p))], 1)
    y = np.tile([1, 0], 15)
    assert value("calibration_error", CE, output, y) == pytest.approx(np.mean(p - 0.5))


def test_calibration_error_of_equal_bins_sees_what_a_mean_does_not():
    p = np.concatenate([np.full(150, 0.6), np.full(150, 0.9)])
    output = np.log(p / (1 - p))
    y = np.concatenate([np.arange(150) < 135, np.arange(150) < 90]).astype(int)
    # Right on the whole, yet 0.3 too timid on one half and 0.3 too sure on the other. Samples
    # of equal confidence stand in their order, so the bins are spread over both kinds of label.
    order = RNG.permutation(300)
    found = value("calibration_error", BCE, output[order], y[order])
    assert found == pytest.approx(0.3, abs=0.02)


def test_a_calibrated_model_has_a_small_calibration_error():
    p = RNG.random(20_000)
    y = (RNG.random(20_000) < p).astype(int)
    assert value("calibration_error", BCE, np.log(p / (1 - p)), y) < 0.02


def test_a_network_that_has_diverged_scores_nan():
    y = np.array([0, 1, 0])
    for bad in (math.nan, math.inf):
        output = np.array([[0.0, 1], [bad, 0], [0, 1]])
        assert math.isnan(value("auroc", CE, output, y))


def test_a_function_of_ones_own_gets_arrays_of_the_whole_split():
    def spread(output, target):
        return np.abs(output - target).max()

    y = RNG.normal(size=7)
    found = scores([own(spread)], "mse", y[:, None] + 2, y, "test_")
    assert found == {"test_spread": pytest.approx(2.0)}


def test_under_a_loss_of_ones_own_shapes_say_what_outputs_are():
    def loss(output, target):
        return 0.0

    y = RNG.integers(0, 3, 60)
    output = logits(y, 3)
    assert value("f1", loss, output, y) == value("f1", CE, output, y)
    x = RNG.normal(size=60)
    assert value("r2", loss, x[:, None], x + 0.1) == value("r2", MSE, x, x + 0.1)
    # One column against labels: logits or probabilities, nobody knows.
    said = why_undefined(METRICS["f1"], loss, x[:, None], (x > 0).astype(int))
    assert "cannot tell" in said and "val_loss" in said


# What is refused


@pytest.mark.parametrize(
    ("name", "loss", "target", "says"),
    [
        ("accuracy", MSE, np.arange(9.0), "targets that are numbers; use val_loss, val_r2 or val"),
        ("f1", MSE, np.arange(9.0), "use val_loss, val_r2 or val_rmse"),
        ("r2", CE, np.arange(9) % 3, "targets that are classes; use val_loss, val_accuracy"),
        ("rmse", BCE, np.arange(9) % 2, "targets that are classes"),
        ("r2", MSE, np.ones(9), "all targets are equal; use val_rmse"),
        ("auroc", CE, np.zeros(9, dtype=int), r"one label \(0\); draw the splits anew"),
        ("auroc", BCE, np.ones(9), r"one label \(1\)"),
        ("f1", CE, np.full(9, 2), r"one label \(2\)"),
        ("balanced_accuracy", CE, np.full(9, 1), r"one label \(1\)"),
        ("balanced_accuracy", BCE, np.eye(3), "several labels a sample; use val_loss, val_accu"),
        ("auroc", BCE, np.zeros((9, 2)), r"one label \(0\)"),
        ("f1", BCE, np.linspace(0, 1, 9), "cannot tell what outputs"),
    ],
)
def test_a_metric_that_says_nothing_is_refused_with_another(name, loss, target, says):
    output = RNG.normal(size=(len(target), 3)) if loss == CE else RNG.normal(size=target.shape)
    said = why_undefined(METRICS[name], loss, output, target)
    assert re.search(says, said), said


@pytest.mark.parametrize("name", ["accuracy", "f1", "auroc", "calibration_error"])
def test_what_is_defined_is_not_refused(name):
    assert why_undefined(METRICS[name], CE, RNG.normal(size=(9, 3)), np.arange(9) % 3) is None


def test_accuracy_and_calibration_are_defined_on_one_class():
    for name in ("accuracy", "calibration_error"):
        assert why_undefined(METRICS[name], CE, RNG.normal(size=(9, 3)), np.zeros(9, int)) is None


# Names and directions


def test_names_have_a_prefix_or_not_and_each_knows_its_direction():
    assert {name: maximizes(f"val_{name}") for name in ("loss", *METRICS)} == {
        "loss": False,
        "accuracy": True,
        "balanced_accuracy": True,
        "f1": True,
        "auroc": True,
        "r2": True,
        "rmse": False,
        "calibration_error": False,
    }
    assert full_name("f1") == full_name("val_f1") == full_name(" f1 ") == "val_f1"
    assert maximizes("top5_accuracy") and not maximizes("perplexity")
    names = [metric.name for metric in asked_for("val_f1", ["auroc", "val_f1", "loss"])]
    assert names == ["f1", "auroc"]


def mape(output, target):
    return 0.0


def loss(output, target):
    return 0.0


@pytest.mark.parametrize(
    ("objective", "direction", "more", "says"),
    [
        ("val_f1", "minimize", (), "'minimize' contradicts .*'val_f1', of which higher is better"),
        ("rmse", "maximize", (), "'maximize' contradicts .*'val_rmse', of which lower is better"),
        ("val_loss", "maximize", (), "leave direction out"),
        (mape, None, (), "'val_mape' is a function of your own; .*direction='maximize' or"),
        (
            "val_f2",
            None,
            (),
            "unknown objective 'val_f2'; allowed: val_loss, val_accuracy, .*funct",
        ),
        ("val_loss", None, ("f2",), "unknown metrics 'f2'; allowed"),
        ("val_loss", None, "f1", r"metrics 'f1': give a list"),
        ("val_loss", None, (3,), "metrics 3: give a name, or a function"),
        ("val_f1", None, (loss,), "val_loss: a name stands for two.*rename the function"),
        ("val_f1", None, (mape, lambda o, t: 0.0, lambda o, t: 1.0), "val_lambda.*rename"),
    ],
)
def test_a_bad_metric_is_one_line(objective, direction, more, says):
    with pytest.raises(StudyError, match=says) as caught:
        check_asked(objective, direction, more)
    assert "\n" not in str(caught.value)


def test_what_may_be_asked_for():
    check_asked("f1", "maximize", ["auroc", mape])
    check_asked(mape, "minimize", [mape])
    check_asked("val_mape", "minimize", [mape])
    check_asked("score", None, (), trains_itself=True)
    check_asked("val_loss", "maximize", (), trains_itself=True)  # the loop's name is its own


@pytest.mark.parametrize(("objective", "more"), [(mape, ()), ("score", ["f1"]), ("", ()), (3, ())])
def test_a_loop_of_ones_own_yields_its_metrics(objective, more):
    with pytest.raises(StudyError, match="train="):
        check_asked(objective, "maximize", more, trains_itself=True)
