"""Metrics of a whole split and the fit of a member, for the fused and the serial trainer."""

import math
from abc import ABC, abstractmethod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sk
from torch import nn

from droptune import gap
from droptune.data import Data, Split
from droptune.errors import StudyError, TrainingError
from droptune.metrics import METRICS, own
from droptune.plan import Plan
from droptune.trainers import (
    FunctionTrainer,
    FusedTrainer,
    SerialTrainer,
    Task,
    Trainer,
    check_metrics,
    metric_names,
)
from droptune.trainers.losses import constant_loss

NONE = Plan.none()
LIGHT = Plan({"1": ("standard", 0.2)})
HEAVY = Plan({"@input": ("standard", 0.3), "3": ("standard", 0.5)})
CLASSES = ("accuracy", "balanced_accuracy", "f1", "auroc", "calibration_error")


def named(*names):
    return tuple(METRICS[name] for name in names)


def widest(output, target):
    assert type(output) is np.ndarray and len(output) == len(target) == 16
    return output.max()


def begun(trainer: Trainer, *plans: Plan) -> Trainer:
    trainer.begin(3)
    for slot, plan in enumerate(plans):
        trainer.start(slot, plan)
    return trainer


class ScoredContract(ABC):
    """Rules of trainers that evaluate themselves."""

    device = "cpu"
    tolerance = 1e-5

    @abstractmethod
    def build(self, task: Task, slots: int) -> Trainer:
        """Return the trainer under test."""

    @pytest.fixture
    def make(self, make_task):
        return lambda slots, **changes: self.build(make_task(**changes), slots)

    def test_metrics_stand_behind_those_that_are_always_scored(self, make):
        trainer = begun(make(2, metrics=named(*CLASSES)), NONE, LIGHT)
        names = ["val_loss", *(f"val_{name}" for name in CLASSES)]
        for scores in trainer.epoch().values():
            assert list(scores.metrics) == names == list(metric_names(trainer.task))
        tests = trainer.test()
        assert list(tests[1]) == [name.replace("val_", "test_") for name in names]

    def test_metrics_are_of_the_whole_split_and_not_of_batches(self, make, weights, mlp):
        # Sixteen samples in batches of eight times one.
        trainer = begun(make(3, metrics=named("auroc", "f1"), batch_size=1), NONE, HEAVY, LIGHT)
        for _ in range(2):
            scores = trainer.epoch()
        model, val = mlp().eval(), trainer.task.data.val
        for slot in range(3):
            tensors = weights(trainer, slot)
            model.load_state_dict({name: tensors[name] for name in model.state_dict()})
            output = model(val.x).detach()
            sure = output.softmax(1).double()
            sure /= sure.sum(1, keepdim=True)
            auroc = sk.roc_auc_score(val.y, sure, multi_class="ovr")
            f1 = sk.f1_score(val.y, output.argmax(1), average="macro")
            assert scores[slot].metrics["val_auroc"] == pytest.approx(auroc)
            assert scores[slot].metrics["val_f1"] == pytest.approx(f1)

    def test_what_is_asked_for_changes_nothing_else(self, make):
        one = begun(make(2), NONE, HEAVY)
        more = begun(make(2, metrics=(*named("f1", "auroc"), own(widest))), NONE, HEAVY)
        for _ in range(2):
            for twin, scores in zip(more.epoch().values(), one.epoch().values(), strict=True):
                assert scores.train_loss == twin.train_loss
                assert scores.metrics == {n: twin.metrics[n] for n in scores.metrics}

    def test_numbers_in_a_column(self, make, make_data, mlp):
        changes = {"loss": "mse", "model": lambda: mlp(out=1), "metrics": named("rmse", "r2")}
        (scores,) = begun(make(1, data=make_data(classes=0), **changes), NONE).epoch().values()
        assert list(scores.metrics) == ["val_loss", "val_rmse", "val_r2"]
        assert scores.metrics["val_rmse"] ** 2 == pytest.approx(scores.metrics["val_loss"])

    def test_a_function_that_fails_is_named(self, make):
        trainer = begun(make(1, metrics=(own(lambda output, target: 1 / 0),)), NONE)
        with pytest.raises(TrainingError, match=r"val_lambda fails \(ZeroDivisionError: .*arrays"):
            trainer.epoch()

    def test_a_member_that_diverges_scores_nan_alone(self, make):
        trainer = begun(make(2, metrics=named("auroc")), NONE)
        trainer.start(1, Plan(training={"lr": 1e30}))
        scores = trainer.epoch()
        assert scores[1].failed and not scores[0].failed
        assert math.isfinite(scores[0].metrics["val_auroc"])

    def test_a_free_slot_is_not_scored(self, make):
        calls = []

        def count(output, target):
            calls.append(len(output))
            return 0.0

        trainer = begun(make(4, metrics=(own(count),)), NONE, LIGHT, HEAVY)
        trainer.stop(0)
        trainer.stop(2)
        trainer.start(3, LIGHT)  # fused, two members and two free rows
        assert sorted(trainer.epoch()) == [1, 3]
        trainer.stop(1)
        assert sorted(trainer.test()) == [3]
        assert calls == [16] * 3

    # How a member fits

    def test_fit_is_in_eval_mode_on_both_splits(self, make, weights, mlp):
        trainer = begun(make(2), NONE, HEAVY)
        for _ in range(3):
            scores = trainer.epoch()
        data = trainer.task.data  # of 48 samples 16 are looked at: as many as validate
        model = mlp().eval()
        for slot in range(2):
            tensors = weights(trainer, slot)
            model.load_state_dict({name: tensors[name] for name in model.state_dict()})
            each = F.cross_entropy(model(data.train.x), data.train.y, reduction="none").detach()
            found = trainer.fit(slot)
            assert set(found) == {gap.TRAIN, gap.LOW, gap.HIGH, gap.CONSTANT}
            assert each.min() < found[gap.TRAIN] < each.max()
            assert found[gap.TRAIN] == pytest.approx(each.mean().item(), rel=0.5)
            mean = (found[gap.LOW] + found[gap.HIGH]) / 2
            expected = scores[slot].metrics["val_loss"] - found[gap.TRAIN]
            assert mean == pytest.approx(expected, abs=1e-6)

    def test_all_training_samples_where_there_are_no_more_than_validate(self, make, make_data):
        data = make_data(rows=12)
        trainer = begun(make(1, data=data), LIGHT)
        trainer.epoch()
        data.val = data.train
        twin = begun(self.build(trainer.task, 1), LIGHT)
        expected = twin.epoch()[0].metrics["val_loss"]
        assert trainer.fit(0)[gap.TRAIN] == pytest.approx(expected, rel=1e-5)

    def test_as_many_samples_are_looked_at_as_validate(self, make):
        seen = []

        def loss(output, target):
            seen.append(len(target))
            return F.cross_entropy(output, target)

        trainer = begun(make(1, loss=loss), NONE)
        trainer.epoch()
        seen.clear()
        assert gap.CONSTANT not in trainer.fit(0)
        assert seen == [1] * 16 + [1] * 16

    def test_looking_at_the_fit_changes_no_curve(self, make):
        looked, other = begun(make(2), NONE, HEAVY), begun(make(2), NONE, HEAVY)
        before = torch.get_rng_state()
        for _ in range(3):
            one, two = looked.epoch(), other.epoch()
            assert looked.fit(1) == looked.fit(1)
            for slot in (0, 1):
                assert one[slot][:2] == two[slot][:2]
        assert torch.equal(torch.get_rng_state(), before)

    def test_fit_is_without_dropout_also_before_the_first_epoch(self, make):
        trainer = begun(make(2), NONE, HEAVY)
        assert trainer.fit(1) == pytest.approx(trainer.fit(0), rel=1e-5)

    def test_a_free_slot_fits_nothing(self, make):
        with pytest.raises(TrainingError, match="slot 1 is free"):
            begun(make(2), NONE).fit(1)


