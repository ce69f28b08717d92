"""droptune/kinds/concrete.py: the relaxed mask, the rate that moves, and the penalty."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from droptune.kinds.concrete import HIGHEST_LOGIT, Concrete, learned_logit, penalty
from tests.kinds.making import batch, make

rates = st.floats(0.01, 0.9)
shifts = st.floats(-3, 3)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def at(rate, shift):
    """Return the learned rate."""
    return learned_logit(number(rate), number(shift)).sigmoid()


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_mask_is_that_of_the_paper(shift):
    kind, x = make("concrete", 0.3), batch(50, 20)
    kind.shift.fill_(shift)
    y = kind(x)
    u = make("concrete", 0.3).stream.uniform(x.shape, x.device)
    p = at(0.3, shift).float()
    z = torch.sigmoid((p.log() - (1 - p).log() + u.log() - (1 - u).log()) / 0.1)
    torch.testing.assert_close(y, x * (1 - z) / (1 - p), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "low", "high"), [(0.01, 0, 0.0021), (0.1, 0, 0.0021), (0.25, 0, 0.0021),
                              (0.5, 0, 1e-6), (0.9, -0.012, -0.01)],
)  # fmt: skip
def test_the_relaxation_takes_little_of_the_mean_or_adds_a_little(rate, low, high):
    kind, n = Concrete("fc", rate).train(), 100_000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # instead of drawing
    kind.stream.uniform = lambda shape, device: grid
    lost = 1 - kind(torch.ones(n, dtype=torch.float64)).mean().item()
    assert low - 1e-6 <= lost <= high


@given(rates, shifts)
def test_the_rate_starts_at_the_plans_and_moves_with_the_shift(rate, shift):
    assert at(rate, 0.0).item() == pytest.approx(rate)
    assert (at(rate, shift) > rate) == (shift > 0) or abs(shift) < 1e-9
    assert at(rate, 1e9).item() == pytest.approx(number(HIGHEST_LOGIT).sigmoid().item())
    assert at(0.0, shift) == 0


@given(rates, shifts, st.integers(1, 512))
def test_the_penalty_is_the_negative_entropy_of_all_masks(rate, shift, units):
    p = at(rate, shift)
    expected = units * (p * p.log() + (1 - p) * (1 - p).log())
    assert penalty(number(rate), number(shift), units).item() == pytest.approx(expected.item())


def test_at_rate_0_nothing_is_learned():
    rate, shift = torch.tensor([0.0, 0.1]), torch.zeros(2, dtype=torch.float64).requires_grad_()
    found = penalty(rate, shift, 10)
    (gradient,) = torch.autograd.grad(found.sum(), shift)
    assert found[0] == 0 == gradient[0] and gradient[1] < 0  # down the slope is up to 0.5
    kind = make("concrete", 0.0)
    kind.shift.requires_grad_()
    (gradient,) = torch.autograd.grad(kind(batch(9, 9)).square().sum(), kind.shift)
    assert gradient == 0


def test_the_gradient_of_the_shift_is_that_of_the_noise():
    x, step = batch(40, 30).double(), 1e-6

    def loss(shift):
        kind = make("concrete", 0.2)
        kind.shift = number(shift).requires_grad_()
        return kind(x).square().mean(), kind.shift

    (gradient,) = torch.autograd.grad(*loss(0.3))
    slope = (loss(0.3 + step)[0] - loss(0.3 - step)[0]) / (2 * step)
    assert gradient.item() == pytest.approx(slope.item(), rel=1e-5)


def test_the_shift_keeps_its_digits_when_weights_are_converted():
    for convert in (nn.Module.bfloat16, nn.Module.float):
        kind = make("concrete", 0.1)
        kind.shift.fill_(1 / 3)
        assert convert(kind).shift.item() == 1 / 3
        assert not kind.state_dict() and dict(kind.named_buffers())["shift"] is kind.shift
