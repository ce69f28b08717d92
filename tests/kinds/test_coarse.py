"""droptune/kinds/coarse.py: masks from 16 bits an element."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from droptune.kinds import Standard, Stream, coarse
from droptune.kinds.coarse import GRID, gate, kept_share, times_mask
from droptune.trainers.program import trace

EVERY_WORD = torch.arange(-(GRID // 2), GRID // 2).to(torch.int16)
RATES = st.floats(0, 1, exclude_max=True, width=32)


@pytest.fixture
def pieces(monkeypatch):
    """Let small tensors take the way of large ones."""
    monkeypatch.setattr(coarse, "MANY", 1)
    monkeypatch.setattr(coarse, "PIECE", 8)


def words(*shape: int, seed: int = 0) -> Tensor:
    return Stream("fc", seed).words(shape)


def single(x: Tensor, bits: Tensor, rate: Tensor) -> Tensor:
    """What `times_mask` should be, written as plainly as can be."""
    keep = kept_share(rate)
    mask = torch.where(bits / GRID + 0.5 < keep, 1 / keep, torch.zeros(()))
    return x * mask.to(x.dtype)


def test_words_are_uniform_over_their_values():
    drawn = words(64 * GRID)
    counts = torch.bincount(drawn.int() + GRID // 2, minlength=GRID).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_every_bit_of_every_lane_is_set_half_of_the_time_and_lanes_are_independent():
    bits = (words(4 * 50_000).view(-1, 4, 1).int() >> torch.arange(16)) & 1
    bits = bits.flatten(1).double()
    assert (bits.mean(0) - 0.5).abs().max() < 0.5 * 5 / 50_000**0.5
    correlation = torch.corrcoef(bits.T) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < 6 / 50_000**0.5


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (4,), (5, 7), (2, 3, 5)])
def test_words_have_any_shape_and_start_alike(shape):
    drawn = words(*shape)
    assert drawn.shape == shape and drawn.dtype == torch.int16
    assert torch.equal(drawn.flatten(), words(40)[: drawn.numel()])


@given(rate=RATES)
@example(rate=0.06385800242424011)  # 3e-8 above the grid, which float32 cannot tell
@settings(deadline=None, max_examples=50)
def test_exactly_the_kept_share_of_all_words_is_kept(rate):
    keep = kept_share(torch.tensor(rate))
    gates = gate(EVERY_WORD, keep)
    assert set(gates.tolist()) <= {0, 1}
    assert gates.sum().item() == keep.item() * GRID >= 1
    rounding = 2**-23  # of the rate and of its multiple, in float32
    assert -rounding <= keep.item() - (1 - rate) < 1 / GRID + rounding


@given(low=RATES, high=RATES)
@settings(deadline=None, max_examples=50)
def test_a_higher_rate_drops_every_word_that_a_lower_one_drops(low, high):
    low, high = sorted((low, high))
    gates = [gate(EVERY_WORD, kept_share(torch.tensor(rate))) for rate in (low, high)]
    assert (gates[0] >= gates[1]).all()


@given(rate=RATES)
@settings(deadline=None, max_examples=20)
def test_the_mean_over_all_words_is_the_input(rate):
    product = times_mask(torch.ones(GRID, dtype=torch.float64), EVERY_WORD, torch.tensor(rate))
    assert product.mean().item() == pytest.approx(1, abs=1e-7)  # of a float32 scale


def test_rates_off_the_grid_are_rounded_and_those_below_it_keep_everything():
    rates = torch.tensor([0, 0.9 / GRID, 1 / GRID, 1.5 / GRID, 0.5, 1 - 2**-24])
    assert (kept_share(rates) * GRID).tolist() == [GRID, GRID, GRID - 1, GRID - 1, GRID / 2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (8,), (5, 7), (3, 4, 5)])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("way", ["at once", "pieces"])
def test_values_and_gradients_are_those_of_a_plain_product(way, rate, shape, dtype, request):
    if way == "pieces":
        request.getfixturevalue("pieces")
    x, bits, rate = torch.randn(shape).to(dtype), words(*shape), torch.tensor(rate)
    results = []
    for function in (times_mask, single):
        given = x.clone().requires_grad_()
        y = function(given, bits, rate)
        (gradient,) = torch.autograd.grad(y, given, 2 * x)
        results.append((y, gradient))
        assert y.dtype == dtype and y.shape == shape
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_pieces_keep_to_the_derivatives_of_the_product(pieces, rate):
    x, bits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True), words(3, 7)
    assert torch.autograd.gradcheck(lambda x: times_mask(x, bits, torch.tensor(rate)), x)
    assert torch.autograd.gradgradcheck(lambda x: times_mask(x, bits, torch.tensor(rate)), x)


def test_a_tensor_in_another_order_of_memory_gets_the_same_values(pieces):
    x, rate = torch.randn(2, 3, 4, 5), torch.tensor(0.5)
    other = x.to(memory_format=torch.channels_last)
    bits = words(2, 3, 4, 5)
    assert torch.equal(times_mask(other, bits, rate), times_mask(x, bits, rate))


@pytest.mark.parametrize("way", ["at once", "pieces"])
def test_members_of_a_traced_step_get_the_values_they_get_alone(way, request):
    if way == "pieces":
        request.getfixturevalue("pieces")
    kind = Standard("fc").train()
    rates, x = torch.tensor([0.0, 0.1, 0.5]), torch.randn(3, 5, 7)

    def step(rates: Tensor, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        member = torch.vmap(
            lambda rate, x: torch.func.functional_call(kind, {"rate": rate}, (x,)),
            randomness="same",
        )
        y = member(rates, x)
        return [y, *torch.autograd.grad((y * y).sum(), x)]

    kind.stream.seed(1)
    replay = trace(step, [rates, x])
    kind.stream.seed(1)
    y, gradient = replay(rates, x)
    for i, rate in enumerate(rates):
        kind.rate.copy_(rate)
        kind.stream.seed(1)
        given = x[i].clone().requires_grad_()
        alone = kind(given)
        assert torch.equal(y[i], alone)
        assert torch.equal(gradient[i], *torch.autograd.grad((alone * alone).sum(), given))
    assert not torch.equal(replay(rates, x)[0], y)  # noise is drawn anew


def test_pieces_save_no_more_than_the_words_for_the_backward_pass(pieces):
    saved: list[Tensor] = []
    x = torch.randn(64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        times_mask(x, words(64), torch.tensor(0.5))
    assert sorted(t.dtype.itemsize * t.numel() for t in saved) == [4, 128]
