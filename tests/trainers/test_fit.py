"""A model that does not fit the task is told before anything is trained, in one line."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from droptune.data import Split
from droptune.errors import ModelError, TrainingError
from droptune.plan import Plan
from droptune.trainers import SerialTrainer, check_fit, fingerprint, metric_names, pick_device


class Returns(nn.Module):
    """Returns whatever a function makes of its output."""

    def __init__(self, change, out=3):
        super().__init__()
        self.inner, self.change = nn.Linear(6, out), change

    def forward(self, x):
        return self.change(self.inner(x))


def test_of_an_output_of_several_parts_the_logits_count(make_task):
    task = make_task(model=lambda: Returns(lambda o: SimpleNamespace(logits=o)), kinds={})
    check_fit(task)
    few = make_task(model=lambda: Returns(lambda o: SimpleNamespace(logits=o), 2), kinds={})
    with pytest.raises(ModelError, match="has 2 outputs and the labels go up to 2"):
        check_fit(few)


def test_a_model_that_fits_is_returned_freshly_built(make_task, mlp):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = check_fit(make_task())
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert model[0].weight.grad is None
    assert fingerprint(model) == fingerprint(mlp())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": lambda: nn.Linear(5, 3)},
            r"fails on a batch of shape \(2, 6\) .*make its first layer fit the data",
        ),
        ({"model": lambda: nn.Linear(6, 2)}, "has 2 outputs and the labels go up to 2; .* 3 out"),
        ({"model": lambda: nn.Linear(6, 3), "loss": "mse"}, "mse needs outputs of the shape"),
        ({"model": lambda: Returns(lambda o: (o, o))}, "returns a tuple; return one tensor"),
        ({"model": lambda: Returns(lambda o: o.detach())}, "does not depend on the model's param"),
        ({"model": nn.Flatten}, "has no parameter to train; return one with requires_grad"),
        ({"model": lambda: nn.Linear(6, 3).requires_grad_(False)}, "has no parameter to train"),
        ({"model": lambda: None}, "the model builder returns NoneType"),
        ({"loss": lambda o, t: o}, r"mean as a scalar tensor, got \(2, 3\)"),
        ({"loss": lambda o, t: 0.5}, "mean as a scalar tensor, got float"),
        ({"loss": lambda o, t: o.detach().mean()}, "look for detach"),
        (
            {"loss": lambda o, t: (o - t).mean()},
            r"the loss fails on outputs \(2, 3\) and targets \(2,\) \(RuntimeError",
        ),
    ],
)
def test_a_model_that_does_not_fit_says_why(make_task, changes, message):
    with pytest.raises(ModelError, match=message) as error:
        check_fit(make_task(**{"kinds": {}, **changes}))
    assert "\n" not in str(error.value)


def normed():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def test_a_last_batch_of_one_sample_that_cannot_be_trained_on_is_told(make_task, make_data):
    with pytest.raises(ModelError, match=r"one sample \(49 samples, batch_size 16\).*choose anot"):
        check_fit(make_task(make_data(rows=49), model=normed, kinds={}))
    for rows in (48, 50):
        check_fit(make_task(make_data(rows=rows), model=normed, kinds={}))
    check_fit(make_task(make_data(rows=49)))
    with pytest.raises(ModelError, match="batch_size 1"):
        check_fit(make_task(make_data(), model=normed, kinds={}, batch_size=1))


def test_a_check_leaves_the_statistics_of_the_model_alone(make_task, make_data):
    def over_images():  # a BatchNorm that can train on one sample
        return nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))

    model = check_fit(make_task(make_data(49, (1, 3, 3)), model=over_images, kinds={}))
    assert model.training and model[1].num_batches_tracked == 0


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse", None])
def test_metric_names_are_those_that_the_trainers_score(make_task, make_data, mlp, loss):
    data = make_data(classes={"cross_entropy": 3, "binary_cross_entropy": 2}.get(loss, 0))
    changes = {"loss": loss or (lambda o, t: (o[:, 0] - t).abs().mean())}
    out = 3 if loss == "cross_entropy" else 1
    task = make_task(data, model=lambda: mlp(out=out), **changes)
    trainer = SerialTrainer(task)
    trainer.begin(0)
    trainer.start(0, Plan.none())
    assert tuple(trainer.epoch()[0].metrics) == metric_names(task)


def test_labels_of_every_position_have_no_accuracy(make_task, make_data):
    data = make_data()
    data.train = Split(data.train.x, data.train.y[:, None].expand(-1, 2))
    assert metric_names(make_task(data)) == ("val_loss",)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected
    for name in ("gpu", "cuda:99", ""):
        with pytest.raises(TrainingError, match=f"device '{name}' cannot be used here .*allowed"):
            pick_device(name)


def test_a_fingerprint_tells_structures_apart_and_not_weights(mlp):
    assert fingerprint(mlp()) == fingerprint(mlp())
    assert fingerprint(mlp()) != fingerprint(mlp(out=4))
    assert fingerprint(mlp()) != fingerprint(mlp(nn.ReLU))
    assert fingerprint(mlp()) != fingerprint(mlp().double())


def test_a_fingerprint_does_not_depend_on_addresses():
    class Shows(nn.Module):
        def __init__(self):
            super().__init__()
            self.function = lambda x: x

        def extra_repr(self):
            return repr(self.function)

    one, other = Shows(), Shows()
    assert repr(one) != repr(other) and fingerprint(one) == fingerprint(other)
