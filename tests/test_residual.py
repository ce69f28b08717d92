"""droptune/residual.py: which branches are found, and that dropping one leaves the shortcut."""

import pytest
import torch
import torch.nn.functional as F
from optuna.trial import FixedTrial
from torch import Tensor, nn

from droptune import Plan, Space, apply, find_sites, remove, residual
from droptune.calls import first_tensor
from droptune.errors import SpaceError
from droptune.kinds import KINDS
from droptune.sites import Site
from droptune.trainers import FusedTrainer, SerialTrainer, Task
from tests.branching import (
    MAPS,
    SEQUENCE,
    Block,
    Model,
    Parallel,
    PostNorm,
    PreNorm,
    Resnet,
    Scaled,
    data,
    torchs,
)
from tests.small import Notes, fresh, rows, study


def branches(model: nn.Module, x: Tensor) -> list[Site]:
    return [site for site in find_sites(model, x) if site.role == "residual"]


def names(model: nn.Module, x: Tensor = SEQUENCE) -> list[str]:
    return [site.name for site in branches(model, x)]


FOUND = {
    "pre-norm": (PreNorm, SEQUENCE, ["attn@residual", "mlp@residual"]),
    "post-norm": (PostNorm, SEQUENCE, ["drop@residual"]),
    "ResNet": (Block, MAPS, ["bn2@residual"]),
    "torch's": (lambda: torchs(False), SEQUENCE, ["dropout1@residual", "dropout2@residual"]),
    "pre-norm of torch": (
        lambda: torchs(True), SEQUENCE, ["dropout1@residual", "dropout2@residual"],
    ),
    "scaled": (Scaled, SEQUENCE, ["drop_path", "b@residual"]),
    "parallel, x first": (lambda: Parallel(False), SEQUENCE, ["a@residual", "b@residual"]),
    "parallel, x last": (lambda: Parallel(True), SEQUENCE, ["a@residual", "b@residual"]),
}  # fmt: skip
found = pytest.mark.parametrize(("builder", "x", "expected"), FOUND.values(), ids=FOUND)


class Sum(nn.Module):
    """add(x, f(x), f), by hand."""

    def __init__(self, add, **layers: nn.Module) -> None:
        super().__init__()
        self._add, self.f = add, nn.Linear(6, 6)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._add(self, x)


# What is found


@found
def test_branches_are_found(builder, x, expected):
    assert names(builder(), x) == expected


class Projected(nn.Module):
    """A block whose maps change their shape, so that the shortcut is a projection."""

    def __init__(self, *more: nn.Module, deep: bool = True) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, 1, 1), nn.BatchNorm2d(6)
        self.down = nn.Sequential(nn.Conv2d(4, 6, 1, 2), nn.BatchNorm2d(6), *more)
        self.deep = deep

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(F.relu(x)))
        if self.deep:
            y = self.bn2(self.conv2(F.relu(y)))
        return F.relu(self.down(x) + y)


def test_a_branch_is_found_beside_a_projected_shortcut():
    model, x = Projected(), torch.randn(3, 4, 8, 8)
    assert names(model, x) == ["bn2@residual"]
    apply(model, Plan({"bn2@residual": ("drop_path", 1 - 1e-6)}), seed=0)
    with torch.no_grad():
        assert torch.equal(model(x), F.relu(model.down(x)))


def test_a_shortcut_of_several_layers_or_as_deep_as_the_branch_is_none():
    x = torch.randn(3, 4, 8, 8)
    for model in (Projected(nn.ReLU()), Projected(nn.Conv2d(6, 6, 1)), Projected(deep=False)):
        assert names(model, x) == []


@pytest.mark.parametrize("shared", [True, False])
def test_a_recurrent_net_by_hand_has_no_branches(shared):
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.u = nn.ModuleList(nn.Linear(6, 6) for _ in range(5)), nn.Linear(6, 6)

        def forward(self, x):
            h = torch.tanh(self.w[0](x[:, 0]))
            for t in range(1, x.shape[1]):
                h = torch.tanh(self.w[0 if shared else t](x[:, t]) + self.u(h))
            return h

    assert names(ByHand()) == []


