"""droptune/columns.py: smaller matrices, to the same effect as a mask."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from droptune import apply, columns, remove
from droptune.columns import Columns, Draw, pays
from droptune.errors import ModelError
from droptune.install import installed, seed_noise
from droptune.kinds.noise import FIRST
from tests.kinds.making import make
from tests.narrowing import FITS, X, hand, made, mlp, narrow, plan, with_masks


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Use smaller matrices even where they do not pay."""
    monkeypatch.setattr(columns, "pays", lambda *_: True)


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Return a model of a case that has been seen in training, its twin with masks, an example."""
    model, example = made(name)
    model(example)
    return model, with_masks(copy.deepcopy(model)), example


def results(model: nn.Module, example: Tensor) -> list[Tensor]:
    """Return output and gradients."""
    model.zero_grad()
    example = example.clone().requires_grad_()
    output = model(example)
    output.pow(2).sum().backward()
    return [output.detach(), example.grad, *(p.grad.clone() for p in model.parameters())]


def same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-12) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


class Products(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            left, right = args[-2:]
            self.count += left.numel() * right.shape[-1]
        return func(*args, **(kwargs or {}))


def multiplications(run) -> int:
    with Products() as products:
        run()
    return products.count


@pytest.mark.parametrize("name", FITS)
def test_outputs_and_gradients_are_those_of_the_mask(name):
    model, twin, example = pair(name)
    for _ in range(3):
        same(results(model, example), results(twin, example))
    assert narrow(model) == FITS[name][3] and narrow(twin) == []


@pytest.mark.parametrize("name", FITS)
def test_there_is_less_to_multiply_forwards_and_backwards(name):
    model, twin, example = pair(name)
    assert multiplications(lambda: model(example)) < multiplications(lambda: twin(example))
    assert multiplications(lambda: results(model, example)) < multiplications(
        lambda: results(twin, example)
    )


def test_the_multiplications_are_those_of_the_compressed_network():
    """784-1024-1024-2048-10 at rate 0.5: 3,969,024 a sample become 1,198,080."""
    sizes = (784, 1024, 1024, 2048)
    layers = [
        m for i, o in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(i, o), nn.ReLU())
    ]
    model = apply(nn.Sequential(*layers, nn.Linear(2048, 10)), plan("1", "3", "5")).train()
    x = torch.randn(2, 784)
    assert multiplications(lambda: model(x)) == 2 * 3_969_024  # the first forward uses masks
    assert multiplications(lambda: model(x)) == 2 * 1_198_080


@settings(max_examples=30)
@given(
    rate=st.floats(0.01, 0.95), sizes=st.lists(st.integers(1, 12), min_size=3, max_size=5),
    seed=st.integers(0, 99), samples=st.integers(1, 6),
)  # fmt: skip
def test_any_sizes_and_rates_give_what_the_mask_gives(rate, sizes, seed, samples):
    torch.manual_seed(seed)
    layers = [
        m for i, o in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(i, o), nn.Tanh())
    ]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], 2, bias=False)).double()
    sites = [str(2 * i + 1) for i in range(len(sizes) - 1)]
    apply(model, plan(*sites, rate=rate), seed=seed).train()
    x = torch.randn(samples, sizes[0], dtype=torch.float64)
    model(x)
    twin = with_masks(copy.deepcopy(model))
    assert len(narrow(model)) == len(sites)
    same(results(model, x), results(twin, x))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw fused", "sgd"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_run_trains_to_the_weights_of_the_masked_run(optimizer, dtype, tolerance):
    """Dropped units included, which weight decay, moments and momentum move."""
    model, twin, _ = pair("an activation")
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = (x.sum(1) > 0).long()
    for one in (model.to(dtype), twin.to(dtype)):
        seed_noise(one, 1)
        if optimizer == "sgd":
            steps = torch.optim.SGD(one.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
        else:
            fused = optimizer.endswith("fused")
            steps = torch.optim.AdamW(one.parameters(), 1e-2, weight_decay=0.1, fused=fused)
        for _ in range(25):
            loss = F.cross_entropy(one(x), y)
            steps.zero_grad()
            loss.backward()
            steps.step()
    assert narrow(model) == ["0", "2"] and narrow(twin) == []
    same(list(model.parameters()), list(twin.parameters()), tolerance)


def test_gradients_of_what_is_dropped_are_zeros_and_not_missing():
    model, _, _ = pair("an activation")
    model(X).sum().backward()
    gradient = model[0].weight.grad
    assert gradient.shape == model[0].weight.shape
    assert (gradient == 0).all(1).sum() == 3  # 8 units at rate 0.4


# Who gets the whole tensor


@pytest.mark.parametrize(
    "use", ["mean before", "fan out", "activation", "in place", "hook", "view"]
)
def test_a_function_that_needs_the_whole_gets_it(use):
    model = hand(use)
    twin = with_masks(copy.deepcopy(model))
    for _ in range(2):
        same(results(model, X), results(twin, X))
    # Before the dropout the whole is computed in addition; behind it zeros are all that lacks.
    assert narrow(model) == (["b"] if use == "mean before" else ["a", "b"])


def test_an_activation_that_writes_elsewhere_gets_the_whole():
    model, _ = made("an activation")
    output, place = undropped(model), torch.empty(5, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.sigmoid(output, out=place)
        torch.testing.assert_close(place, F.linear(X, model[0].weight, model[0].bias).sigmoid())


def test_what_a_model_keeps_of_a_forward_can_be_read_and_differentiated_later():
    model = hand("kept")
    twin = with_masks(copy.deepcopy(model))
    for one in (model, twin):
        one(X)
        one.zero_grad()
        with torch.no_grad():
            one.hidden.mean()
        (one.hidden * 3).sum().backward()
    assert type(model.hidden) is Columns and model.hidden.shape == (5, 8)
    torch.testing.assert_close(model.hidden.clone(), twin.hidden)
    same([model.a.weight.grad, model.b.weight.grad], [twin.a.weight.grad, twin.b.weight.grad])


def undropped(model: nn.Module, example: Tensor = X) -> Columns:
    """Return what the first layer hands out, before the dropout."""
    model(example)
    return model[0](example)


def test_before_the_dropout_the_whole_is_computed_from_the_weights_of_then():
    model, _ = made("an activation")
    output = undropped(model)
    assert type(output) is Columns
    torch.testing.assert_close(output.clone(), F.linear(X, model[0].weight, model[0].bias))
    assert narrow(model) == ["2"]
    model, _ = made("an activation")
    output = undropped(model)
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(ModelError, match="^the output of a layer .* ask before optimizer"):
        output.sum()


def test_an_activation_in_place_is_seen_by_every_name_of_the_tensor():
    model, _ = made("an activation")
    output = undropped(model)
    named = output
    F.relu(output, inplace=True)
    torch.testing.assert_close(named.clone(), F.linear(X, model[0].weight, model[0].bias).relu())


def test_a_function_that_torch_cannot_override_is_refused_never_misled():
    model = hand("foreign")
    with pytest.raises(ModelError, match="^a function that torch cannot override .* use kind"):
        model(X).sum().backward()
    assert (model.a.weight.grad is None) or (model.a.weight.grad == 0).all()


@pytest.mark.parametrize("part", [FIRST, ("again", "again")])
def test_units_drawn_ahead_are_not_used_where_the_site_would_draw_others(part):
    model, _ = made("an activation")
    kind = installed(model)["1"].kinds["controlled"]
    kind.stream.part = part
    output = undropped(model)
    kind(torch.ones(2, 8, dtype=torch.float64))  # somebody else comes first
    twin = copy.deepcopy(kind)
    twin.stream.part = part
    expected = twin(F.linear(X, model[0].weight, model[0].bias))
    torch.testing.assert_close(kind(output).clone(), expected)


def test_what_is_drawn_ahead_is_what_the_mask_keeps():
    kind = make("controlled")
    kind.set_rate(0.3)
    draw = Draw.ahead(kind, 10, torch.device("cpu"))
    assert draw.holds(kind)
    kept = kind(torch.ones(1, 10))[0].nonzero().flatten()
    assert torch.equal(draw.kept, kept) and not draw.holds(kind)
    assert not Draw.ahead(kind, 10, torch.device("cpu")).holds(copy.deepcopy(kind))


# What stays as it is


def test_eval_mode_state_dict_and_a_rate_of_0_know_nothing_of_it():
    model, _, example = pair("an activation")
    plain = remove(copy.deepcopy(model))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model.eval()(example), plain(example))
    assert narrow(model) == ["0", "2"]
    with torch.no_grad():
        assert type(model.train()[0](example)) is Tensor
    apply(model, plan("1", rate=0.01), seed=0)
    assert torch.equal(model(example), plain(example))  # 8 units: all are kept
    installed(model)["1"].set(None)
    assert torch.equal(model(example), plain(example))
    assert type(model[0](example)) is Tensor and narrow(model) == ["0"]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", ["an activation", "by hand", "nested"])
def test_a_copy_goes_on_by_itself(name, again):
    model, _, example = pair(name)
    twin = again(model)
    assert narrow(twin) == narrow(model)
    for module in twin.modules():
        if "forward" in vars(module):
            assert module.forward.module is module
    assert torch.equal(twin(example), model(example))
    remove(model)
    assert narrow(twin) == FITS[name][3]


def test_in_half_precision_it_is_the_mask_too():
    model, twin, example = pair("an activation")
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = model.float()(example.float()), twin.float()(example.float())
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        output = undropped(made("an activation")[0].float(), example.float())
    assert output.dtype == output.clone().dtype == torch.bfloat16


def test_mapped_by_vmap_a_layer_uses_the_mask():
    model, _, example = pair("an activation")
    weights = {name: torch.stack([p, p + 1]) for name, p in model.named_parameters()}
    draw = torch.vmap(lambda w: torch.func.functional_call(model, w, (example,)), randomness="same")
    seed_noise(model, 4)
    outputs = draw(weights)
    seed_noise(model, 4)
    torch.testing.assert_close(outputs[0], model(example))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_narrow_model_can_be_compiled():
    model, _, example = pair("an activation")
    seed_noise(model, 4)
    expected = model(example)
    seed_noise(model, 4)
    torch.testing.assert_close(torch.compile(model, backend="eager")(example), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_in_a_part_that_is_run_again_the_mask_is_used(reentrant):
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.on = mlp(nn.ReLU()), False

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.net, x, use_reentrant=reentrant) if self.on else self.net(x)

    torch.manual_seed(0)
    model = apply(Part().double(), plan("net.1"), seed=3).train()
    model(X)
    assert narrow(model) == ["net.0"]
    twin = with_masks(copy.deepcopy(model))
    model.on = True
    same(results(model, X), results(twin, X))


def test_small_layers_and_batches_and_low_rates_do_not_pay():
    small, large = nn.Linear(64, 64), nn.Linear(2048, 2048)
    assert pays(512, large, 0.5) and pays(64, large, 0.5)
    assert not pays(512, small, 0.5) and not pays(16, large, 0.5) and not pays(64, large, 0.1)
    assert not pays(512, nn.Linear(2048, 2048, device="meta"), 0.5)


def test_where_it_does_not_pay_the_mask_is_used(monkeypatch):
    monkeypatch.setattr(columns, "pays", pays)
    model, twin, example = pair("an activation")
    assert type(model[0](example)) is Tensor
    assert multiplications(lambda: model(example)) == multiplications(lambda: twin(example))


def test_the_form_of_the_whole_is_known_without_it():
    model, _ = made("an activation")
    output = undropped(model)
    assert output.shape == (5, 8) and output.size(1) == 8 and len(output) == 5
    assert output.ndim == output.dim() == 2 and output.numel() == 40
    assert output.dtype == torch.float64 and output.device == X.device and output.requires_grad
    assert output.is_floating_point() and narrow(model) == ["0", "2"]
    assert mlp(nn.ReLU())[0](X.float()).shape == output.shape
