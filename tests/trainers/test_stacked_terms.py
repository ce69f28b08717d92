"""droptune/trainers/stacked_terms.py: terms of a block's members, against the serial trainer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from droptune.consistency import Term
from droptune.errors import ModelError
from droptune.plan import Plan
from droptune.trainers import FusedTrainer, SerialTrainer, choose
from tests.calling import ZOO, places

KINDS = {"2": ("standard", "gaussian"), "4": ("standard",)}
TERMS = [
    None,
    Term("r_drop", 1.0),
    Term("r_drop", 0.3, 0.3),
    Term("fraternal", 0.5),
    Term("adversarial", 1.0, 0.2, 0.3),
    Term("adversarial", 0.5, 0.0, 0.15, "2"),
]


class Norms(nn.Sequential):
    """Biases come behind the norm: in front of it their gradient is rounding noise."""

    def __init__(self, out=3):
        super().__init__(
            nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 16),
            nn.ReLU(), nn.Linear(16, out),
        )  # fmt: skip
        self.double()


class Images(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3),
            nn.GELU(), nn.Flatten(), nn.Linear(48, 3),
        )  # fmt: skip
        self.double()


class Rows(nn.Module):
    """A layer over the rows of an image, with a dropout module over a sequence."""

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(8, 9), nn.Dropout(0.1), nn.Linear(9, 3)
        self.double()

    def forward(self, x):
        return self.b(self.drop(self.a(x.squeeze(1)).tanh()).mean(1))


def plans(terms=TERMS, sites=("2", "4"), rate=0.3):
    entries = {site: ("standard", rate / (i + 1)) for i, site in enumerate(sites)}
    return [*(Plan(entries, term) for term in terms), Plan.none()]


def trained(trainer, members, epochs=3):
    trainer.begin(3)
    for slot, plan in enumerate(members):
        trainer.start(slot, plan)
    for _ in range(epochs):
        scores = trainer.epoch()
    assert all(score.failed is None for score in scores.values())
    return scores


def assert_twins(task, members, weights):
    """Train both ways; losses and all weights and buffers must agree, and members differ."""
    fused, serial = (cls(task, len(members)) for cls in (FusedTrainer, SerialTrainer))
    ours, theirs = trained(fused, members), trained(serial, members)
    for slot in range(len(members)):
        assert ours[slot].train_loss == pytest.approx(theirs[slot].train_loss, rel=2e-6)
        mine, reference = weights(fused, slot), weights(serial, slot)
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, reference[name], rtol=1e-10, atol=1e-10)
    assert len({scores.metrics["val_loss"] for scores in ours.values()}) == len(members)


@pytest.fixture
def task(make_task, make_data):
    return make_task(make_data(dtype=torch.float64), model=Norms, kinds=KINDS)


def test_members_with_and_without_terms_train_as_one_by_one(task, weights):
    assert_twins(task, plans(), weights)


class RuledOut(Norms):
    """Has a class more, which it rules out."""

    def forward(self, x):
        return F.pad(super().forward(x), (0, 1), value=-torch.inf)


def test_terms_where_a_class_is_ruled_out(make_task, make_data, weights):
    task = make_task(make_data(dtype=torch.float64), model=RuledOut, kinds=KINDS)
    assert_twins(task, plans(), weights)


def huber(output, target):
    return F.huber_loss(output.squeeze(-1), target.to(output.dtype))


@pytest.mark.parametrize("loss", ["mse", huber])
def test_terms_of_a_regression(make_task, make_data, weights, loss):
    data = make_data(classes=0, dtype=torch.float64)
    task = make_task(data, model=lambda: Norms(1), kinds=KINDS, loss=loss)
    assert_twins(task, plans(), weights)


def test_terms_of_two_classes(make_task, make_data, weights):
    data = make_data(classes=2, dtype=torch.float64)
    task = make_task(data, model=lambda: Norms(1), kinds=KINDS, loss="binary_cross_entropy")
    assert_twins(task, plans(), weights)


@pytest.mark.parametrize(
    ("model", "sites"), [(Images, ("2", "4")), (Rows, ("drop",))], ids=["channels", "positions"]
)
def test_masks_of_channels_and_of_sequences(make_task, make_data, weights, model, sites):
    data = make_data(40, (1, 8, 8), dtype=torch.float64)
    task = make_task(data, model=model, kinds={site: ("standard",) for site in sites})
    terms = [Term("adversarial", 2.0, 0.0, 0.4, site) for site in (sites[0], None)]
    members = plans([None, *terms[: len(sites)], Term("r_drop")], sites)
    assert_twins(task, members, weights)


class Steps(nn.Module):
    """A recurrent layer over the rows of a map."""

    def __init__(self, layer, layers=1):
        super().__init__()
        self.rnn = layer(8, 6, layers, batch_first=True)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        return self.fc(self.drop(self.rnn(x.squeeze(1))[0][:, -1]))


@pytest.mark.parametrize(
    ("layer", "layers"),
    [(nn.GRU, 1), *(pytest.param(nn.LSTM, n, marks=pytest.mark.slow) for n in (1, 2))],
)
def test_masks_of_recurrent_weights(make_task, make_data, weights, layer, layers):
    data = make_data(40, (1, 8, 8), dtype=torch.float64)
    kinds = {"rnn@weights": ("weight_drop",), "drop": ("standard",)}
    task = make_task(data, model=lambda: Steps(layer, layers), kinds=kinds)
    term = Term("adversarial", 2.0, 0.0, 0.4, "rnn@weights")
    both = {"rnn@weights": ("weight_drop", 0.3), "drop": ("standard", 0.3)}
    members = [Plan({"drop": ("standard", 0.3)}, term), Plan(both, term), Plan(both)]
    assert_twins(task, members, weights)


def test_who_has_no_term_trains_bit_for_bit_as_among_members_without(task, weights):
    members = plans()
    with_terms, without = (FusedTrainer(task, len(members)) for _ in range(2))
    trained(with_terms, members)
    trained(without, [Plan(dict(plan)) for plan in members])
    for slot, plan in enumerate(members):
        mine, alone = weights(with_terms, slot), weights(without, slot)
        same = all(torch.equal(mine[name], alone[name]) for name in mine)
        assert same == (plan.term is None), plan


def test_what_others_need_does_not_change_a_member(task, weights):
    """Each further pass has streams of its own: who else draws is of no account."""
    together = FusedTrainer(task, 8)
    members = plans()
    trained(together, members)
    for slot in range(1, 6):
        company = FusedTrainer(task, 8)
        trained(company, [members[0], members[slot]])
        mine, alone = weights(together, slot), weights(company, 1)
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-10, atol=1e-12)


def test_a_second_pass_is_traced_only_where_a_member_has_a_term_and_numbers_are_data(task):
    trainer = FusedTrainer(task, 2)
    entries = {"2": ("standard", 0.3)}
    traced = []
    numbers = [Term("r_drop", 0.2, 0.1), Term("r_drop", 4)]
    for terms in ([None, None], ["r_drop", None], numbers, ["fraternal", "adversarial"]):
        trained(trainer, [Plan(entries, term) for term in terms], 2)
        traced.append(sum(key[0] == "train" for key in trainer._programs))
    assert traced == [1, 2, 2, 3]


def test_a_restored_block_goes_on_as_if_never_interrupted(task, weights):
    for cls in (FusedTrainer, SerialTrainer):
        whole, first, second = (cls(task, 7) for _ in range(3))
        trained(whole, plans())
        trained(first, plans(), 2)
        second.restore(first.save())
        second.epoch()
        for slot in range(7):
            expected = weights(whole, slot)
            for name, tensor in weights(second, slot).items():
                assert torch.equal(tensor, expected[name])


class Noisy(nn.Module):
    """Draws from torch's global generator in training."""

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 3)

    def forward(self, x):
        if self.training:
            x = x + torch.randn_like(x)
        return self.b(self.drop(self.a(x).relu()))