@found
def test_without_its_branches_a_block_is_its_shortcut(builder, x, expected):
    model = builder()
    rate = 1 - 1e-6  # only samples of numbers above it are kept: none of these
    plan = Plan({name: ("drop_path", rate) for name in expected})
    apply(model, plan, seed=0)
    shortcut = x
    if isinstance(model, PostNorm):
        shortcut = model.norm(x)
    elif isinstance(model, Block):
        shortcut = F.relu(x)
    elif isinstance(model, nn.TransformerEncoderLayer) and not model.norm_first:
        shortcut = model.norm2(model.norm1(x))
    assert torch.equal(model(x), shortcut)
    assert not torch.equal(remove(model).eval()(x), shortcut)


@pytest.mark.parametrize(
    "add",
    [
        lambda m, x: x + m.f(x),
        lambda m, x: m.f(x) + x,
        lambda m, x: torch.add(x, m.f(x)),
        lambda m, x: torch.add(m.f(x), x, alpha=0.5),
        lambda m, x: x.add(m.f(x)),
        lambda m, x: m.f(x).add_(x),
        lambda m, x: x.clone().add_(m.f(x)),
        lambda m, x: x.double().float() + m.f(x).contiguous(),
        lambda m, x: x + 0.1 * m.f(x) / 2,
        lambda m, x: x + F.relu(m.f(x)).view(x.shape),
        lambda m, x: x + F.dropout(m.f(x), 0.1, m.training),
    ],
)
def test_additions_of_every_form_are_found(add):
    assert names(Sum(add)) == ["f@residual"]


@pytest.mark.parametrize(
    "add",
    [
        lambda m, x: x + x.mean(1, keepdim=True).expand_as(x),  # no layer on it
        lambda m, x: x + m.norm(x),  # a norm is none
        lambda m, x: m.f(x) + m.g(x),  # two branches, no shortcut
        lambda m, x: x + F.gelu(m.f(x)),  # what scales the module's output changes more
        lambda m, x: (h := m.f(x)) * 0.5 + (x + h),  # the branch goes elsewhere, too
        lambda m, x: torch.cat([x, m.f(x)], 1),
        lambda m, x: x - m.f(x),
        lambda m, x: x + (1 / m.f(x)),
        lambda m, x: x + torch.ones(4, 5, 6) / m.f(x),
    ],
)
def test_what_is_no_branch_or_has_no_end_is_not_listed(add):
    assert names(Sum(add, norm=nn.LayerNorm(6), g=nn.Linear(6, 6))) == []


def test_a_branch_is_listed_once_whatever_else_it_is_added_to():
    def both(m, x):  # either sum could be the shortcut of the other
        return (x + m.f(x)) + (x + m.g(x))

    def inner(m, x):
        h = m.g(x)
        return x + (h + m.f(h))

    for add, expected in ((both, ["f@residual", "g@residual"]), (inner, ["f@residual"])):
        found = branches(Sum(add, g=nn.Linear(6, 6)), SEQUENCE)
        assert [site.name for site in found] == expected
        assert {site.calls for site in found} == {1}


def test_of_two_sums_in_modules_neither_is_the_branch_of_the_other():
    layers = {name: Sum(lambda m, x: x + m.f(x)) for name in ("one", "two")}
    found = names(Sum(lambda m, x: m.one(x) + m.two(x), **layers))
    assert found == ["one.f@residual", "two.f@residual"]