class TestSerial(ScoredContract):
    def build(self, task, slots):
        return SerialTrainer(task, slots, self.device)


class TestFused(ScoredContract):
    def build(self, task, slots):
        return FusedTrainer(task, slots, self.device)

    def test_as_serial(self, make_task):
        task = make_task(metrics=named(*CLASSES))
        fused = begun(self.build(task, 3), NONE, LIGHT, HEAVY)
        serial = begun(SerialTrainer(task, 3, self.device), NONE, LIGHT, HEAVY)
        for _ in range(4):
            one, two = fused.epoch(), serial.epoch()
        for slot in range(3):
            assert one[slot].metrics == pytest.approx(two[slot].metrics, rel=self.tolerance)
            assert fused.test()[slot] == pytest.approx(serial.test()[slot], rel=self.tolerance)
            assert fused.fit(slot) == pytest.approx(serial.fit(slot), rel=10 * self.tolerance)

    def test_a_rehearsal_calls_no_metric_on_a_part_of_the_split(self, make_task, make_data):
        data = make_data()
        task = make_task(data, metrics=(own(widest),), batch_size=1)  # batches of eight
        self.build(task, 2).rehearse(2, 1)

    def test_without_a_metric_no_output_is_kept(self, make_task):
        trainer = begun(self.build(make_task(), 2), NONE, LIGHT)
        trainer.epoch()
        (program,) = [p for key, (p,) in trainer._programs.items() if key[0] == "eval"]
        val = trainer.task.data.val.to(self.device)
        flat = *trainer._params.values(), *trainer._buffers.values(), val.x, val.y
        assert [tuple(tensor.shape) for tensor in program(*flat)] == [(2,), (2,)]


ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


