"""droptune/chains.py: which layers may leave out what controlled dropout drops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from droptune import Plan, apply, remove
from droptune.chains import Looking
from droptune.functional import Watched, watched
from droptune.install import install, installed
from tests.narrowing import FITS, Hand, Square, X, made, mlp, narrow, plan


@pytest.mark.parametrize("name", FITS)
def test_a_layer_whose_output_goes_through_the_dropout_alone_becomes_narrow(name):
    model, example = made(name)
    model(example)
    assert narrow(model) == FITS[name][3]


class Apart(nn.Module):
    """What is between the layers and the dropout is a function of one's own."""

    def __init__(self, function) -> None:
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 8)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def hand_written(function):
    return lambda: Apart(function)


def looking(model, x):
    hidden = model.a(x)
    model.seen = hidden.tolist()
    return model.b(model.drop(hidden))


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


def shared_dropout():
    drop = nn.Dropout()
    return nn.Sequential(nn.Linear(6, 8), drop, nn.Linear(8, 7), drop, nn.Linear(7, 3))


def shared_layer():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Dropout(), layer, nn.ReLU(), nn.Linear(6, 3))


def tied_layers():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model


def own_forward():
    model = mlp(nn.ReLU())
    model[0].forward = lambda x: F.linear(x, model[0].weight)
    return model


#: Where something else sees the tensor, or the layer's forward is not torch's.
FITS_NOT = {
    "residual": (hand_written(lambda m, x: m.b(m.drop(h := m.a(x))) + h), plan("drop")),
    "read twice": (hand_written(lambda m, x: m.b(h := m.drop(m.a(x))) + h), plan("drop")),
    "looked at": (hand_written(lambda m, x: m.b(m.drop(h := m.a(x))) * h.mean()), plan("drop")),
    "looked at first": (hand_written(looking), plan("drop")),
    "own function": (hand_written(lambda m, x: m.b(m.drop(Square.apply(m.a(x))))), plan("drop")),
    "no reader": (hand_written(lambda m, x: m.drop(m.a(x))), plan("drop")),
    "no producer": (hand_written(lambda m, x: m.b(m.drop(m.b.weight))), plan("drop")),
    "a product": (hand_written(lambda m, x: m.b(m.drop(m.a(x) * m.a.bias))), plan("drop")),
    "a norm": (lambda: mlp(nn.BatchNorm1d(8), nn.ReLU()), plan("2")),
    "a softmax": (lambda: mlp(nn.Softmax(-1)), plan("1")),
    "a shape": (lambda: mlp(nn.ReLU(), nn.Unflatten(1, (2, 4)), nn.Flatten()), plan("1")),
    "behind dropout": (lambda: mlp(nn.Identity(), nn.Sigmoid()), plan("1")),
    "another kind": (lambda: mlp(nn.ReLU(), nn.Dropout()), {**plan("1"), "2": ("standard", 0.5)}),
    "twice": (lambda: mlp(nn.ReLU(), nn.Dropout()), plan("1", "2")),
    "the input": (lambda: mlp(nn.ReLU()), plan("@input")),
    "shared dropout": (shared_dropout, plan("1")),
    "shared layer": (shared_layer, plan("1")),
    "tied layers": (tied_layers, plan("1")),
    "own forward": (own_forward, plan("1")),
    "a subclass": (lambda: nn.Sequential(Scaled(6, 8), nn.Dropout(), nn.Linear(8, 3)), plan("1")),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS_NOT)
def test_where_something_else_sees_the_tensor_no_layer_is_narrow(name):
    builder, on = FITS_NOT[name]
    model = apply(builder().double(), Plan(on), seed=0).train()
    model(X)
    assert not isinstance(vars(model).get("forward"), Looking)
    assert narrow(model) == []


def looks(model: nn.Module) -> bool:
    return isinstance(vars(model).get("forward"), Looking)


def test_a_model_is_looked_at_when_it_first_trains_with_the_dropout_on():
    model = apply(mlp(nn.ReLU()).double(), Plan({"1": ("controlled", 0.5, "late", 0.5)})).train()
    model(X)  # the rate is still 0
    assert looks(model)
    installed(model)["1"].set(plan("1")["1"])
    with torch.no_grad():
        model(X)
    model.eval()(X)
    installed(model)["1"].eval()
    model.train()
    installed(model)["1"].eval()
    model(X)
    assert looks(model) and narrow(model) == []
    model.train()(X)
    assert not looks(model) and narrow(model) == ["0"]


def test_where_rates_are_known_to_buffers_alone_nothing_is_looked_at():
    install(model := mlp(nn.ReLU()).double(), {"1": ["controlled"]})
    installed(model)["1"].kinds["controlled"].rate.fill_(0.5)
    assert (model[1](torch.ones(4, 8)) == 0).any()
    model(X)
    assert looks(model) and narrow(model) == []


def test_a_forward_that_is_mapped_shows_nothing():
    model, _ = made("an activation")
    weights = {name: p[None] for name, p in model.named_parameters()}
    mapped = torch.vmap(lambda w: torch.func.functional_call(model, w, (X,)), randomness="same")
    assert mapped(weights).shape == (1, 5, 3)
    assert looks(model) and narrow(model) == []


def test_a_model_without_controlled_dropout_keeps_its_forward():
    assert "forward" not in vars(apply(mlp(nn.ReLU()), Plan({"1": ("standard", 0.5)})))


def test_a_forward_that_fails_shows_nothing_and_the_next_one_does():
    model, _ = made("an activation")
    with pytest.raises(RuntimeError, match="shapes"):
        model(X[:, :5])
    assert looks(model)
    model(X)
    assert narrow(model) == ["0", "2"]


def test_what_a_forward_calls_is_watched_no_longer_than_without_it():
    class NoCalls(Hand):
        def forward(self, x):
            return self.c(F.relu(self.a(x)))

    model = apply(NoCalls().double(), plan("c@input"), seed=0).train()
    assert isinstance(model.forward, Looking) and isinstance(model.forward.before, Watched)
    model(X)
    assert "forward" not in vars(model) and narrow(model) == ["a"]


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("name", FITS)
def test_remove_gives_every_module_its_own_forward_back(name, seen):
    model, example = made(name)
    if seen:
        model(example)
    remove(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_forward_that_somebody_put_over_it_stays():
    model, _ = made("an activation")
    ours = model.forward
    model.forward = theirs = lambda x: ours(x)
    model(X)
    assert vars(model)["forward"] is theirs and narrow(model) == ["0", "2"]
    assert watched(model) is None


def test_another_plan_is_looked_at_anew():
    model, _ = made("an activation")
    model(X)
    apply(model, plan("3"), seed=0)
    assert looks(model) and narrow(model) == []
    model(X)
    assert narrow(model) == ["2"]
