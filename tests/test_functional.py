"""droptune/functional.py: dropout that is a function call, through find_sites to fused training."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from droptune import Plan, apply, find_sites, read, remove
from droptune.errors import ModelError, PlanError
from droptune.functional import FUNCTIONS, can_call, watched
from droptune.install import install, seed_noise
from tests.calling import (
    ZOO,
    Causal,
    Eager,
    Encoder,
    Hand,
    Heads,
    HeadsWithWeights,
    OneLayer,
    X,
    build,
    places,
)
from tests.test_install import check_copy, state_of, trained

zoo = pytest.mark.parametrize("cls", ZOO.values(), ids=ZOO)


# Sites


FOUND = {
    Hand: {"@dropout": ("hidden NF", 0.3), "@dropout.1": ("head NF", 0.3)},
    Causal: {"@attention": ("attention NHLL", 0.2)},
    Heads: {"att@attention": ("attention NHLL", 0.2)},
    HeadsWithWeights: {"att@attention": ("attention NLL", 0.2)},
    OneLayer: {"layer.self_attn@attention": ("attention NHLL", 0.1)},
    Encoder: {
        "enc.layers.0.self_attn@attention": ("attention NHLL", 0.1),
        "enc.layers.1.self_attn@attention": ("attention NHLL", 0.1),
    },
    Eager: {"@dropout": ("attention NLL", 0.2)},
}


@pytest.mark.parametrize("cls", FOUND, ids=lambda cls: cls.__name__)
def test_calls_are_sites_with_role_layout_and_rate(cls):
    found = places(build(cls))
    assert {s.name: (f"{s.role} {s.layout}", s.rate) for s in found} == FOUND[cls]
    assert {(s.kind, s.calls) for s in found} == {("standard", 1)}


def test_sites_come_in_call_order_among_the_others():
    names = [site.name for site in find_sites(build(Hand), X)]
    assert names == ["@input", "@dropout", "drop", "@dropout.1"]
    names = [site.name for site in find_sites(build(OneLayer), X)]
    assert names[:3] == ["@input", "layer.self_attn@attention", "layer.dropout1"]


class Kin(nn.Module):
    """One function that drops, behind a convolution."""

    def __init__(self, function, axes: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.conv, self.function = conv(1, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(F.selu(self.conv(x)), 0.5, self.training)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{f.__module__} {f.__name__}")
def test_every_function_that_drops_is_found_and_replaced_by_its_kind(function):
    axes = {F.dropout2d: 2, F.dropout3d: 3}.get(function, 1)
    x = torch.randn(2, 1, *(5,) * axes)
    model = Kin(function, axes)
    (site,) = places(model, x)
    assert (site.kind, site.rate, site.role) == (FUNCTIONS[function], 0.5, "conv")
    apply(model, Plan({"@dropout": (site.kind, 0.9)}), seed=0)
    assert not torch.equal(model(x), F.selu(model.conv(x)))
    apply(model, Plan.none())
    assert torch.equal(model(x), F.selu(model.conv(x)))


@pytest.mark.parametrize("cls", [Causal, Heads, HeadsWithWeights])
def test_attention_without_dropout_is_a_place_for_it(cls):
    (site,) = places(build(cls, 0.0))
    assert (site.kind, site.rate, site.default_kind) == (None, None, "standard")
    model = apply(build(cls, 0.0), Plan({site.name: ("standard", 0.5)}), seed=0).train()
    assert not torch.equal(model(X), model(X))


def test_a_module_that_runs_twice_has_one_site_that_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.hand, self.fc = Hand(), nn.Linear(3, 30)

        def forward(self, x):
            return self.hand(self.fc(self.hand(x)).view(x.shape))

    assert {s.name: s.calls for s in places(Twice())} == {"hand@dropout": 2, "hand@dropout.1": 2}


# Promise 1: eval and state_dict stay, remove restores


@zoo
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_a_plan_leaves_state_dict_and_eval_output_bit_for_bit(cls, grad):
    model = build(cls).eval()
    keys = list(model.state_dict())
    with torch.set_grad_enabled(grad):
        output = model(X)
        for rate in (0.0, 0.5):
            apply(model, Plan.everywhere(places(build(cls)), rate))
            assert list(model.state_dict()) == keys
            assert torch.equal(model(X), output)


def test_a_transformer_keeps_torchs_fast_path_in_eval(monkeypatch):
    ran, fast = [], torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(
        torch, "_transformer_encoder_layer_fwd", lambda *args: ran.append(1) or fast(*args)
    )
    model = apply(build(Encoder), Plan.everywhere(places(build(Encoder)), 0.5)).eval()
    with torch.no_grad():
        model(X)
    assert ran == [1, 1]


@zoo
def test_remove_restores_every_module(cls):
    model = build(cls)
    before = state_of(model)
    install(model, {site.name: ["standard", "gaussian"] for site in find_sites(build(cls), X)})
    assert state_of(model) != before
    assert state_of(remove(model)) == before
    assert places(model) == places(build(cls))


@zoo
def test_after_remove_the_model_trains_bit_for_bit_as_given(cls):
    expected = trained(build(cls), X)
    model = remove(apply(build(cls), Plan.everywhere(places(build(cls)), 0.5)))
    for tensor, other in zip(trained(model, X), expected, strict=True):
        assert torch.equal(tensor, other)


def test_a_forward_of_somebody_elses_is_kept_and_given_back():
    model = build(Hand)
    model.forward = own = lambda x: Hand.forward(model, x) + 1
    apply(model, Plan({"@dropout": ("standard", 0.5)}), seed=0)
    assert inspect.signature(model.forward) == inspect.signature(own)
    assert torch.equal(model.eval()(X), own(X))
    assert remove(model).forward is own
    model = nn.Linear(6, 3)
    model.forward = lambda x: F.dropout(x, 0.3, model.training)
    for _ in range(2):
        apply(model, Plan({"@dropout": ("standard", 0.5)}))


# Promise 2: the all-zero plan trains as the model with its dropout off


@zoo
def test_no_dropout_trains_bit_for_bit_like_the_model_with_its_rates_at_0(cls):
    expected = trained(build(cls, 0.0), X)
    for tensor, other in zip(trained(apply(build(cls), Plan.none()), X), expected, strict=True):
        assert torch.equal(tensor, other)


@zoo
def test_kinds_at_rate_0_train_bit_for_bit_like_attention_without_fused_kernels(cls):
    model = build(cls)
    install(model, {site.name: ["standard", "gaussian"] for site in find_sites(build(cls), X)})
    with sdpa_kernel(SDPBackend.MATH):
        expected = trained(build(cls, 0.0), X)
    for tensor, other in zip(trained(model, X), expected, strict=True):
        assert torch.equal(tensor, other)
    *_, fused, _ = trained(build(cls, 0.0), X)
    torch.testing.assert_close(expected[-2], fused, atol=1e-4, rtol=0)


# What a plan does


@zoo
def test_a_plan_takes_effect_at_each_call_alone(cls):
    for site in places(build(cls)):
        model = apply(build(cls), Plan({site.name: ("standard", 0.5)}), seed=0)
        outputs = []
        for clock in (0, 0, 1):
            seed_noise(model, 0, clock)
            outputs.append(model(X))
        assert torch.equal(outputs[0], outputs[1]), site.name
        assert not torch.equal(outputs[0], outputs[2]), site.name


def test_the_rate_is_the_part_that_is_dropped_of_a_call():
    class Calls(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.9), torch.dropout(x, 0.9, True)

    x = torch.ones(200, 100)
    model = apply(Calls(), Plan({"@dropout": ("standard", 0.3)}), seed=0)
    first, second = model(x)
    assert (first == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(second, x)
    first, second = apply(model, Plan({"@dropout.1": ("standard", 0.2)}), seed=0)(x)
    assert torch.equal(first, x)
    assert (second == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_in_place_writes_into_its_argument():
    class InPlace(nn.Module):
        def forward(self, x):
            F.dropout(x, 0.9, self.training, inplace=True)
            return x

    x = apply(InPlace(), Plan({"@dropout": ("standard", 0.3)}), seed=0)(torch.ones(200, 100))
    assert (x == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_a_part_that_is_in_eval_mode_is_left_alone_and_one_that_trains_is_not():
    class Leaks(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5)

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Leaks(), Leaks()

        def forward(self, x):
            return self.one(x), self.two(x)

    x = torch.ones(100, 100)
    model = apply(Parts(), Plan.none())
    model.one.eval()
    one, two = model(x)
    assert not torch.equal(one, x) and torch.equal(two, x)
    model.eval().two.train()
    assert torch.equal(model(x)[1], x)
    assert torch.equal(model.two(x), x)
    assert torch.equal(model.train()(x)[0], x)


def test_a_part_that_is_called_without_the_whole_has_its_dropout():
    model = apply(build(Heads), Plan({"att@attention": ("standard", 0.5)}), seed=0)
    assert not torch.equal(model.att(X, X, X)[0], model.att(X, X, X)[0])


class Outer(nn.Module):
    """Calls F.dropout before and after a part that calls it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(Drops())

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.part(F.dropout(x, 0.1, self.training)), 0.3, self.training)


