"""droptune/droppers.py: modules that drop, seen by what they do; models that cannot be used."""

import copy
import pickle
import random

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import droptune
from droptune import Plan, apply, find_fixed, find_sites, read, remove
from droptune.droppers import DROPOUT_MODULES, Dropper, dropper
from droptune.errors import ModelError
from droptune.sites import has_plan
from droptune.trainers import FusedTrainer, SerialTrainer, Task
from droptune.trainers import build as build_model
from tests.branching import DropPath, data

ROWS = torch.randn(64, 5, 6, generator=torch.Generator().manual_seed(1))


class Keep(nn.Module):
    """Drops elements; its number is what is kept."""

    def __init__(self, keep_prob: float) -> None:
        super().__init__()
        self.eps, self.keep_prob = 1e-5, keep_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full_like(x, self.keep_prob)) / self.keep_prob


class Maps(nn.Module):
    """Drops channels of maps, with a mask from NumPy."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        n, c, _, _ = x.shape
        mask = torch.from_numpy(numpy.random.rand(n, c, 1, 1) >= self.rate).float()
        return x * mask / (1 - self.rate)


class Fixed(nn.Module):
    """Drops samples at a rate that no number among its attributes sets."""

    def __init__(self, rate: float = 0.25) -> None:
        super().__init__()
        self.rates = [rate]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.rates[0]
        shape = (len(x), *(1,) * (x.dim() - 1))
        return x * torch.rand(shape).add(keep).floor() / keep


class Wrapped(nn.Module):
    """Calls F.dropout: a site that is the call of a function."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


class Strange(nn.Module):
    """Does something else in training: `act(x)`."""

    def __init__(self, act, p: float = 0.5) -> None:
        super().__init__()
        self.act, self.p = act, p

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x) if self.training else x


class Leaky(Keep):
    """Drops in eval mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full_like(x, self.keep_prob)) / self.keep_prob


class Added(DropPath):
    """Adds the branch to its shortcut, where it is given one."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        x = super().forward(x)
        return x if shortcut is None else x + shortcut


# What is recognised


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.9])
@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (DropPath, "drop_path"), (lambda rate: Keep(1 - rate), "standard"), (Maps, "channel"),
        (lambda rate: copy.deepcopy(DropPath(rate)).eval(), "drop_path"),
    ],
    ids=["drop_prob", "keep_prob", "channels", "in eval mode"],
)  # fmt: skip
def test_kind_and_rate_are_seen(build, kind, rate):
    found = dropper(build(rate))
    assert found == Dropper(kind, rate)


def test_a_rate_that_no_attribute_sets_is_read_off_what_is_kept():
    assert dropper(Fixed(0.25)) == Dropper("drop_path", 0.25)


@pytest.mark.parametrize("cls", DROPOUT_MODULES)
def test_torchs_own_are_known_by_their_type(cls):
    assert dropper(cls(0.3)) == Dropper(DROPOUT_MODULES[cls], 0.3)


@pytest.mark.parametrize(
    "module",
    [
        Wrapped(), Leaky(0.5), nn.Identity(), nn.Linear(2, 2), nn.Sequential(DropPath()),
        Strange(lambda m, x: x), Strange(lambda m, x: x + m.p * torch.randn_like(x)),
        Strange(lambda m, x: x * torch.bernoulli(torch.full_like(x, m.p))),  # scales nothing
        Strange(lambda m, x: x * 2), Strange(lambda m, x: x[:, :1]), Strange(lambda m, x: 1 / 0),
        Strange(lambda m, x: x * (torch.rand(()) < m.p) / m.p),  # the whole batch
        Strange(lambda m, x: x * torch.bernoulli(torch.full_like(x[:1], m.p)) / m.p),  # one mask
        Strange(lambda m, x: x * torch.bernoulli(torch.full_like(x[..., :1], m.p)) / m.p),  # rows
        Added(),
        Strange(lambda m, x: [x]),
    ],
)  # fmt: skip
def test_what_does_anything_else_is_not_taken_for_dropout(module):
    assert dropper(module) is None


@pytest.mark.parametrize("module", [DropPath(0.2), Maps(0.3), Strange(lambda m, x: x)])
def test_the_module_and_all_generators_are_left_as_they_were(module, monkeypatch):
    before = copy.deepcopy(vars(module))
    torch.manual_seed(1)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", (seeded := []).append)
    states = torch.get_rng_state(), random.getstate(), repr(numpy.random.get_state())
    dropper(module)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), repr(numpy.random.get_state())) == states[1:]
    assert vars(module) == before and not seeded


