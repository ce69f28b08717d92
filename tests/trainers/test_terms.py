"""droptune/trainers/terms.py: masks that are found, distances, and what a step descends."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from droptune.consistency import Place, Term
from droptune.errors import ModelError, PlanError
from droptune.install import another_pass, installed
from droptune.plan import Plan
from droptune.sites import find_sites
from droptune.trainers import SerialTrainer, Task
from droptune.trainers.terms import (
    AGAIN,
    Knobs,
    Need,
    adversarial_mask,
    descended,
    distance_of,
    need_of,
    numbers,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def doubles(row):
    return torch.tensor(row, dtype=torch.float64)


# The search for a mask


def by_hand(jacobian, mask, delta):
    """Search one row in plain Python, from the description of the authors' code."""
    units, limit = len(mask), int(len(mask) * delta) + 1
    if limit <= 1:
        return mask
    signs = [2 * m - 1 for m in mask]
    score = [
        abs(j) if (j > 0 and s == -1) or (j < 0 and s == 1) else 0.0
        for j, s in zip(jacobian, signs, strict=True)
    ]
    threshold = sorted(score, reverse=True)[limit - 1]
    new = [1 - m if s > threshold else m for m, s in zip(mask, score, strict=True)]
    return [m * units / sum(new) for m in new] if sum(new) else new


rows = st.integers(1, 40).flatmap(
    lambda units: st.tuples(
        # Few values, so that scores tie.
        st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0]), min_size=units, max_size=units)
        | st.lists(st.floats(-9, 9), min_size=units, max_size=units),
        st.lists(st.sampled_from([0.0, 1.0]), min_size=units, max_size=units),
        st.floats(0, 0.999),
    )
)


@given(rows)
def test_the_mask_is_the_authors(row):
    jacobian, mask, delta = row
    found = adversarial_mask(doubles(jacobian), doubles(mask), delta)
    assert found.tolist() == pytest.approx(by_hand(jacobian, mask, delta), rel=1e-12)


@given(rows)
def test_at_most_a_share_is_flipped_and_the_row_sums_to_its_length(row):
    jacobian, mask, delta = (*map(doubles, row[:2]), row[2])
    found = adversarial_mask(jacobian, mask, delta)
    flipped = (found > 0) != (mask > 0)
    assert flipped.sum() <= int(len(mask) * delta)
    # Each flip raises the distance to first order.
    assert ((jacobian * (1 - 2 * mask))[flipped] > 0).all()
    if int(len(mask) * delta) and (found > 0).any():
        assert found.sum().item() == pytest.approx(len(mask))
    if not int(len(mask) * delta):
        assert torch.equal(found, mask)


def test_each_row_has_its_own_share_and_rows_do_not_touch():
    jacobian, mask = -normal(3, 5, 20).abs(), torch.ones(3, 5, 20).double()
    delta = torch.tensor([0.0, 0.1, 0.5]).double()[:, None]
    found = adversarial_mask(jacobian, mask, delta)
    assert (found == 0).sum(-1).tolist() == [[0] * 5, [2] * 5, [10] * 5]
    for row, share in enumerate([0.0, 0.1, 0.5]):
        assert torch.equal(found[row], adversarial_mask(jacobian[row], mask[row], share))
    one = adversarial_mask(jacobian[2, 1], mask[2, 1], 0.5)
    assert torch.equal(found[2, 1], one) and not found.requires_grad


class Recurrent(nn.Module):
    """A cell in a loop, whose state goes through one site at every step."""

    def __init__(self):
        super().__init__()
        self.cell, self.drop, self.fc = nn.RNNCell(3, 10), nn.Dropout(0.1), nn.Linear(10, 2)

    def forward(self, x):
        h = x.new_zeros(len(x), 10)
        for t in range(x.shape[1]):
            h = self.drop(self.cell(x[:, t], h))
        return self.fc(h)


