"""Recurrent layers trained fused and one by one, with dropout at every place inside them."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from droptune import find_fixed, find_sites
from droptune.data import Data
from droptune.errors import ModelError
from droptune.plan import Plan
from droptune.space import Space
from droptune.trainers import FusedTrainer, SerialTrainer
from tests.recurring import LAYERS, TOKENS, Words, inside, next_token, words


def sentences(rows: int = 24) -> Data:
    """Return token sequences in which the next token mostly follows from the last."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(1, 3, (rows + 16, 7), generator=generator)
    tokens = steps.cumsum(1) % 11
    x, y = tokens[:, :-1], tokens[:, 1:]
    return Data((x[:rows], y[:rows]), (x[rows:-8], y[rows:-8]), (x[-8:], y[-8:]))


def train(task, plans, epochs=2) -> tuple[FusedTrainer, SerialTrainer]:
    """Train plans fused and one by one; check that all scores agree."""
    fused, serial = FusedTrainer(task, len(plans)), SerialTrainer(task, len(plans))
    for trainer in (fused, serial):
        trainer.begin(5, 1)
        for slot, plan in enumerate(plans):
            trainer.start(slot, plan)
    for _ in range(epochs):
        ours, theirs = fused.epoch(), serial.epoch()
        for slot in range(len(plans)):
            assert ours[slot].failed is None and theirs[slot].failed is None
            assert ours[slot].train_loss == pytest.approx(theirs[slot].train_loss, rel=1e-6)
            assert ours[slot].metrics == pytest.approx(theirs[slot].metrics, rel=1e-6)
    return fused, serial


def check_equal_weights(fused, serial, plans, weights) -> None:
    """Check that members have the same weights in both trainers, and that plans differ."""
    for slot in range(len(plans)):
        mine, reference = weights(fused, slot), weights(serial, slot)
        assert mine.keys() == reference.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, reference[name], rtol=1e-10, atol=1e-10)
    heads = [weights(serial, slot)["fc.weight"] for slot in range(len(plans))]
    for i, one in enumerate(heads):
        assert not any(torch.equal(one, other) for other in heads[:i]), plans[i]


SETTINGS = {"loss": next_token, "batch_size": 8, "lr": 1e-2}
OPTIONS = {
    **{name: {"layer": layer} for name, layer in LAYERS.items()},
    "bidirectional LSTM": {"layer": nn.LSTM, "bidirectional": True},
    "projected LSTM": {"layer": nn.LSTM, "proj_size": 4},
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n.endswith(" LSTM") else []) for n in OPTIONS],
)
def test_fused_equals_serial_with_every_kind_at_every_place(make_task, weights, name):
    build = partial(words, dtype=torch.float64, **OPTIONS[name])
    sites = find_sites(build(), TOKENS)
    given = Plan({site.name: (site.kind, site.rate) for site in sites if site.kind})
    assert given == Plan({"rnn@between": ("standard", 0.3)})
    kinds = inside(build())
    alone = [Plan({site: (kind, 0.4)}) for site, fit in kinds.items() for kind in fit]
    together = Plan.everywhere(sites, 0.2)
    plans = [Plan.none(), given, *alone, together]
    kinds |= {site.name: ["standard"] for site in sites if site.name not in kinds}
    task = make_task(sentences(), model=build, kinds=kinds, **SETTINGS)
    check_equal_weights(*train(task, plans), plans, weights)


def test_recurrent_layers_train_fused_without_a_site_inside(make_task, weights):
    kinds = {"fc@input": ["standard"]}
    model = partial(words, dtype=torch.float64)
    task = make_task(sentences(), model=model, kinds=kinds, **SETTINGS)
    plans = [Plan.none(), Plan({"fc@input": ("standard", 0.4)})]
    check_equal_weights(*train(task, plans), plans, weights)


def test_a_schedule_moves_rates_inside_layers(make_task, weights):
    model = partial(words, dtype=torch.float64)
    kinds = {"rnn@weights": ["weight_drop"], "rnn@cell": ["zoneout"]}
    task = make_task(sentences(), model=model, kinds=kinds, epochs=3, **SETTINGS)
    early = ("early", 0.5)
    plans = [
        Plan({"rnn@weights": ("weight_drop", 0.5), "rnn@cell": ("zoneout", 0.3)}),
        Plan({"rnn@weights": ("weight_drop", 0.5, *early), "rnn@cell": ("zoneout", 0.3, *early)}),
    ]
    check_equal_weights(*train(task, plans, 3), plans, weights)


