"""droptune/inside.py: the places inside torch's layers, found, named and checked."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from droptune import Plan, Site, apply, find_sites, read
from droptune.errors import ModelError, PlanError
from droptune.inside import places, split
from droptune.kinds import KINDS
from tests.recurring import LAYERS, TOKENS, words


def found(model: nn.Module, example) -> dict[str, str]:
    return {s.name: f"{s.role} {s.layout} {s.default_kind}" for s in find_sites(model, example)}


def test_a_language_model_has_its_five_places_and_those_of_zoneout():
    assert found(words(), TOKENS) == {
        "emb@rows": "embedding VF embedding",
        "rnn@input": "embedding NLF standard",
        "rnn@weights": "recurrent GS weight_drop",
        "rnn@state": "recurrent NLS locked",
        "rnn@cell": "recurrent NLM zoneout",
        "rnn@between": "recurrent NLF standard",
        "fc@input": "head NLF standard",
    }


def test_dropout_between_layers_is_a_site_with_the_rate_that_it_has():
    (site,) = [s for s in find_sites(words(layers=3), TOKENS) if s.name == "rnn@between"]
    assert site == Site(
        "rnn@between", "rnn", "inside", "recurrent", "NLF", 5, (7, 6), "standard", 0.3, 2
    )
    (site,) = [s for s in find_sites(words(rate=0.0), TOKENS) if s.name == "rnn@between"]
    assert (site.kind, site.rate) == (None, None)
    assert "rnn@between" not in found(words(layers=1), TOKENS)
    assert read(words()) == Plan({"rnn@between": ("standard", 0.3)})
    assert read(words(layers=1)) == read(words(rate=0.0)) == Plan.none()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_shapes_are_those_that_dropout_meets(layer):
    module = LAYERS[layer](5, 6, num_layers=2, bidirectional=True)
    gates = {"LSTM": 4, "GRU": 3}.get(layer, 1)
    shapes = {name: place.shape for name, place in places(module, (7, 4, 5)).items()}
    expected = {"weights": (gates * 6, 6), "state": (7, 6), "between": (7, 12)}
    assert shapes == expected | ({"cell": (7, 6)} if layer == "LSTM" else {})
    met = []
    plan = Plan({"@weights": ("weight_drop", 0.5), "@between": ("standard", 0.5)})
    apply(module, plan)
    for child in module.children():
        child.register_forward_pre_hook(lambda _, args: met.append(tuple(args[0].shape)))
    module(torch.zeros(7, 4, 5))
    assert met == [expected["weights"]] * 2 + [(4, 7, 12)] + [expected["weights"]] * 2


def test_projected_states_are_narrower_than_cells():
    found = places(nn.LSTM(5, 6, proj_size=2, batch_first=True), (4, 7, 5))
    assert {name: place.shape for name, place in found.items()} == {
        "weights": (24, 2), "state": (7, 2), "cell": (7, 6),
    }  # fmt: skip


class Positions(nn.Module):
    """Embeds tokens and, without an axis of samples, their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place, self.fc = nn.Embedding(11, 5), nn.Embedding(9, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.place(torch.arange(x.shape[1]))
        return self.fc(F.relu(x).mean(1))


def test_rows_of_an_embedding_of_positions_are_no_word_types():
    assert [name for name in found(Positions(), TOKENS) if "@rows" in name] == ["token@rows"]


def test_an_embedding_that_looks_up_what_it_is_not_given_has_no_rows():
    class Learned(nn.Embedding):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(torch.arange(tokens.shape[1])).expand(*tokens.shape, -1)

    model = nn.Sequential(Learned(9, 5), nn.Linear(5, 2))
    assert "0@rows" not in found(model, TOKENS)
    with pytest.raises(PlanError, match="no site '0@rows'"):
        apply(model, Plan({"0@rows": ("embedding", 0.2)}))


def test_layers_one_after_the_other_have_sites_at_the_input_of_each():
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.GRU(5, 6, batch_first=True), nn.GRU(6, 6)
            self.fc = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.b(self.a(x)[0].transpose(0, 1))[0][-1])

    x = torch.randn(4, 7, 5)
    sites = {s.name: s for s in find_sites(Deep(), x)}
    assert list(sites) == [
        "@input", "a@weights", "a@state", "b@input", "b@weights", "b@state", "fc@input",
    ]  # fmt: skip
    assert sites["b@input"].layout == "NLF" and sites["b@input"].shape == (7, 6)
    model, met = apply(Deep(), Plan({"b@input": ("locked", 0.5)})), []
    (locked,) = [m for m in model.modules() if getattr(m, "name", "") == "locked"]
    locked.register_forward_hook(lambda module, args, y: met.append((args[0], y)))
    model(x)
    ((before, after),) = met
    assert before.shape == (4, 7, 6)
    gone = (after == 0)[:, :1]
    assert torch.equal(after == 0, gone.expand_as(after)) and 0 < gone.float().mean() < 1


