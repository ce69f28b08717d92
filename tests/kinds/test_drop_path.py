"""droptune/kinds/drop_path.py: whole samples."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kinds.making import batch, make


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    rate=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
)
def test_a_sample_is_zero_or_scaled_as_a_whole(shape, rate, seed):
    x = batch(*shape).abs() + 1
    y = make("drop_path", rate, seed)(x)
    for before, after in zip(x, y, strict=True):
        scaled = before / (1 - torch.tensor(rate))
        assert not after.any() or torch.allclose(after, scaled)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_moments_are_those_of_the_gate(rate):
    y = make("drop_path", rate)(torch.ones(200_000, 2))
    assert (y[:, 0] == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert y.var().item() == pytest.approx(rate / (1 - rate), rel=0.03)
