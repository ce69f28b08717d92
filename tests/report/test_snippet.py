"""droptune/report/snippet.py: the code is run, and does to a model what the plan does."""

import pytest
import torch
from torch import Tensor, nn

from droptune import Plan, apply, find_sites, read
from droptune.report import snippet
from tests.branching import DropPath
from tests.calling import Causal, Hand, build
from tests.test_install import dropping
from tests.thirdparty.checks import Draws
from tests.thirdparty.test_torch import Attention, Encoder, Recurrent

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
STEPS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
WORDS = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))


def odd() -> nn.Module:
    """Return a model with a module whose name is no Python."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    model.add_module('it\'s "odd"\n\x1b[31m \\ \u00e9', nn.Dropout(0.5))
    model.add_module("fc", nn.Linear(6, 3))
    return model


class Stacked(nn.Module):
    """Two recurrent layers with dropout between them, and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 6, 2, dropout=0.3, batch_first=True)
        self.drop, self.fc = nn.Dropout(0.4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.rnn(x)[0][:, -1]))


class Paths(nn.Module):
    """A module that is not of torch and drops whole samples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(6, 6), DropPath(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.fc(x))


#: Model, batch, and the rates of its own dropout by name, in their order; the others are off.
OWN = {
    "modules": (dropping, ROWS, [0.25, 0.35, 0.45]),
    "some are off": (dropping, ROWS, [0.25]),
    "all are off": (dropping, ROWS, []),
    "attention": (lambda: Encoder(norm_first=True), STEPS, [0.2, 0.3, 0.4, 0.25]),
    "attention alone": (lambda: Attention(True), STEPS, [0.2]),
    "attention that is off": (Encoder, STEPS, [0.0, 0.3]),
    "beside a layer": (Recurrent, STEPS, [0.2, 0.3]),
    "an odd name": (odd, ROWS, [0.2]),
    "between recurrent layers": (Stacked, STEPS, [0.15, 0.25]),
}


#: What `store.Queries.study` knows of a site.
STORED = ("name", "role", "layout", "reach", "shape", "kind", "rate")


def code_of(plan: Plan, model: nn.Module, x: Tensor) -> str:
    """Return the code for a plan, and check that it is Python of one meaning."""
    sites = [{k: site.to_json()[k] for k in STORED} for site in find_sites(model, x)]
    code = snippet.python(plan.to_json(), sites, "Dropout of study 'm\ny'")
    assert code.startswith("# Dropout of study 'm\\ny'\n")
    assert code.isascii() and "\x1b" not in code
    return code


def run(code: str, model: nn.Module) -> nn.Module:
    names: dict = {}
    exec(compile(code, "snippet", "exec"), names)
    assert names["set_dropout"](model) is model
    return model


@pytest.mark.parametrize(("make", "x", "rates"), OWN.values(), ids=OWN)
def test_rates_of_a_models_own_dropout_are_set_in_plain_torch(make, x, rates):
    own = [site for site in find_sites(build(make), x) if site.rate]
    named = {s.name: (s.kind, rate) for s, rate in zip(own, rates, strict=False)}
    plan = Plan(named)
    code = code_of(plan, build(make), x)
    assert "droptune" not in code.replace("or put the plan on with droptune.apply", "")
    model = run(code, build(make))
    set_rates = {s.name: s.rate for s in find_sites(model, x) if s.rate}
    assert set_rates == {name: entry.rate for name, entry in plan.items()}
    assert read(apply(build(make), plan)) == plan
    with Draws() as drawn, torch.no_grad():
        model.train()(x)
    assert sorted(rate for rate, _ in drawn.seen.elements()) == drawn_by(plan, own)
    untouched, model = build(make).eval(), model.eval()
    assert torch.equal(model(x), untouched(x))


def drawn_by(plan: Plan, own: list) -> list[float]:
    """Return the rates of masks that torch draws; alpha dropout draws its own way."""
    return sorted(plan[s.name].rate for s in own if s.name in plan for _ in range(s.calls))


#: Model, batch, plan, and what the code says of it.
BEYOND = {
    "inserted": (dropping, ROWS, {"2": ("standard", 0.2)}, "2: standard 0.2 where the model has"),
    "another kind": (dropping, ROWS, {"7": ("gaussian", 0.2)}, "7: gaussian in place of standard"),
    "moving": (
        dropping, ROWS, {"7": ("standard", 0.2, "early", 0.5)},
        "7: its rate moves (early 0.5): call droptune.advance before each epoch",
    ),
    "a call": (Hand, WORDS, {"@dropout": ("standard", 0.2)}, "@dropout: a call in a forward"),
    "a call that is off": (Hand, WORDS, {"drop": ("standard", 0.2)}, "@dropout.1: a call in a"),
    "not of torch": (Paths, ROWS, {"drop": ("drop_path", 0.5)}, "drop: a module that is not of"),
    "a term": (
        dropping, ROWS, Plan({"7": ("standard", 0.2)}, "r_drop"),
        "the loss: the plan adds a term to it: train with droptune.ConsistencyLoss",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the plan adds r_drop to the loss")
@pytest.mark.parametrize(("make", "x", "entries", "said"), BEYOND.values(), ids=BEYOND)
def test_what_torch_cannot_do_by_hand_droptune_does_and_the_code_says_why(make, x, entries, said):
    plan = entries if isinstance(entries, Plan) else Plan(entries)
    code = code_of(plan, build(make), x)
    assert f"#   {said}" in code
    ours, theirs = run(code, build(make)), apply(build(make), plan)
    assert read(ours) == Plan(dict(plan))  # a term is no part of a model
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(model.train()(x))
    assert torch.equal(*outputs)


def test_a_plan_of_odd_names_is_written_out_so_that_it_reads_the_same():
    model = odd()
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.Dropout))
    plan = Plan({name: ("gaussian", 0.125), "fc@input": ("standard", 1 / 3)})
    assert read(run(code_of(plan, odd(), ROWS), model)) == plan


def test_attention_that_is_not_torchs_module_is_refused_with_what_to_do():
    plan = Plan({"@attention": ("standard", 0.3)})
    code = code_of(plan, build(Causal), WORDS)
    with pytest.raises(TypeError, match="is no layer of torch: set its rate.* 0.3 where"):
        run(code, build(Causal))


def test_a_site_that_the_study_did_not_store_is_left_to_droptune():
    plan = Plan({"7": ("standard", 0.3)})
    assert "droptune.apply" in snippet.python(plan.to_json(), [], "x")