def test_a_recurrent_cell_shares_its_mask_over_time_and_the_search_sums_over_steps():
    torch.manual_seed(0)
    model, x = Recurrent().double(), normal(4, 5, 3)
    (place,) = [site for site in find_sites(model, x) if site.name == "drop"]
    assert place.calls == 5
    need = need_of(Plan({"drop": ("standard", 0.3)}, "adversarial"), lambda: [place])
    assert need == Need("adversarial", Place("drop", (10,)))
    Task(lambda: model, None, {"drop": ("standard",)}).build(0)

    def passed(mask):
        with another_pass(model, ("", ""), "drop", mask):
            return model(x)

    def unrolled(masks):
        h = x.new_zeros(4, 10)
        for t, mask in enumerate(masks):
            h = model.cell(x[:, t], h) * mask
        return model.fc(h)

    anchor = normal(4, 2, seed=1)
    shared = torch.ones(4, 10).double().requires_grad_()
    apart = [torch.ones(4, 10).double().requires_grad_() for _ in range(5)]
    (jacobian,) = torch.autograd.grad((passed(shared) - anchor).square().mean(), shared)
    by_step = torch.autograd.grad((unrolled(apart) - anchor).square().mean(), apart)
    torch.testing.assert_close(jacobian, sum(by_step))
    found = adversarial_mask(jacobian, shared, 0.3)
    torch.testing.assert_close(passed(found), unrolled([found] * 5))
    before = (passed(shared) - anchor).square().mean()
    assert (passed(found) - anchor).square().mean() > before


def test_the_mask_raises_the_distance_more_than_others_do():
    torch.manual_seed(1)
    fc, h, anchor = nn.Linear(50, 3).double(), normal(8, 50).abs(), normal(8, 3)
    mask = torch.ones(8, 50).double().requires_grad_()

    def far(m):
        return (fc(h * m) - anchor).square().mean()

    (jacobian,) = torch.autograd.grad(far(mask), mask)
    worst = far(adversarial_mask(jacobian, mask, 0.1))
    at_random = [far(adversarial_mask(-normal(8, 50, seed=s).abs(), mask, 0.1)) for s in range(20)]
    assert worst > max(at_random)


# Distances


def test_r_drop_is_half_the_sum_of_both_divergences():
    one, other = normal(6, 4), normal(6, 4, seed=1)
    p, q = one.log_softmax(1), other.log_softmax(1)
    there = F.kl_div(q, p, log_target=True, reduction="batchmean")
    back = F.kl_div(p, q, log_target=True, reduction="batchmean")
    torch.testing.assert_close(
        distance_of("r_drop", "cross_entropy")(one, other), (there + back) / 2
    )
    torch.testing.assert_close(distance_of("adversarial", "cross_entropy")(one, other), there)


@pytest.mark.parametrize("name", ["r_drop", "adversarial"])
def test_one_logit_is_two_classes(name):
    one, other = normal(6, 2), normal(6, 2, seed=1)
    pairs = [torch.stack((o, torch.zeros_like(o)), 1) for o in (one, other)]
    compared = distance_of(name, "binary_cross_entropy")(one, other)
    torch.testing.assert_close(compared, distance_of(name, "cross_entropy")(*pairs))
    p, q = one.sigmoid(), other.sigmoid()
    there = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    if name == "adversarial":
        torch.testing.assert_close(compared, there)


@pytest.mark.parametrize(
    ("name", "loss"),
    [("fraternal", "cross_entropy"), ("r_drop", "mse"), ("adversarial", F.huber_loss)],
)
def test_all_else_is_compared_by_the_squared_difference(name, loss):
    one, other = normal(6, 4), normal(6, 4, seed=1)
    assert distance_of(name, loss)(one, other) == F.mse_loss(one, other)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
@pytest.mark.parametrize("name", ["r_drop", "fraternal", "adversarial"])
def test_where_outputs_agree_the_distance_and_its_gradient_are_exactly_0(name, loss):
    one = 5 * normal(64, 7)
    other = one.clone().requires_grad_()
    distance = distance_of(name, loss)(one, other)
    assert distance.item() == pytest.approx(0, abs=1e-12)
    assert not torch.autograd.grad(distance, other)[0].any()