class Last(nn.Module):
    """Reads vectors, begins with states of its own, and classifies by the last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, num_layers=2)
        self.start = nn.Parameter(torch.zeros(2, 1, 6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        start = self.start.expand(-1, len(x), -1).contiguous()
        return self.fc(self.rnn(x.transpose(0, 1), start)[1][-1])


def test_given_states_and_steps_in_front_train_fused(make_task, make_data, weights):
    task = make_task(
        make_data(40, (5, 4), dtype=torch.float64),
        model=lambda: Last().double(),
        kinds={"rnn@state": ["locked", "zoneout"], "rnn@input": ["locked"]},
    )
    plans = [
        Plan.none(),
        Plan({"rnn@input": ("locked", 0.3)}),
        Plan({"rnn@state": ("zoneout", 0.3)}),
    ]
    fused, serial = train(task, plans)
    check_equal_weights(fused, serial, plans, weights)
    assert (weights(fused, 1)["start"] != 0).all()


class Packed(Words):
    """Packs what it embeds; a token 0 ends a sentence."""

    def forward(self, tokens):
        lengths = (tokens != 0).sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(self.emb(tokens), lengths, True, enforce_sorted=False)
        return self.fc(pad_packed_sequence(self.rnn(packed)[0], True, total_length=6)[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_packed_sequences_train_one_by_one_and_say_why_not_fused(make_task):
    task = make_task(sentences(), model=Packed, kinds={"rnn@state": ["locked"]}, **SETTINGS)
    serial, fused = SerialTrainer(task, 1), FusedTrainer(task, 1)
    for trainer in (serial, fused):
        trainer.begin(0)
        trainer.start(0, Plan({"rnn@state": ("locked", 0.3)}))
    assert serial.epoch()[0].failed is None
    with pytest.raises(ModelError, match="its LSTM is given a PackedSeq.* use trainer='serial'$"):
        fused.epoch()


# The AWD-LSTM: one plan, one space

#: Its five rates (Merity et al., https://arxiv.org/abs/1708.02182, Penn Treebank).
AWD = Plan(
    {
        "emb@rows": ("embedding", 0.1),
        "rnn@input": ("locked", 0.4),
        "rnn@between": ("locked", 0.25),
        "rnn@weights": ("weight_drop", 0.5),
        "fc@input": ("locked", 0.4),
    }
)


class Replayed:
    """Answers a space with parameters."""

    def __init__(self, params):
        self.params, self.asked = params, {}

    def suggest_float(self, name, low, high, *, step=None):
        assert low <= self.params[name] <= high
        return self.params[name]

    def suggest_categorical(self, name, choices):
        self.asked[name] = choices
        return self.params[name]


def test_the_five_rates_of_the_awd_lstm_are_a_plan_of_one_space(make_task, weights):
    sites = [s for s in find_sites(words(), TOKENS) if s.name not in ("rnn@state", "rnn@cell")]
    space = Space(sites, "site", kinds=["standard", "locked", "weight_drop", "embedding"])
    assert {name for name, kinds in space.kinds.items() if "locked" in kinds} == {
        "rnn@input", "rnn@between", "fc@input",
    }  # fmt: skip
    assert space.kinds["rnn@weights"] == ("weight_drop",)
    assert space.kinds["emb@rows"] == ("embedding",)
    near = Plan({**AWD, "rnn@input": ("locked", 0.3)})  # as high as a space goes at an input
    assert space.suggest(Replayed(space.encode(near))) == near
    task = make_task(
        sentences(), model=partial(words, dtype=torch.float64), kinds=space.kinds, **SETTINGS
    )
    plans = [Plan.none(), AWD, near]
    check_equal_weights(*train(task, plans), plans, weights)


def test_kinds_of_places_inside_are_chosen_place_by_place():
    sites = find_sites(words(), TOKENS)
    kinds = ["locked", "zoneout", "standard", "weight_drop", "embedding"]
    space = Space(sites, "shape", kinds=kinds)
    assert space.kinds["rnn@state"] == ("locked", "zoneout")
    assert space.kinds["rnn@cell"] == ("zoneout",)
    params = space.encode(Plan({site.name: (site.default_kind, 0.2) for site in sites}))
    chosen = {"kind.recurrent@state": "zoneout", "kind.recurrent": "standard"}
    trial = Replayed({**params, **chosen})
    plan = space.suggest(trial)
    assert (plan["rnn@state"].kind, plan["rnn@between"].kind) == ("zoneout", "standard")
    assert trial.asked["kind.recurrent@state"] == ["locked", "zoneout"]
    assert space.suggest(Replayed(space.encode(plan))) == plan


# What is reached


def test_recurrent_dropout_is_reached():
    assert find_fixed(words(), TOKENS) == ()
    assert words().rnn.dropout == 0.3


def test_a_language_model_learns_fused(make_task):
    task = make_task(sentences(96), model=Words, kinds={"rnn@weights": ["weight_drop"]}, **SETTINGS)
    trainer = FusedTrainer(task, 2)
    trainer.begin(0)
    trainer.start(0, Plan.none())
    trainer.start(1, Plan({"rnn@weights": ("weight_drop", 0.3)}))
    first = trainer.epoch()
    for _ in range(14):
        last = trainer.epoch()
    for slot in (0, 1):
        assert first[slot].metrics["val_loss"] > 2.0
        assert last[slot].metrics["val_loss"] < 1.2  # two of eleven tokens: ln 2 is the least