class StepsFirst(nn.Module):
    """Has steps on the first axis from the embedding to the head, as torch does by default."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.rnn, self.drop = nn.Embedding(11, 5), nn.LSTM(5, 6), nn.Dropout(0.2)
        self.mid, self.act, self.fc = nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.drop(self.rnn(self.emb(tokens.t()))[0])
        return self.fc(self.act(self.mid(x))).transpose(0, 1)


def test_where_steps_are_in_front_the_layout_says_so_and_locked_is_not_offered():
    sites = {s.name: s for s in find_sites(StepsFirst(), TOKENS)}
    layouts = {name: (site.layout, site.shape) for name, site in sites.items()}
    assert {name: layouts[name] for name in ("rnn@input", "drop", "act")} == {
        "rnn@input": ("NLF", (7, 5)), "drop": ("LNF", (7, 6)), "act": ("LNF", (7, 6)),
    }  # fmt: skip
    assert sites["act"].role == "head" and "fc@input" not in sites
    assert KINDS["standard"].fits("LNF", "head") and not KINDS["locked"].fits("LNF", "head")
    last = found(StepsFirst(), TOKENS.t()[:4])  # as many samples as steps: cannot be told
    assert last["drop"].startswith("recurrent LNF")


def test_packed_sequences_have_the_places_inside_but_no_input():
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rnn, self.fc = nn.Linear(5, 5), nn.LSTM(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            packed = pack_sequence(list(self.first(x)))
            return self.fc(self.rnn(packed)[1][0][-1])

    names = list(found(Packs(), torch.randn(4, 7, 5)))
    assert names == ["@input", "rnn@weights", "rnn@state", "rnn@cell", "fc@input"]


# Rows


def test_a_word_type_is_dropped_wherever_it_occurs_or_scaled():
    model = nn.Embedding(50, 3)
    apply(model, Plan({"@rows": ("embedding", 0.4)}), seed=0)
    tokens = torch.arange(50).repeat(2).view(2, 50)
    first, again = model(tokens)
    assert torch.equal(first, again)
    share = first / nn.Module.__call__(model.eval(), tokens)[0]
    gone = (share == 0).all(1)
    assert 5 < gone.sum() < 35
    torch.testing.assert_close(share[~gone], torch.full_like(share[~gone], 1 / 0.6))
    assert not torch.equal(model.train()(input=tokens)[0] == 0, first == 0)


def test_rows_are_dropped_before_the_output_whatever_is_named_first():
    entries = {"0": ("alpha", 0.3), "0@rows": ("embedding", 0.3)}
    plans = Plan(entries), Plan(dict(reversed(entries.items())))
    assert plans[0] == plans[1]
    weight = torch.randn(11, 5)
    models = [apply(nn.Sequential(nn.Embedding(11, 5, _weight=weight)), p, seed=1) for p in plans]
    assert torch.equal(models[0](TOKENS), models[1](TOKENS))


def test_the_gradient_of_a_row_that_is_dropped_is_zero():
    model = apply(nn.Embedding(50, 3), Plan({"@rows": ("embedding", 0.4)}), seed=0)
    output = model(torch.arange(50))
    output.sum().backward()
    assert torch.equal(model.weight.grad == 0, output == 0)


# Names


def test_names_of_places_are_taken_apart():
    assert split("a.rnn@state") == ("a.rnn", "state") and split("@rows") == ("", "rows")
    for other in ("rnn", "rnn@input", "rnn@states", "rnn@dropout", "@input"):
        assert split(other) is None


@pytest.mark.parametrize(
    "site", ["fc@state", "rnn@rows", "emb@cell", "rnn@between", "nothing@state"]
)
def test_a_place_that_a_layer_does_not_have_is_refused_with_those_there(site):
    with pytest.raises(PlanError, match=f"^the model has no site '{site}'"):
        apply(words(layers=1), Plan({site: ("locked", 0.5)}))
    with pytest.raises(PlanError, match="no site 'rnn@sate'; nearest: rnn@state"):
        apply(words(), Plan({"rnn@sate": ("locked", 0.5)}))


@pytest.mark.parametrize(
    ("site", "kind", "allowed"),
    [
        ("rnn@state", "standard", "locked, zoneout"),
        ("rnn@cell", "locked", "zoneout"),
        ("rnn@weights", "embedding", "weight_drop"),
        ("emb@rows", "standard", "embedding"),
    ],
)
def test_a_kind_that_a_place_cannot_have_is_refused_with_those_it_can(site, kind, allowed):
    with pytest.raises(PlanError) as error:
        apply(words(), Plan({site: (kind, 0.5)}))
    assert str(error.value) == (
        f"site {site!r} cannot have kind {kind!r}; allowed there: {allowed}"
    )


@pytest.mark.parametrize(
    ("kind", "site"),
    [("zoneout", "rnn@state"), ("weight_drop", "rnn@weights"), ("embedding", "emb@rows")],
)
def test_a_kind_of_places_inside_layers_is_refused_elsewhere(kind, site):
    for name in ("fc", "fc@input", "rnn@between"):
        with pytest.raises(PlanError, match=f"^site '{name}' cannot have .* such as '{site}'; nam"):
            apply(words(), Plan({name: (kind, 0.5)}))


def test_the_output_of_a_layer_is_a_tuple_and_no_site():
    model = apply(words(), Plan({"rnn": ("standard", 0.5)}))
    with pytest.raises(ModelError, match="^site 'rnn' holds a tuple"):
        model(TOKENS)
