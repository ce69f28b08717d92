"""droptune/recurrent.py: torch's recurrent layers step by step, and dropout inside them."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from droptune import apply, read, recurrent, remove
from droptune.install import another_pass, install
from droptune.plan import Plan
from tests.recurring import LAYERS, TOKENS, inside, next_token, noise, one_layer, planned, words

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def tensors(result) -> list[Tensor]:
    """Return the tensors of what a layer returns, packed ones too."""
    output, state = result
    data = output.data if isinstance(output, PackedSequence) else output
    return [data, *(state if isinstance(state, tuple) else (state,))]


def gradients(module: nn.Module, result) -> list[Tensor]:
    loss = sum((t * torch.arange(t.numel()).view_as(t).cos()).sum() for t in tensors(result))
    return list(torch.autograd.grad(loss, list(module.parameters())))


def check_equal(module: nn.RNNBase, x, hx=None, fast: bool = False) -> None:
    """Check that outputs, states and gradients are those of torch, of the same layout."""
    dtype = next(module.parameters()).dtype
    ours, theirs = recurrent.forward(module, x, hx, {}, fast), module(x, hx)
    assert type(ours[0]) is type(theirs[0]) and type(ours[1]) is type(theirs[1])
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for one, other in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(one, other, **close)
    loose = {"rtol": 100 * TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    for one, other in zip(gradients(module, ours), gradients(module, theirs), strict=True):
        torch.testing.assert_close(one, other, **loose)


def start(module: nn.RNNBase, *batch: int):
    """Return random states to begin with."""
    count = module.num_layers * (1 + module.bidirectional)
    dtype = next(module.parameters()).dtype
    h = torch.randn(count, *batch, module.proj_size or module.hidden_size, dtype=dtype)
    c = torch.randn(count, *batch, module.hidden_size, dtype=dtype)
    return (h, c) if module.mode == "LSTM" else h


# The same numbers as torch's own


@pytest.mark.filterwarnings("ignore:LSTM with .* is not supported with oneDNN")
@settings(max_examples=60, deadline=None)
@given(
    layer=st.sampled_from(sorted(LAYERS)),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    projected=st.booleans(),
    axes=st.sampled_from(["batch", "one sample", "packed", "packed unsorted"]),
    states=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    fast=st.booleans(),
)
def test_every_form_of_a_layer_computes_what_torch_computes(
    layer, layers, bidirectional, batch_first, bias, projected, axes, states, dtype, fast
):
    options = {"proj_size": 2} if projected and layer == "LSTM" else {}
    torch.manual_seed(0)
    module = LAYERS[layer](
        5, 4, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias,
        **options,
    ).to(dtype)  # fmt: skip
    lengths = {"packed": (6, 4, 4, 1), "packed unsorted": (2, 6, 4, 6)}.get(axes)
    if lengths:
        x = pack_sequence([torch.randn(n, 5, dtype=dtype) for n in lengths], axes == "packed")
        batch: tuple[int, ...] = (4,)
    else:
        batch = (3,) if axes == "batch" else ()
        x = torch.randn(*((3, 6) if batch and batch_first else (6, *batch)), 5, dtype=dtype)
    check_equal(module, x, start(module, *batch) if states else None, fast)


def test_a_parametrised_layer_computes_with_the_weights_that_it_makes():
    module = weight_norm(one_layer("GRU"), "weight_hh_l0")
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    ours = recurrent.forward(module, x)[0]
    torch.testing.assert_close(ours, module(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_does_not_fit_is_refused_as_torch_does(layer):
    module = planned(one_layer(layer), state=("locked", 0.5))
    for shape in [(5,), (2, 3, 4, 5)]:
        with pytest.raises(ValueError, match="Expected input to be 2D or 3D"):
            module(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="input.size"):
        module(torch.zeros(2, 3, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        module(torch.zeros(2, 3, 5, dtype=torch.float64), start(module, 9))


# What each place does, against torch's own layers and cells


def masked(state: Tensor, mask: Tensor, new: Tensor) -> Tensor:
    """Return the new state where a mask is 1, and the old one where it is 0."""
    return torch.where(mask.bool(), new, state)


def lstm_by_cells(module: nn.LSTM, x: Tensor, read: Tensor, zone_h: Tensor, zone_c: Tensor):
    """Run `nn.LSTMCell` with a factor of what is read, and shares (N, L, S) of what is updated."""
    cell = nn.LSTMCell(5, 6).double()
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in module.state_dict().items()})
    h = c = torch.zeros(len(x), 6, dtype=torch.float64)
    outputs = []
    for t in range(x.shape[1]):
        new_h, new_c = cell(x[:, t], (h * read, c))
        h, c = masked(h, zone_h[:, t], new_h), masked(c, zone_c[:, t], new_c)
        outputs.append(h)
    return torch.stack(outputs, 1)


X = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(2)).double()
ALL = torch.ones(4, 7, 6)


def test_locked_at_the_state_is_one_factor_of_what_all_steps_read():
    (mask,) = noise("locked", "@state", 0.4, (4, 1, 6))
    expected = lstm_by_cells(module := one_layer("LSTM"), X, mask[:, 0], ALL, ALL)
    torch.testing.assert_close(planned(module, state=("locked", 0.4))(X)[0], expected)
    assert mask.unique().numel() == 2


def test_zoneout_leaves_units_of_the_state_or_of_the_cell_as_they_were():
    for place, zones in (("state", lambda z: (z, ALL)), ("cell", lambda z: (ALL, z))):
        (mask,) = noise("zoneout", f"@{place}", 0.4, (4, 7, 6))
        expected = lstm_by_cells(module := one_layer("LSTM"), X, ALL[:, 0], *zones(mask))
        found = planned(module, **{place: ("zoneout", 0.4)})(X)[0]
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, one_layer("LSTM")(X)[0])


def gru_by_hand(module: nn.GRU, x: Tensor, read: Tensor) -> Tensor:
    h, outputs = torch.zeros(len(x), 6, dtype=torch.float64), []
    for t in range(x.shape[1]):
        xr, xz, xn = (x[:, t] @ module.weight_ih_l0.T + module.bias_ih_l0).chunk(3, -1)
        hr, hz, hn = ((h * read) @ module.weight_hh_l0.T + module.bias_hh_l0).chunk(3, -1)
        z = (xz + hz).sigmoid()
        h = z * h + (1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh()
        outputs.append(h)
    return torch.stack(outputs, 1)


def test_what_a_gru_carries_over_is_not_dropped_with_what_its_gates_read():
    (mask,) = noise("locked", "@state", 0.4, (4, 1, 6))
    expected = gru_by_hand(module := one_layer("GRU"), X, mask[:, 0])
    torch.testing.assert_close(planned(module, state=("locked", 0.4))(X)[0], expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_weight_drop_is_torchs_layer_with_single_weights_dropped(layer):
    options = {"bidirectional": True, "num_layers": 2}
    module, twin = one_layer(layer, **options), one_layer(layer, **options)
    hidden = [name for name, _ in twin.named_parameters() if name.startswith("weight_hh")]
    shapes = [tuple(twin.get_parameter(name).shape) for name in hidden]
    with torch.no_grad():
        for name, mask in zip(hidden, noise("weight_drop", "@weights", 0.5, *shapes), strict=True):
            twin.get_parameter(name).mul_(mask)
    found = planned(module, weights=("weight_drop", 0.5))(X)[0]
    torch.testing.assert_close(found, twin(X)[0])


@pytest.mark.parametrize("kind", ["standard", "locked", "gaussian"])
def test_dropout_between_layers_acts_on_the_output_of_each_but_the_last(kind):
    module = one_layer("GRU", num_layers=3)
    singles = [nn.GRU(size, 6, batch_first=True).double() for size in (5, 6, 6)]
    for i, single in enumerate(singles):
        named = {f"{n[:-1]}0": p for n, p in module.state_dict().items() if n.endswith(f"l{i}")}
        single.load_state_dict(named)
    first, second = noise(kind, "@between", 0.4, (4, 7, 6), (4, 7, 6))
    expected = singles[2](singles[1](singles[0](X)[0] * first)[0] * second)[0]
    torch.testing.assert_close(planned(module, between=(kind, 0.4))(X)[0], expected)


def test_on_a_packed_sequence_a_sample_is_what_it_is_in_a_padded_batch():
    lengths = (7, 6, 3, 2)
    entries = {"state": ("zoneout", 0.3), "cell": ("zoneout", 0.3), "weights": ("weight_drop", 0.3)}
    packed = pack_sequence([x[:n] for x, n in zip(X, lengths, strict=True)])
    output, (h, _) = planned(one_layer("LSTM"), **entries)(packed)
    padded = planned(one_layer("LSTM"), **entries)(X)[0]
    for i, n in enumerate(lengths):
        torch.testing.assert_close(pad_packed_sequence(output, True)[0][i, :n], padded[i, :n])
        torch.testing.assert_close(h[0, i], padded[i, n - 1])


# Eval


@pytest.mark.parametrize("layer", LAYERS)
def test_zoneout_acts_in_eval_by_its_mean_and_is_exact_at_rate_0(layer):
    module = one_layer(layer).eval()
    expected = module(X)[0]
    h = torch.zeros(4, 6, dtype=torch.float64)
    first = 0.75 * one_layer(layer)(X[:, :1])[0][:, 0] + 0.25 * h
    planned(module, state=("zoneout", 0.25)).eval()
    torch.testing.assert_close(module(X)[0][:, 0], first)
    assert torch.equal(module(X)[0], module(X)[0])
    assert not torch.allclose(module(X)[0], expected)
    assert torch.equal(remove(module)(X)[0], expected)
    assert torch.equal(planned(module, state=("zoneout", 0.0)).eval()(X)[0], expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_zoneout_goes_with_autocast(layer):
    module = planned(one_layer(layer, torch.float32), state=("zoneout", 0.5))
    with torch.autocast("cpu", torch.bfloat16):
        output = module(torch.randn(4, 7, 5))[0]
    output.float().sum().backward()
    assert module.weight_hh_l0.grad.abs().sum() > 0


def test_the_mean_of_an_update_in_training_is_what_eval_does():
    many = X[:1, :1].expand(40_000, 1, 5)
    module = planned(one_layer("LSTM"), state=("zoneout", 0.3), cell=("zoneout", 0.3))
    _, (h, c) = module(many)
    _, (mean_h, mean_c) = module.eval()(many[:1])
    torch.testing.assert_close(h.mean(1), mean_h[:, 0], atol=0.01, rtol=0)
    torch.testing.assert_close(c.mean(1), mean_c[:, 0], atol=0.01, rtol=0)


# Torch's own kernel, where it does


@pytest.fixture
def steps(monkeypatch) -> list[nn.Module]:
    """The modules of which a layer has run step by step."""
    seen, by_steps = [], recurrent._by_steps

    def noted(run, *args):
        seen.append(run.module)
        return by_steps(run, *args)

    monkeypatch.setattr(recurrent, "_by_steps", noted)
    return seen


def test_torchs_own_kernel_runs_unless_dropout_is_on_inside(steps, monkeypatch):
    outside = {"emb@rows": ("embedding", 0.5), "rnn@input": ("locked", 0.5)}
    layers = {"rnn@weights": ("weight_drop", 0.5), "rnn@between": ("locked", 0.5)}
    for plan in ({}, outside, outside | layers):
        apply(words(), Plan(plan))(TOKENS)
    model = words()
    install(model, inside(words()))  # at rate 0
    model(TOKENS)
    assert not steps
    model = apply(words(), Plan({"rnn@state": ("locked", 0.5)}))
    model(TOKENS)
    assert steps == [model.rnn, model.rnn]  # it has two layers
    monkeypatch.setattr(recurrent, "forward", None)
    model.eval()(TOKENS)


def test_under_vmap_the_steps_run_in_eval_mode_too(steps):
    models = [apply(words(seed=seed).eval(), Plan.none()) for seed in range(3)]
    state, buffers = torch.func.stack_module_state(models)

    def member(state: dict, buffers: dict) -> Tensor:
        return torch.func.functional_call(models[0], (state, buffers), (TOKENS,))

    mapped = torch.vmap(member)(state, buffers)
    assert steps == [models[0].rnn] * 2
    for one, model in zip(mapped, models, strict=True):
        torch.testing.assert_close(one, model(TOKENS), rtol=1e-6, atol=1e-6)


# Promises 1 and 2, on a model


def without_dropout() -> nn.Module:
    model = words()
    model.rnn.dropout = 0.0
    return model


def trained(model: nn.Module) -> list[Tensor]:
    """Train for five steps; return all weights."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        next_token(model(TOKENS[:, :-1]), TOKENS[:, 1:]).backward()
        optimizer.step()
    return list(model.state_dict().values())