class Drops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.2, self.training)


def test_calls_of_a_part_are_told_from_those_of_the_whole():
    x = torch.ones(200, 100)
    found = places(Outer(), x)
    assert [(s.name, s.rate) for s in found] == [
        ("@dropout", 0.1), ("part.0@dropout", 0.2), ("@dropout.1", 0.3)
    ]  # fmt: skip
    for site in found:
        y = apply(Outer(), Plan({site.name: ("standard", 0.3)}), seed=0)(x)
        assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_the_rate_of_a_dropout_module_may_be_handed_to_a_function():
    class Borrows(nn.Module):  # as attention in transformers does
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.2)

        def forward(self, x):
            return F.dropout(x, self.drop.p, self.training)

    x = torch.ones(200, 100)
    assert [(s.name, s.rate) for s in find_sites(Borrows(), x)] == [("@dropout", 0.2)]
    y = apply(Borrows(), Plan({"@dropout": ("standard", 0.3)}), seed=0)(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_a_call_drops_in_a_module_that_trains_whatever_its_layers_do():
    model = apply(build(Hand), Plan({"@dropout": ("standard", 0.5)}), seed=0)
    for layer in (model.a, model.b, model.fc):
        layer.eval()
    assert not torch.equal(model(X), model(X))


def test_a_call_that_leaves_training_to_the_default_is_taken_as_torch_takes_it():
    class Defaults(nn.Module):
        def forward(self, x):
            return F.alpha_dropout(F.feature_alpha_dropout(F.dropout(x), 0.3), 0.4)

    assert [(s.name, s.rate) for s in places(Defaults(), X)] == [("@dropout", 0.5)]


def test_calls_by_keyword_are_found():
    class Keywords(nn.Module):
        def forward(self, x):
            x = torch.dropout(input=x, p=0.1, train=self.training)
            x = F.dropout(input=x, training=self.training, p=0.2)
            return F.scaled_dot_product_attention(query=x, key=x, value=x, dropout_p=0.3)

    rates = {site.name: site.rate for site in places(Keywords())}
    assert rates == {"@dropout": 0.1, "@dropout.1": 0.2, "@attention": 0.3}
    model = apply(Keywords(), Plan.none())
    torch.testing.assert_close(model(X), F.scaled_dot_product_attention(X, X, X))


# What it costs, and what is left behind


def test_a_model_of_torchs_layers_is_never_watched():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    assert not any(watched(m) for m in apply(model, Plan({"2": ("standard", 0.1)})).modules())


def test_modules_without_calls_are_let_go_after_the_first_forward_in_training():
    model = apply(build(Encoder), Plan({"enc.layers.0.dropout1": ("standard", 0.1)}))
    model.eval()(X)
    assert watched(model)
    model.train()(X)
    kept = [name for name, module in model.named_modules() if watched(module)]
    attention = [f"enc.layers.{i}.self_attn" for i in (0, 1)]
    drops = [
        f"enc.layers.{i}.{name}" for i in (0, 1) for name in ("dropout", "dropout1", "dropout2")
    ]
    assert sorted(kept) == sorted(attention + drops)


def test_a_model_without_calls_runs_as_its_own_from_the_second_forward_on():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x)

    model = apply(Plain(), Plan({"drop": ("standard", 0.1)}))
    assert watched(model) and watched(model.drop)
    for _ in range(2):
        model(X)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_module_that_makes_its_call_only_in_its_second_run_is_kept():
    class Part(nn.Module):
        def forward(self, x, p):
            return F.dropout(x, p, self.training) if p else x

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Part()

        def forward(self, x):
            return self.part(self.part(x, 0), 0.5)

    model = apply(Whole(), Plan.none())
    assert torch.equal(model(X), X)
    assert watched(model.part) and not watched(model)
    assert torch.equal(model(X), X)