def test_a_module_that_returns_the_branch_after_it_was_added_is_not_its_end():
    layer = Sum(lambda m, x: (h := m.f(x), x + h))
    assert names(Sum(lambda m, x: m.layer(x)[1], layer=layer)) == ["layer.f@residual"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_branch_may_be_a_module_whose_functions_are_not_seen():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    layer = Sum(lambda m, x: m.scripted(x), scripted=scripted)
    assert names(Sum(lambda m, x: x + m.layer(x), layer=layer)) == ["layer@residual"]


@pytest.mark.parametrize(
    ("pack", "expected"),
    [
        (lambda y: (y, None), ["layer@residual"]),
        (lambda y: [y], ["layer.f@residual"]),
        (lambda y: {"y": y}, ["layer.f@residual"]),
    ],
)
def test_a_module_that_returns_several_things_ends_a_branch_if_dropout_can_reach_it(pack, expected):
    layer = Sum(lambda m, x: pack(m.f(x)))
    model = Sum(lambda m, x: x + first_tensor(m.layer(x)), layer=layer)
    assert names(model) == expected
    apply(model, Plan({expected[0]: ("drop_path", 1 - 1e-6)}), seed=0)
    assert torch.equal(model(SEQUENCE), SEQUENCE)


def test_a_layer_called_twice_is_one_tied_site_if_both_calls_are_branches():
    (site,) = branches(Sum(lambda m, x: (h := x + m.f(x)) + m.f(h)), SEQUENCE)
    assert (site.name, site.calls) == ("f@residual", 2)
    assert names(Sum(lambda m, x: (h := m.f(x)) + m.f(h))) == []


@pytest.mark.parametrize(
    ("turn", "back", "layout"),
    [
        (lambda x: x.transpose(0, 1), lambda x: x.transpose(0, 1), "LNF"),
        (lambda x: x.flatten(0, 1), lambda x: x.view(4, 5, 6), "??"),
    ],
)
def test_a_branch_without_samples_in_front_takes_no_drop_path_and_the_remark_says_so(
    turn, back, layout
):
    (site,) = branches(Sum(lambda m, x: back((h := turn(x)) + m.f(h))), SEQUENCE)
    assert site.layout == layout and "drop_path" not in site.allowed
    assert site.remark == "only in plans by hand" and not site.takes_part(KINDS)


def test_a_branch_is_a_site_with_role_layout_and_kinds():
    assert branches(Block(), MAPS) == [
        Site("bn2@residual", "bn2", "output", "residual", "NCHW", 2, (4, 7, 7))
    ]
    assert {"drop_path", "layer_drop"} <= set(branches(Block(), MAPS)[0].allowed)


# Where there is another site already


def test_a_dropout_module_that_ends_a_branch_and_the_branch_both_take_a_plan():
    model = PostNorm()
    seen = []
    model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    # Alpha dropout moves zeros: it must act before samples are set to them.
    plan = Plan({"drop@residual": ("drop_path", 0.5), "drop": ("alpha", 0.3)})
    apply(model, plan, seed=0)
    x = torch.randn(400, 5, 6, generator=torch.Generator().manual_seed(0))
    model(x)
    same = (seen[0] == x).flatten(1).all(1)
    assert same.float().mean().item() == pytest.approx(0.5, abs=0.08)
    branch = (seen[0] - x)[~same] * 0.5
    # What alpha dropout drops has one value, that of most elements.
    near = [(branch - value).abs() < 1e-5 for value in branch.flatten()[:50]]
    assert max(one.float().mean().item() for one in near) == pytest.approx(0.3, abs=0.03)


def test_a_drop_path_of_others_that_ends_a_branch_is_the_branchs_site():
    site = branches(Scaled(0.25), SEQUENCE)[0]
    assert (site.name, site.reach, site.kind, site.rate) == (
        "drop_path",
        "module",
        "drop_path",
        0.25,
    )
    assert names(Scaled(0.0))[0] == "drop_path"


# Training, and spaces


BLOCKS = {
    "pre-norm": (lambda: Model(PreNorm()), False),
    "post-norm": (lambda: Model(PostNorm()), False),
    "torch's": (lambda: Model(torchs(False)), False),
    "scaled": (lambda: Model(Scaled()), False),
    "ResNet": (Resnet, True),
}


@pytest.mark.parametrize(("builder", "maps"), BLOCKS.values(), ids=BLOCKS)
def test_fused_equals_serial(builder, maps):
    sites = find_sites(builder(), MAPS if maps else SEQUENCE)
    kinds = {s.name: ("drop_path", "layer_drop") for s in sites if s.role == "residual"}
    task = Task(builder, data(maps), kinds, epochs=2, batch_size=16, lr=0.01)
    plans = [Plan.none(), *(Plan.everywhere(sites, r, k) for r in (0.3, 0.6) for k in kinds_of())]
    curves = []
    for trainer in (SerialTrainer(task, 5), FusedTrainer(task, 5)):
        trainer.begin(seed=3)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
        epochs = [trainer.epoch() for _ in range(2)]
        curves.append([[e[i].train_loss, e[i].metrics["val_loss"]] for e in epochs for i in e])
    torch.testing.assert_close(*map(torch.tensor, curves), atol=1e-4, rtol=1e-4)
    assert torch.tensor(curves[0][-5:])[:, 0].unique().numel() == 5, "the plans differ"


def kinds_of() -> list[str]:
    return [name for name, kind in KINDS.items() if kind.roles == {"residual"}]


def test_the_kinds_for_residual_branches_are_these():
    assert kinds_of() == ["drop_path", "layer_drop"]


def test_by_default_a_space_and_a_plan_for_everywhere_leave_residual_branches_alone():
    sites = find_sites(Model(PostNorm()), SEQUENCE)
    assert "block.drop@residual" in {site.name for site in sites}
    for kinds in (None, ["standard", "gaussian"]):
        assert not any(name.endswith("@residual") for name in Space(sites, kinds=kinds).kinds)
    assert not any(name.endswith("@residual") for name in Plan.everywhere(sites, 0.1))
    assert not any(n.endswith("@residual") for n in Plan.everywhere(sites, 0.1, "gaussian"))


@pytest.mark.parametrize("kind", ["drop_path", "layer_drop"])
def test_a_kind_for_residual_branches_brings_them_in(kind):
    sites = find_sites(Model(PostNorm()), SEQUENCE)
    kinds = Space(sites, kinds=["standard", kind]).kinds
    assert kinds["block.drop@residual"] == ("standard", kind)
    assert kinds["block.drop"] == ("standard",)
    assert Plan.everywhere(sites, 0.1, kind) == Plan({"block.drop@residual": (kind, 0.1)})


def test_a_pattern_may_act_on_residual_branches_too_and_a_rate_of_0_leaves_them_alone():
    sites = find_sites(Model(PostNorm()), SEQUENCE)
    space = Space(sites, kinds=["pattern_tokens", "pattern"])
    branch = "block.drop@residual"
    assert space.kinds[branch] == ("pattern_tokens",) == space.kinds["block.drop"]
    plan = Plan({branch: ("pattern_tokens", 0.3), "block.drop": ("pattern_tokens", 0.2)})
    params = space.encode(plan)
    assert params["rate.residual"] == 0.3
    assert space.suggest(FixedTrial(params)).get(branch) == plan[branch]
    alone = space.suggest(FixedTrial({**params, "rate.residual": 0.0}))
    assert branch not in alone and "block.drop" in alone


def test_a_drop_path_that_is_there_takes_part_and_its_default_is_what_it_is():
    sites = find_sites(Model(Scaled(0.2)), SEQUENCE)
    kinds = Space(sites).kinds
    assert kinds["block.drop_path"] == ("drop_path",) and "block.b@residual" not in kinds
    assert Plan.everywhere(sites, 0.1)["block.drop_path"].kind == "drop_path"


def test_a_model_with_residual_branches_alone_has_no_space_unless_they_are_asked_for():
    sites = branches(Block(), MAPS)
    with pytest.raises(SpaceError, match="^the model has no place for dropout that droptune finds"):
        Space(sites)
    assert Space(sites, kinds=["layer_drop"]).kinds == {"bn2@residual": ("layer_drop",)}


def test_a_study_tunes_residual_branches_when_asked(tmp_path):
    url = fresh(tmp_path)
    one = study(url, model=Resnet, data=data(maps=True), kinds=["drop_path"], trainer="fused")
    assert one.optimize(progress=Notes()).verdict
    assert rows(url, "SELECT DISTINCT trainer FROM droptune_run") == [("fused",)]
    plans = [plan for (plan,) in rows(url, "SELECT plan FROM droptune_run")]
    assert any('"blocks.1.bn2@residual":{"kind":"drop_path"' in p.replace(" ", "") for p in plans)


def test_many_branches_are_found_in_time_that_grows_with_the_model(monkeypatch):
    visited = []
    plain = residual._way
    monkeypatch.setattr(
        residual, "_way", lambda b, s: visited.append(len(way := plain(b, s) or ())) or way or None
    )
    layers = [PreNorm() for _ in range(40)]
    assert len(branches(nn.Sequential(*layers), SEQUENCE)) == 80
    assert sum(visited) < 80 * 20