class TestSerialOnGpu(TestSerial):
    pytestmark = ON_GPU
    device = "cuda"


class TestFusedOnGpu(TestFused):
    pytestmark = ON_GPU
    device = "cuda"
    tolerance = 1e-3


def test_a_loop_of_ones_own_tells_nothing_of_its_fit(make_task):
    def train(model, *, seed, device):
        yield {"val_loss": 1.0}

    trainer = begun(FunctionTrainer(make_task(), train), NONE)
    trainer.epoch()
    assert trainer.fit(0) == {}


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_the_best_constant_prediction_is_the_best(loss):
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(3, (60,), generator=generator)
    y = y if loss == "cross_entropy" else torch.stack([y > 0, y > 1], 1).float()
    constant = torch.zeros(3 if loss == "cross_entropy" else 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=200)
    named_loss = {
        "cross_entropy": F.cross_entropy,
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
        "mse": F.mse_loss,
    }[loss]

    def closure():
        optimizer.zero_grad()
        value = named_loss(constant.expand(60, -1), y)
        value.backward()
        return value

    optimizer.step(closure)
    assert constant_loss(loss, y) == pytest.approx(closure().item(), abs=1e-5)
    assert constant_loss(named_loss, y) is None


# What is refused before anything is trained


def test_a_metric_that_is_not_defined_on_a_split_is_refused(make_task, make_data):
    data = make_data()
    check_metrics(make_task(data, metrics=named(*CLASSES)))
    data.test = Split(data.test.x, torch.ones_like(data.test.y))
    with pytest.raises(StudyError, match=r"val_auroc \(test split\): says nothing where all"):
        check_metrics(make_task(data, metrics=named("auroc")))
    data.val, data.test = data.test, None
    with pytest.raises(StudyError, match=r"val_f1 \(validation split\): .*one label \(1\)"):
        check_metrics(make_task(data, metrics=named("f1")))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda output: 1.0, r"val_lambda fails \(TypeError"),
        (lambda output, target: output, r"val_lambda fails \(TypeError"),
        (lambda output, target: None, "must return one number"),
        (lambda output, target: (output - target).mean(), r"fails \(ValueError: .*broadcast"),
        (lambda output, target: math.nan, r"val_lambda is nan on outputs of the untrained model"),
    ],
)
def test_a_function_that_cannot_score_is_refused(make_task, function, says):
    with pytest.raises(StudyError, match=says):
        check_metrics(make_task(metrics=(own(function),)))


def test_metrics_are_tried_on_arrays_as_long_as_the_split(make_task):
    sizes = []

    def note(output, target):
        sizes.append((output.shape, target.shape))
        return 0.0

    x, y = torch.randn(700, 6), torch.arange(700) % 3
    check_metrics(make_task(Data((x, y), (x, y), (x[:9], y[:9])), metrics=(own(note),)))
    assert sizes == [((700, 3), (700,)), ((9, 3), (9,))]


def test_a_batchnorm_keeps_its_statistics_when_a_fit_is_looked_at(make_task, mlp):
    def model():
        return nn.Sequential(nn.BatchNorm1d(6), *mlp())

    for kind in (SerialTrainer, FusedTrainer):
        trainer = begun(kind(make_task(model=model, kinds={}), 1), NONE)
        trainer.epoch()
        before = {name: tensor.clone() for name, tensor in trainer.save().tensors.items()}
        trainer.fit(0)
        after = trainer.save().tensors
        assert all(torch.equal(before[name], after[name]) for name in before)