@pytest.mark.parametrize("name", ["r_drop", "fraternal", "adversarial"])
def test_a_class_that_is_ruled_out_counts_for_nothing(name):
    one, other = normal(6, 4), normal(6, 4, seed=1).requires_grad_()
    ruled_out = torch.full((6, 1), -torch.inf, dtype=one.dtype)
    distance = distance_of(name, "cross_entropy")
    wider = distance(*(torch.cat((output, ruled_out), 1) for output in (one, other)))
    # The mean squared difference is over one more number.
    expected = distance(one, other) * (4 / 5 if name == "fraternal" else 1)
    torch.testing.assert_close(wider, expected)
    gradients = [torch.autograd.grad(d, other)[0] for d in (wider, expected)]
    torch.testing.assert_close(*gradients)


# What a step descends


def knobs(term):
    return Knobs(*torch.tensor(numbers(term, 1.0)).double().unbind())


def test_a_step_descends_both_losses_and_the_distance():
    first, second = normal(6, 4), normal(6, 4, seed=1)
    target, parts = torch.arange(6) % 4, []

    def again(part, *place):
        parts.append(part)
        return second

    def step(term):
        return descended(
            F.cross_entropy(first, target),
            first,
            {Need(term.name): knobs(term)},
            again,
            lambda output: F.cross_entropy(output, target),
            lambda name, a, b: distance_of(name, "cross_entropy")(a, b),
            (6,),
        )

    losses = (F.cross_entropy(first, target) + F.cross_entropy(second, target)) / 2
    apart = distance_of("r_drop", "cross_entropy")(first, second)
    torch.testing.assert_close(step(Term("r_drop", 3.0)), losses + 3 * apart)
    squared = F.mse_loss(first, second)
    torch.testing.assert_close(step(Term("fraternal", 0.2)), losses + 0.2 * squared)
    assert parts == [AGAIN, AGAIN]


def test_an_adversarial_step_takes_its_gradient_through_the_masked_pass_alone():
    torch.manual_seed(0)
    fc, h = nn.Linear(10, 4).double(), normal(6, 10).abs().requires_grad_()
    noisy = h.detach() * (normal(6, 10, seed=2) > 0)
    first = fc(noisy)
    seen = []

    def again(part, site, mask):
        seen.append((part, site, mask))
        return fc(h * mask)

    term = Term("adversarial", 2.0, 0.0, 0.3)
    need = Need("adversarial", Place("fc", (10,)))
    nothing = first.sum() * 0
    arguments = ({need: knobs(term)}, again, None, lambda name, a, b: F.mse_loss(a, b), (6,))
    total = descended(nothing, first, *arguments)
    (gradient,) = torch.autograd.grad(total, fc.weight)
    (probe, _, ones), (masked, _, found) = seen
    assert probe != masked and probe[1] == masked[1]  # the same numbers, two generators
    assert (ones == 1).all() and (found == 0).sum(1).max() == 3
    masked_alone = 2.0 * F.mse_loss(fc((h * found).detach()), first.detach())
    (expected,) = torch.autograd.grad(masked_alone, fc.weight)
    torch.testing.assert_close(gradient, expected)


def distance_by_cross_entropy(name, one, other):
    return distance_of(name, "cross_entropy")(one, other)


def test_samples_share_a_mask_of_weights_whose_rows_are_searched_and_outputs_are_compared_squared():
    weight, h = normal(7, 10), normal(6, 10)
    first = h @ weight.T + 0.1 * normal(6, 7, seed=3)
    masks = []

    def again(part, site, mask):
        masks.append(mask)
        return h @ (weight * mask).T

    need = Need("adversarial", Place("rnn@weights", (7, 10), by_sample=False))
    numbers = {need: knobs(Term("adversarial", 2.0, 0.0, 0.3))}
    apart = distance_by_cross_entropy
    total = descended(first.sum() * 0, first, numbers, again, None, apart, (6,))
    ones = torch.ones(7, 10, dtype=torch.float64, requires_grad=True)
    (jacobian,) = torch.autograd.grad(F.mse_loss(h @ (weight * ones).T, first), ones)
    found = adversarial_mask(jacobian, ones, 0.3)
    assert torch.equal(masks[0], ones) and torch.equal(masks[1], found)
    assert found.shape == (7, 10) and (found == 0).sum(1).max() == 3
    torch.testing.assert_close(total, 2 * F.mse_loss(h @ (weight * found).T, first))


