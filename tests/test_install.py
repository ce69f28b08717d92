"""droptune/install.py: apply, read, remove (promises 1 and 2 of the design)."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from droptune import Plan, apply, find_sites, read, remove
from droptune.errors import ModelError, PlanError
from droptune.install import install, installed, seed_noise
from droptune.kinds import KINDS
from droptune.plan import Entry
from droptune.sites import has_plan

ROW = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))


# A zoo of models


class Residual(nn.Module):
    """A hand-written residual network whose first layer is an empty shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Sequential()
        self.stem, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(self.shortcut(x))))
        x = F.relu(self.conv(x)) + x
        return self.fc(x.mean((2, 3)))


class Foreign(nn.Module):
    """Draws noise from torch's global generator in its forward, out of droptune's sight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.a(x))
        return self.b(self.drop(x + torch.randn_like(x) if self.training else x))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def dropping() -> nn.Module:
    return nn.Sequential(
        nn.Dropout(0.1), nn.Linear(6, 8), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(8, 8),
        nn.LayerNorm(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3),
    )  # fmt: skip


ZOO = {
    "mlp": (mlp, ROW),
    "cnn with norms": (cnn, IMAGE),
    "residual": (Residual, IMAGE),
    "with dropout": (dropping, ROW),
    "with noise of its own": (Foreign, ROW),
}
zoo = pytest.mark.parametrize(("builder", "x"), ZOO.values(), ids=ZOO)


def build(builder) -> nn.Module:
    torch.manual_seed(0)
    return builder()


def fitting(model: nn.Module, x: Tensor) -> dict[str, list[str]]:
    """Return every site of a model with all kinds that fit there."""
    return {
        site.name: [name for name, kind in KINDS.items() if kind.fits(site.layout, site.role)]
        for site in find_sites(model, x)
    }


def state_of(model: nn.Module) -> list:
    """Return what `remove` must restore: attributes, hooks in order, children and rates."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    return [
        (path, sorted(m.__dict__), [list(getattr(m, h).items()) for h in hooks], list(m._modules))
        + (list(m._buffers), m.training, getattr(m, "p", None))
        for path, m in model.named_modules()
    ]


# Promise 1: state_dict keys and eval output stay, remove restores


@zoo
def test_a_plan_leaves_state_dict_and_eval_output_bit_for_bit(builder, x):
    model = build(builder).eval()
    keys, output = list(model.state_dict()), model(x)
    for rate in (0.0, 0.5):
        apply(model, Plan.everywhere(find_sites(build(builder), x), rate))
        assert list(model.state_dict()) == keys
        assert torch.equal(model(x), output)
    build(builder).load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(build(builder).state_dict(), strict=True)


@zoo
def test_a_plan_takes_effect_at_every_site_in_training(builder, x):
    for site in find_sites(build(builder), x):
        model = apply(build(builder), Plan({site.name: (site.default_kind, 0.5)}), seed=0)
        masks = []
        for clock in (0, 1):
            torch.manual_seed(0)
            seed_noise(model, 0, clock)
            masks.append(model(x))
        assert not torch.equal(*masks), site.name


@zoo
def test_remove_restores_every_module(builder, x):
    model = build(builder)
    model.register_forward_hook(lambda module, args, output: None)
    next(model.children()).register_forward_pre_hook(lambda module, args: None)
    before = state_of(model)
    install(model, fitting(build(builder), x))
    assert state_of(model) != before
    assert remove(model) is model
    assert state_of(model) == before
    assert state_of(remove(model)) == before


@zoo
def test_applying_twice_is_applying_once(builder, x):
    sites = find_sites(build(builder), x)
    model = build(builder)
    before = state_of(model)
    apply(model, Plan.everywhere(sites, 0.5))
    apply(model, second := Plan.everywhere(sites, 0.2, "gaussian"))
    assert read(model) == second
    assert all(list(dropout.kinds) == ["gaussian"] for dropout in installed(model).values())
    assert state_of(remove(model)) == before


# Promise 2: the all-zero plan trains as the untouched model