def test_noise_of_a_models_own_and_a_term_do_not_train_fused(make_task):
    task = make_task(model=Noisy, kinds={"drop": ("standard",)}, terms=["r_drop"])
    entries = {"drop": ("standard", 0.2)}
    trainer = FusedTrainer(task, 2)
    trained(trainer, [Plan(entries), Plan.none()], 1)
    trainer.begin(3)
    trainer.start(0, Plan(entries, "r_drop"))
    with pytest.raises(ModelError, match="draws random numbers of its own.*; use trainer='serial'"):
        trainer.epoch()
    said = []
    assert choose(task, most=2, say=said.append).name == "serial"
    assert "so it is trained serially" in said[0]


def test_serially_a_models_own_noise_is_that_of_the_first_pass(make_task, weights):
    task = make_task(model=Noisy, kinds={"drop": ("standard",)})
    found = []
    # So small a weight moves nothing that float32 can show; the shares of both losses would.
    for term in (None, Term("adversarial", 1e-30)):
        trainer = SerialTrainer(task)
        trained(trainer, [Plan({"drop": ("standard", 0.2)}, term)], 2)
        found.append(weights(trainer, 0))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("name", ["Hand", "Heads"])
def test_noise_in_function_calls_has_further_passes_too(make_task, make_data, weights, name):
    def model():
        return ZOO[name]().double()

    data = make_data(40, (5, 6), dtype=torch.float64)
    sites = [site.name for site in places(model(), data.example())]
    task = make_task(data, model=model, kinds={site: ("standard",) for site in sites})
    terms = [None, Term("r_drop", 2.0)]
    if name == "Hand":  # masks of attention weights are no masks of units
        terms.append(Term("adversarial", 2.0, 0.0, 0.3))
    assert_twins(task, plans(terms, sites), weights)