def test_an_exception_in_a_forward_leaves_no_mode_on():
    model = apply(build(Hand), Plan({"@dropout": ("standard", 0.5)}), seed=0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.randn(4, 5, 7))
    assert torch.overrides._len_torch_function_stack() == 0
    ones = torch.ones(100)
    assert not torch.equal(F.dropout(ones, 0.5), ones)
    seed_noise(model, 0, 0)
    first = model(X)
    seed_noise(model, 0, 0)
    assert torch.equal(model(X), first)


@zoo
@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("ran", [False, True], ids=["new", "after a forward"])
def test_a_copy_has_the_plan_and_a_life_of_its_own(again, cls, ran):
    sites = places(build(cls))
    model = apply(build(cls), Plan.everywhere(sites, 0.5), seed=3)
    if ran:
        model(X)
    check_copy(model, again(model), sites, X)


# Errors


@pytest.mark.parametrize(
    "name", ["b@dropout", "drop@dropout", "@dropout.0", "@dropouts", "@softmax"]
)
@pytest.mark.parametrize("on", [False, True], ids=["as given", "with a plan on it"])
def test_a_call_that_cannot_be_is_refused_and_nothing_changes(name, on):
    model = apply(build(Hand), Plan.none()) if on else build(Hand)
    before = state_of(model)
    with pytest.raises(PlanError, match=f"^the model has no site '{name}'"):
        apply(model, Plan({name: ("standard", 0.5)}))
    assert state_of(model) == before


def test_a_call_that_is_not_made_is_refused_when_the_model_runs():
    model = apply(build(Hand), Plan({"@dropout.2": ("standard", 0.5)}))
    with pytest.raises(ModelError, match="names the call @dropout.2 of a Hand, .* no such call"):
        model(X)


def test_a_model_with_all_calls_switched_off_has_a_plan_on_it():
    model = apply(build(Causal), Plan.none())
    assert read(model) == Plan.none()
    with pytest.raises(ModelError, match="has a plan on it"):
        find_sites(model, X)
    assert places(remove(model)) == places(build(Causal))


def test_which_modules_can_call():
    assert can_call(Hand()) and can_call(nn.MultiheadAttention(2, 1))
    assert not can_call(nn.Linear(2, 2)) and not can_call(nn.Sequential())