# In a model


class Norms(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("term", ["r_drop", "fraternal", "adversarial"])
def test_running_statistics_follow_the_first_pass_alone(make_task, weights, term):
    task = make_task(model=Norms, kinds={"2": ("standard",)}, lr=0.0)
    entries = {"2": ("standard", 0.5)}
    found = []
    for plan in (Plan(entries), Plan(entries, term)):
        trainer = SerialTrainer(task)
        trainer.begin(0)
        trainer.start(0, plan)
        trainer.epoch()
        found.append(weights(trainer, 0))
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(found[0][name], found[1][name])
    assert found[0]["1.num_batches_tracked"] == 3


def test_further_passes_draw_from_streams_of_their_own():
    model = Task(Norms, None, {"2": ("standard",)}).build(0).train()
    (dropout,) = installed(model).values()
    kind, ones = dropout.kinds["standard"], torch.ones(50, 8)
    kind.rate.fill_(0.5)

    def draws(*parts):
        kind.stream.seed(3)
        drawn = []
        for part in parts:
            with another_pass(model, part):
                drawn.append(dropout(ones))
        return drawn

    first = ("", "")
    one, again, two = draws(first, AGAIN, first)
    assert not torch.equal(one, again)
    alone = draws(first, first)
    assert torch.equal(one, alone[0]) and torch.equal(two, alone[1])
    probe, masked, other = draws(("probe", "x"), ("masked", "x"), ("other", "y"))
    assert torch.equal(probe, masked) and not torch.equal(probe, other)
    with pytest.raises(RuntimeError), another_pass(model, AGAIN, "2", ones):
        raise RuntimeError
    assert dropout.mask is None and kind.stream.part == first


class Rerun(nn.Module):
    """Runs its middle under gradient checkpointing, in the way that is reentrant."""

    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.drop(self.a(x).tanh())
        return self.head(checkpoint(self.b, x, use_reentrant=True).tanh())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_that_gives_no_gradient_by_a_mask_is_refused(make_task):
    trainer = SerialTrainer(make_task(model=Rerun, kinds={"drop": ("standard",)}))
    trainer.begin(0)
    trainer.start(0, Plan({"drop": ("standard", 0.1)}, "adversarial"))
    with pytest.raises(ModelError, match="^an adversarial term .*use use_reentrant=False, or"):
        trainer.epoch()


def test_a_mask_that_does_not_fit_the_batch_is_refused():
    model = Task(Norms, None, {"2": ("standard",)}).build(0).train()
    said = r"^site '2' holds a tensor \(5, 8\), which has no place for a mask \(4, 8\) of the batch"
    with pytest.raises(ModelError, match=said), another_pass(model, AGAIN, "2", torch.ones(4, 8)):
        model(torch.ones(5, 6))


@pytest.mark.parametrize("site", [None, "2"])
def test_an_adversarial_term_without_a_place_is_refused(make_task, site):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Sequential(nn.ReLU()), nn.Linear(2, 3)

        def forward(self, x):
            return self.c(self.b(self.a(x).view(-1, 2, 2, 1, 1, 2)).sum((1, 2, 3, 4)))

    task = make_task(model=Odd, kinds={"b.0": ("standard",), "@input": ("standard",)})
    trainer = SerialTrainer(task)
    trainer.begin(0)
    plan = Plan({"b.0": ("standard", 0.1)}, Term("adversarial", site=site))
    with pytest.raises(PlanError, match="^adversarial: .* a mask of units; allowed: '@input'$"):
        trainer.start(0, plan)