# In a model


def net(drop: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), drop, nn.Linear(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)
    )


every = pytest.mark.parametrize(
    "build", [lambda: DropPath(0.25), lambda: Fixed(0.25), lambda: Keep(0.75)],
    ids=["drop_prob", "no attribute", "keep_prob"],
)  # fmt: skip


@every
def test_it_is_a_site_like_torchs_own(build):
    site = find_sites(net(build()), ROWS)[1]
    assert (site.name, site.reach, site.rate, site.calls) == ("2", "module", 0.25, 1)
    assert site.kind == dropper(build()).kind
    assert not any(s.name in ("1", "3@input") for s in find_sites(net(build()), ROWS))


@every
def test_a_plan_switches_it_off_or_takes_its_place_and_remove_brings_it_back(build):
    model, plain = net(build()), net(nn.Identity())
    apply(model, Plan.none())
    assert has_plan(model) and read(model) == Plan.none()
    assert torch.equal(model(ROWS), plain(ROWS))
    plan = Plan({"2": ("gaussian", 0.3)})
    apply(model, plan, seed=0)
    apply(plain, plan, seed=0)
    assert torch.equal(model(ROWS), plain(ROWS))
    assert read(remove(model)) == Plan({"2": (dropper(build()).kind, 0.25)})
    assert "forward" not in vars(model[2]) and not has_plan(model)
    assert not torch.equal(model(ROWS), model(ROWS))
    assert find_fixed(model, ROWS) == ()


@every
@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_model_with_a_plan_has_it_off_too(build, again):
    twin = again(apply(net(build()), Plan.none()))
    assert torch.equal(twin(ROWS), twin(ROWS))
    assert not torch.equal(remove(twin)(ROWS), twin(ROWS))


def test_a_forward_of_the_modules_own_comes_back():
    model = net(DropPath(0.25))
    own = model[2].forward = lambda x: x
    model[2].drop_prob = 0.0
    droptune.droppers.switch_off(model[2])
    assert model[2].forward is not own
    droptune.droppers.switch_on(model[2])
    assert model[2].forward is own


def test_one_instance_called_several_times_is_one_tied_site_that_says_so():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.drop = nn.Linear(6, 6), nn.Linear(6, 3), DropPath(0.1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.drop(self.a(self.drop(x))))

    (site,) = find_sites(Shared(), ROWS)
    assert (site.name, site.kind, site.calls) == ("drop", "drop_path", 2)
    assert site.remark == "2 calls share one rate"


def test_a_function_in_a_module_stays_a_site_of_its_own():
    assert find_sites(net(Wrapped()), ROWS)[1].name == "2@dropout"


@every
def test_fused_equals_serial(build):
    task = Task(lambda: net(build()), data(), {"2": ("standard", "drop_path")}, epochs=2)
    plans = [Plan.none(), Plan({"2": ("drop_path", 0.4)}), Plan({"2": ("standard", 0.4)})]
    curves = []
    for trainer in (SerialTrainer(task, 3), FusedTrainer(task, 3)):
        trainer.begin(seed=3)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
        epochs = [trainer.epoch() for _ in range(2)]
        curves.append([[e[i].train_loss, e[i].metrics["val_loss"]] for e in epochs for i in e])
    torch.testing.assert_close(*map(torch.tensor, curves), atol=1e-5, rtol=1e-5)
    assert torch.tensor(curves[0][-3:])[:, 0].unique().numel() == 3


# Models that cannot be used


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, ROWS[:2])])
def test_a_scripted_model_is_refused(make):
    model = make(net(nn.Identity()))
    for use in (lambda: find_sites(model, ROWS), lambda: apply(model, Plan.none())):
        with pytest.raises(
            ModelError, match=r"^the model is scripted or traced .*; give the torch"
        ):
            use()


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("make", [lambda m: torch.compile(m, backend="eager"), compiled_in_place])
def test_a_compiled_model_is_refused(make):
    model = make(net(nn.Identity()))
    for use in (lambda: find_sites(model, ROWS), lambda: apply(model, Plan.none())):
        with pytest.raises(
            ModelError, match=r"^the model is compiled \(torch.compile\), .*plan on$"
        ):
            use()
    with pytest.raises(ModelError, match="^the model is compiled"):
        build_model(lambda: model, 0)
