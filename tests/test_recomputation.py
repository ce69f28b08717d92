"""droptune/recomputation.py: under gradient checkpointing the gradient is that of the output."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from droptune import Plan, apply, find_sites
from droptune.errors import ModelError
from droptune.kinds import KINDS
from tests.calling import Causal, Hand, X, build
from tests.recurring import TOKENS


class Layer(nn.Module):
    """A call, a dropout module that runs twice, and one shared with other layers."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.fc, self.drop, self.shared = nn.Linear(6, 6), nn.Dropout(0.2), shared

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(torch.tanh(self.fc(x)), 0.3, self.training)
        # The same tensor twice at one site: told apart by their order alone.
        return self.shared(x + self.drop(y) * 0.5 + self.drop(y))


class Layers(nn.Module):
    """Runs its layers as they are, or checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.shared, self.reentrant = nn.Dropout(0.1), reentrant
        self.layers = nn.ModuleList(Layer(self.shared) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.reentrant is None:
                x = layer(x)
            else:
                x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return self.head(x)


def gradients(model: nn.Module, plan: Plan, x: Tensor = X, steps: int = 2) -> list[Tensor]:
    """Return outputs and gradients of some steps with one seed."""
    apply(model, plan, seed=1).train()
    found = []
    for _ in range(steps):
        model.zero_grad()
        output = model(x.clone().requires_grad_())  # reentrant parts want an input with one
        output.square().sum().backward()
        found += [output.detach(), *(p.grad.clone() for p in model.parameters())]
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["standard", "gaussian", "drop_path"])
def test_gradients_are_those_without_checkpointing_bit_for_bit(reentrant, kind):
    plan = Plan({site.name: (kind, 0.4) for site in find_sites(build(Layers), X)})
    assert len(plan) >= 8
    plain = gradients(build(Layers), plan)
    assert same(gradients(build(Layers, reentrant), plan), plain)
    other = gradients(build(Layers), Plan.none())
    assert not same(plain, other)


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k].fits("NLF", "hidden")])
def test_every_kind_draws_again_what_it_drew(kind):
    plan = Plan({"layers.1.drop": (kind, 0.4)})
    assert same(gradients(build(Layers, False), plan), gradients(build(Layers), plan))


class Outer(nn.Module):
    """Checkpoints a whole model, attention in it."""

    def __init__(self, inner: nn.Module, on: bool) -> None:
        super().__init__()
        self.inner, self.on = inner, on

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False) if self.on else self.inner(x)


@pytest.mark.parametrize("cls", [Hand, Causal])
def test_calls_of_functions_are_replaced_when_they_run_again(cls):
    plan = Plan.everywhere(find_sites(Outer(build(cls), True), X), 0.4)
    ours = gradients(Outer(build(cls), True), plan)
    assert same(ours, gradients(Outer(build(cls), False), plan))


def test_a_graph_kept_for_a_second_backward_gives_the_same_gradient_again():
    model = apply(build(Layers, False), Plan({"layers.0.drop": ("standard", 0.5)}), seed=1)
    loss = model(X).sum()
    found = []
    for _ in range(2):
        model.zero_grad()
        loss.backward(retain_graph=True)
        found.append([p.grad.clone() for p in model.parameters()])
    assert same(*found)


def test_two_forwards_may_come_before_their_backwards():
    def grads(model: nn.Module) -> list[Tensor]:
        apply(model, Plan({"shared": ("standard", 0.5)}), seed=1)
        first, second = model(X), model(X + 1)
        second.square().sum().backward()
        first.square().sum().backward()
        return [p.grad for p in model.parameters()]

    assert same(grads(build(Layers, False)), grads(build(Layers)))


def test_two_passes_over_one_batch_may_come_before_one_backward():
    def grads(on: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = Outer(nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 3)), on)
        apply(model, Plan({"inner.0": ("standard", 0.5)}), seed=1)
        (model(X).square().sum() + 2 * model(X).abs().sum()).backward()
        return [p.grad for p in model.parameters()]

    assert same(grads(True), grads(False))


class Sentence(nn.Module):
    """Runs two layers twice, each time in parts of their own; what sites in them hold is alike."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.emb, self.rnn = nn.Embedding(11, 6), nn.GRU(6, 6, 2, batch_first=True)
        self.reentrant = reentrant

    def part(self, module: nn.Module, *args: Tensor):
        if self.reentrant is None:
            return module(*args)
        return checkpoint(module, *args, use_reentrant=self.reentrant)

    def forward(self, needs_grad: Tensor) -> Tensor:
        words = self.part(_Shifted(self.emb), TOKENS, needs_grad)
        words = words * self.part(_Shifted(self.emb), TOKENS.flip(1), needs_grad)
        return self.part(self.rnn, self.part(self.rnn, words)[0])[0]


