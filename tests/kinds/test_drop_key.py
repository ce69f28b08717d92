"""droptune/kinds/drop_key.py: keys hidden from queries."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kinds.making import batch, make


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3, st.integers(1, 9)),
    rate=st.floats(0, 0.95),
    seed=st.integers(0, 1000),
)
def test_it_is_a_softmax_of_masked_scores(shape, rate, seed):
    scores = batch(*shape, seed=seed).double()
    weights = scores.softmax(-1)
    y = make("drop_key", rate, seed)(weights)
    hidden = (y == 0) & (weights > 0)
    expected = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(y, expected)  # a row without keys would be NaN in the expected


def test_rows_keep_their_sum_and_a_row_that_loses_all_keys_is_left_as_it_is():
    weights = batch(200, 4, 3, seed=1).softmax(-1)
    y = make("drop_key", 0.9)(weights)
    torch.testing.assert_close(y.sum(-1), torch.ones(200, 4))
    untouched = (y == weights).all(-1).float().mean().item()
    # All three are lost with probability 0.9 ** 3 = 0.73, all are kept with 0.001.
    assert 0.68 < untouched < 0.78


def test_a_row_of_zeros_stays_zero_with_a_gradient():
    weights = torch.zeros(2, 3, 4, requires_grad=True)
    y = make("drop_key", 0.5)(weights)
    (gradient,) = torch.autograd.grad(y.sum(), weights)
    assert not y.any() and gradient.isfinite().all()


def test_a_small_remainder_is_scaled_up_exactly():
    weights = torch.tensor([1 - 1e-6, 1e-6]).expand(50, 1, 2)
    y = make("drop_key", 0.5)(weights)
    torch.testing.assert_close(y.sum(-1), torch.ones(50, 1))
    assert (y[..., 1] > 0.99).any()