def trained(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Train for 20 steps; return all weights, statistics and the losses."""
    y = torch.arange(len(x)) % 3
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01)
    torch.manual_seed(7)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*model.state_dict().values(), torch.stack(losses), torch.get_rng_state()]


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


@zoo
def test_kinds_at_rate_0_train_bit_for_bit_like_the_untouched_model(builder, x):
    expected = trained(without_dropout(build(builder)), x)
    model = build(builder)
    install(model, fitting(build(builder), x))
    for tensor, other in zip(trained(model, x), expected, strict=True):
        assert torch.equal(tensor, other)


@zoo
def test_no_dropout_trains_bit_for_bit_like_the_model_with_its_dropout_off(builder, x):
    expected = trained(without_dropout(build(builder)), x)
    for tensor, other in zip(trained(apply(build(builder), Plan.none()), x), expected, strict=True):
        assert torch.equal(tensor, other)


@zoo
def test_after_remove_the_model_trains_bit_for_bit_as_given(builder, x):
    expected = trained(build(builder), x)
    model = build(builder)
    install(model, fitting(build(builder), x))
    for tensor, other in zip(trained(remove(model), x), expected, strict=True):
        assert torch.equal(tensor, other)


# What a plan does


def test_the_rate_is_the_part_that_is_dropped_at_an_output_and_at_an_input():
    x = torch.ones(200, 100)
    for site in ("0", "0@input", "@input"):
        model = apply(nn.Sequential(nn.Identity()), Plan({site: ("standard", 0.3)}), seed=0)
        assert (model(x) == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)


def test_keyword_arguments_are_dropped_too():
    model = nn.Linear(6, 2)
    apply(model, Plan({"@input": ("standard", 0.5)}), seed=0)
    outputs = model(input=torch.ones(100, 6))
    assert outputs.unique(dim=0).shape[0] > 2


def test_existing_dropout_that_the_plan_does_not_name_is_off():
    model = apply(nn.Sequential(nn.Dropout(0.9), nn.Identity()), Plan.none())
    assert torch.equal(model(ROW), ROW)


def test_existing_dropout_that_the_plan_names_acts_once_at_the_new_rate():
    model = apply(nn.Sequential(nn.Dropout(0.9)), Plan({"0": ("standard", 0.2)}), seed=0)
    y = model(torch.ones(100, 100))
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / 0.8]))


def test_the_seed_fixes_the_masks_and_without_one_they_follow_torchs():
    plan = Plan({"1": ("standard", 0.5)})

    def output(seed: int | None, torchs: int) -> Tensor:
        model = build(mlp)
        torch.manual_seed(torchs)
        return apply(model, plan, seed=seed)(ROW)

    assert torch.equal(output(0, 1), output(0, 2))
    assert not torch.equal(output(0, 1), output(1, 1))
    assert torch.equal(output(None, 1), output(None, 1))
    assert not torch.equal(output(None, 1), output(None, 2))


def test_of_several_kinds_at_a_site_only_the_planned_one_acts():
    model = build(mlp)
    install(model, {"1": ["standard", "gaussian"]})
    (dropout,) = installed(model).values()
    for entry in (Entry("gaussian", 0.2), Entry("standard", 0.3)):
        dropout.set(entry)
        assert read(model) == Plan({"1": entry})
    dropout.set(None)
    assert read(model) == Plan.none()


def test_a_plan_put_on_an_eval_model_stays_in_eval():
    model = apply(mlp().eval(), Plan({"1": ("standard", 0.5)}))
    assert not any(module.training for module in model.modules())


def test_an_empty_shortcut_does_not_carry_dropout_for_it_would_act_twice():
    x = torch.ones(1000, 1, 2, 2)
    model = Residual()
    seen = []
    model.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    apply(model, Plan({"@input": ("standard", 0.5)}), seed=0)(x)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)


# Reading


@given(
    st.sampled_from(sorted(name for name, kind in KINDS.items() if not kind.only_inside())),
    st.integers(1, 999_999),
)
def test_a_plan_is_read_from_a_model_as_it_was_put_on(kind, millionths):
    plan = Plan({"1": (kind, millionths / 1e6), "@input": ("gaussian", 0.1)})
    assert read(apply(mlp(), plan)) == plan


def test_without_a_plan_what_is_read_is_the_dropout_the_model_was_given_with():
    given_with = Plan({"0": ("standard", 0.1), "3": ("alpha", 0.2), "7": ("standard", 0.5)})
    model = dropping()
    assert read(model) == given_with
    assert read(apply(model, Plan.none())) == Plan.none()
    assert read(remove(model)) == given_with
    assert read(mlp()) == Plan.none()


def test_a_model_in_bfloat16_keeps_the_rates_of_its_plan():
    plan = Plan({"1": ("standard", 0.1)})
    model = apply(mlp(), plan).bfloat16()
    assert read(model) == plan
    assert model(ROW.bfloat16()).dtype == torch.bfloat16


def test_a_dropout_of_rate_1_is_refused_with_its_name():
    with pytest.raises(PlanError, match=r"^site '0': rate 1.0 is outside \[0, 1\)"):
        read(nn.Sequential(nn.Dropout(1.0)))


# Copies of a model with a plan


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def check_copy(model, twin, sites, x):
    """Check that a model's copy has its plan, and that each goes its own way from there."""
    plan = read(model)
    assert plan == Plan.everywhere(sites, 0.5) and read(twin) == plan
    assert torch.equal(twin(x), model(x))
    apply(twin, Plan.everywhere(sites, 0.2), seed=4)
    assert read(model) == plan
    assert not torch.equal(twin(x), model(x))
    remove(twin)
    assert not has_plan(twin) and installed(model)


@pytest.mark.parametrize("again", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("name", ["mlp", "cnn with norms", "with dropout"])
def test_a_copy_has_the_plan_and_a_life_of_its_own(again, name):
    builder, x = ZOO[name]
    sites = find_sites(build(builder), x)
    model = apply(build(builder), Plan.everywhere(sites, 0.5), seed=3)
    check_copy(model, again(model), sites, x)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_model_with_a_plan_can_be_compiled():
    plan = Plan({"1": ("standard", 0.5)})
    expected = apply(build(mlp), plan, seed=0)(ROW)
    model = torch.compile(apply(build(mlp), plan, seed=0), backend="eager")
    torch.testing.assert_close(model(ROW), expected)


# Errors


@pytest.mark.parametrize("site", ["2 ", "7", "relu@input", "1@inputs", ""])
def test_an_unknown_site_is_refused_with_the_known_ones_and_nothing_changes(site):
    model = apply(mlp(), plan := Plan({"1": ("standard", 0.5)}))
    before = state_of(model)
    with pytest.raises(PlanError) as caught:
        apply(model, Plan({"3": ("standard", 0.1), site: ("standard", 0.1)}))
    assert str(caught.value).startswith(f"the model has no site {site!r}; ")
    assert "droptune" not in str(caught.value)
    assert read(model) == plan and state_of(model) == before


def test_an_unknown_site_names_the_nearest():
    model = nn.ModuleDict({"block": nn.ModuleDict({"act": nn.ReLU(), "fc": nn.Linear(2, 2)})})
    with pytest.raises(PlanError, match="no site 'block.actt'; nearest: block.act, "):
        apply(model, Plan({"block.actt": ("standard", 0.1)}))


def test_a_site_that_holds_no_floats_is_refused_when_it_is_called():
    model = apply(nn.Embedding(9, 2), Plan({"@input": ("standard", 0.5)}))
    with pytest.raises(ModelError, match="^site '@input' holds a torch.int64 tensor, .* floats; "):
        model(torch.zeros(2, 3, dtype=torch.long))
    lstm = nn.Sequential(nn.LSTM(6, 2))
    apply(lstm, Plan({"0": ("standard", 0.5)}))
    with pytest.raises(ModelError, match="^site '0' holds a tuple, .*leave this site out"):
        lstm(torch.zeros(2, 3, 6))


def test_a_container_without_a_module_in_it_is_no_site():
    with pytest.raises(PlanError, match="no site 'shortcut'"):
        apply(Residual(), Plan({"shortcut": ("standard", 0.1)}))


def test_a_site_that_is_told_to_be_off_draws_nothing():
    model = dropping()
    install(model, {"7": ("standard", "gaussian")})
    site = installed(model)["7"]
    for entry, drawn in ((None, []), (Entry("gaussian", 0.3), ["gaussian"])):
        site.set(entry)
        site(torch.ones(2, 3))
        states = {name: kind.stream.__getstate__()["states"] for name, kind in site.kinds.items()}
        assert [name for name, state in states.items() if state] == drawn