@pytest.mark.parametrize(
    "put_on", [lambda m: apply(m, Plan.none()), lambda m: install(m, inside(m))]
)
def test_kinds_at_rate_0_and_no_dropout_train_bit_for_bit_like_the_untouched_model(put_on):
    model = words()
    put_on(model)
    for one, other in zip(trained(model), trained(without_dropout()), strict=True):
        assert torch.equal(one, other)


def test_a_plan_leaves_state_dict_and_eval_output_bit_for_bit_but_for_zoneout():
    model = words().eval()
    keys, output = list(model.state_dict()), model(TOKENS)
    for name, kinds in inside(words()).items():
        for kind in kinds:
            apply(model, Plan({name: (kind, 0.5)}))
            assert list(model.state_dict()) == keys
            assert torch.equal(model(TOKENS), output) == (kind != "zoneout")
            words().load_state_dict(model.state_dict(), strict=True)
            model.load_state_dict(words().state_dict(), strict=True)


def attributes(model: nn.Module) -> list:
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    marks = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return [
        (path, sorted(vars(module)), list(module._modules), getattr(module, "dropout", None))
        + tuple(list(getattr(module, name)) for name in hooks + marks)
        for path, module in model.named_modules()
    ]


def test_remove_gives_the_layer_its_forward_and_its_dropout_back():
    model, given_with = words(), words()
    before = attributes(model)
    install(model, inside(given_with))
    assert attributes(model) != before and model.rnn.dropout == 0.0
    assert attributes(remove(model)) == before
    outputs = []
    for one in (model, given_with):
        torch.manual_seed(3)
        outputs.append(one(TOKENS))
    assert torch.equal(*outputs)


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_a_copy_has_the_plan_and_a_life_of_its_own(again):
    plan = Plan({name: (kinds[0], 0.4) for name, kinds in inside(words()).items()})
    model = apply(words(), plan, seed=3)
    twin = again(model)
    assert read(twin) == plan
    assert torch.equal(twin(TOKENS), model(TOKENS))
    remove(twin)
    assert twin.rnn.dropout == 0.3 and read(model) == plan
    assert not torch.equal(twin(TOKENS), model(TOKENS))