class _Shifted(nn.Module):
    def __init__(self, emb: nn.Embedding) -> None:
        super().__init__()
        self.emb = emb

    def forward(self, tokens: Tensor, shift: Tensor) -> Tensor:
        return self.emb(tokens) + shift


INSIDE = {
    "emb@rows": ("embedding", 0.4),
    "rnn@weights": ("weight_drop", 0.4),
    "rnn@state": ("locked", 0.4),
    "rnn@state of zoneout": ("zoneout", 0.4),
    "rnn@between": ("standard", 0.4),
}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("place", INSIDE)
def test_places_inside_layers_draw_again_what_they_drew(place, reentrant):
    def found(reentrant: bool | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = apply(Sentence(reentrant), Plan({place.split()[0]: INSIDE[place]}), seed=1)
        with torch.no_grad():
            model(torch.zeros(()).requires_grad_())  # nothing of this is run again
        output = model(torch.zeros(()).requires_grad_())
        output.square().sum().backward()
        return [output.detach(), *(p.grad for p in model.parameters())]

    # Reentrant parts add up gradients in another order.
    for one, other in zip(found(reentrant), found(None), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class Nested(nn.Module):
    """Checkpoints in a part of its own what others checkpoint in theirs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.fc = Outer(inner, True), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.inner(x)).tanh()


def test_where_two_calls_may_be_meant_the_backward_is_refused():
    model = Outer(Nested(nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 6))), True)
    apply(model, Plan({"inner.inner.inner.0": ("standard", 0.5)}), seed=1)
    (model(X) + model(X + 1)).square().sum().backward()  # told apart by what they were given
    output = model(X) + model(X)
    with pytest.raises(ModelError, match="two calls of a site were given the same.*do not nest"):
        output.square().sum().backward()


def test_a_copy_that_was_taken_between_forward_and_backward_draws_its_own():
    model = apply(build(Layers, False), Plan({"shared": ("standard", 0.5)}), seed=1)
    output = model(X)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), model(X))
    output.sum().backward()


def test_a_forward_whose_masks_are_forgotten_is_refused():
    model = apply(build(Layers, False), Plan({"layers.0.drop": ("standard", 0.5)}), seed=1)
    first = model(X)
    for shift in range(1, 40):
        model(X + shift)
    with pytest.raises(ModelError, match="masks are no longer known.*call backward earlier"):
        first.sum().backward()


class Closure(nn.Module):
    """Checkpoints a function of its own that drops."""

    def __init__(self, reentrant: bool, rate: float = 0.5) -> None:
        super().__init__()
        self.fc, self.reentrant, self.rate = nn.Linear(6, 6), reentrant, rate

    def block(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), self.rate, self.training)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_checkpointed_function_of_a_forward_is_refused(reentrant, rate):
    model = apply(Closure(reentrant), Plan({"@dropout": ("standard", rate)}))
    with pytest.raises(ModelError, match="call @dropout of a Closure.*checkpoint a module"):
        model(X.clone().requires_grad_())


def test_a_function_that_does_not_drop_is_no_reason_to_refuse():
    model = apply(Closure(False, 0.0), Plan.none())
    model(X).sum().backward()


def test_calls_without_gradients_or_with_tensors_kept_on_the_cpu_are_no_checkpoints():
    class Frozen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = F.dropout(x, 0.5, self.training)
            with torch.autograd.graph.save_on_cpu():
                return F.dropout(x, 0.5, self.training)

    model = apply(Frozen(), Plan({"@dropout": ("standard", 0.5)}))
    assert (model(X) == 0).any()
