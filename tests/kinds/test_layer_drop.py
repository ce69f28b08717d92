"""droptune/kinds/layer_drop.py: a branch for the whole batch, or not at all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kinds.making import batch, make, several


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    rate=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
)
def test_a_batch_is_zero_or_what_it_was(shape, rate, seed):
    x = batch(*shape).abs() + 1
    y = make("layer_drop", rate, seed)(x)
    assert not y.any() or torch.equal(y, x)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_part_of_calls_that_are_skipped_is_the_rate(rate):
    y = several(make("layer_drop", rate), torch.ones(2, 3), 5000)
    assert (y[:, 0, 0] == 0).float().mean().item() == pytest.approx(rate, abs=0.02)


def test_a_higher_rate_skips_all_calls_that_a_lower_one_skips():
    gone = [several(make("layer_drop", r), torch.ones(1), 300) == 0 for r in (0, 0.1, 0.4, 0.8)]
    assert not gone[0].any()
    for lower, higher in zip(gone, gone[1:], strict=False):
        assert not (lower & ~higher).any() and lower.sum() < higher.sum()


def test_two_branches_are_skipped_each_by_itself():
    one, other = (several(make("layer_drop", site=s), torch.ones(1), 200) for s in ("a", "b"))
    assert (one == other).float().mean().item() == pytest.approx(0.5, abs=0.15)