def test_a_model_that_is_a_layer_takes_plan_after_plan():
    layer = one_layer("LSTM")
    for _ in range(2):
        planned(layer, input=("controlled", 0.4), weights=("weight_drop", 0.2))
    remove(layer)
    assert "forward" not in vars(layer)


def test_a_given_mask_acts_between_layers_where_the_plan_names_no_kind():
    model = words()
    install(model, {"rnn@between": ()})
    given = model(TOKENS)
    for value in (1.0, 0.0):
        with another_pass(model, ("", ""), "rnn@between", torch.full((4, 1, 6), value)):
            assert torch.equal(model(TOKENS), given) == (value == 1)


def test_each_matrix_of_a_layer_has_its_own_mask():
    layer = nn.GRU(5, 3, 2, bidirectional=True)
    masks = (torch.rand(4, 9, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    masked = copy.deepcopy(layer)
    for mask, weights in zip(masks, masked.all_weights, strict=True):
        weights[1].data *= mask
    install(layer, {"@weights": ()})
    x = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(1))
    with another_pass(layer, ("", ""), "@weights", masks):
        torch.testing.assert_close(layer(x)[0], masked(x)[0])


def test_every_place_and_kind_has_noise_that_the_seed_fixes():
    for name, kinds in inside(words()).items():
        for kind in kinds:
            plan = Plan({name: (kind, 0.5)})
            outputs = [apply(words(), plan, seed=seed)(TOKENS) for seed in (0, 0, 1)]
            assert torch.equal(outputs[0], outputs[1]), (name, kind)
            assert not torch.equal(outputs[0], outputs[2]), (name, kind)


def test_a_layer_whose_forward_is_not_torchs_is_left_alone():
    class Foreign(nn.LSTM):
        def forward(self, x):
            return super().forward(x)

    model = apply(Foreign(5, 6, 2, dropout=0.3), Plan.none())
    assert model.dropout == 0.3 and not recurrent.watched(model)
