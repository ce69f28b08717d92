"""droptune/kinds/locked.py: one mask for all positions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from droptune.kinds.standard import mask
from tests.kinds.making import batch, make

sizes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))


@given(shape=sizes, rate=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_a_feature_is_dropped_or_scaled_at_all_positions_of_its_sample(shape, rate, seed):
    x = batch(*shape)
    uniform = make("locked", seed=seed).stream.uniform((shape[0], 1, shape[2]), x.device)
    expected = mask(uniform, torch.tensor(rate))
    y = make("locked", rate, seed)(x)
    for position in range(shape[1]):
        assert torch.equal(y[:, position], x[:, position] * expected[:, 0])


def test_samples_and_features_are_dropped_each_by_itself():
    gone = make("locked")(torch.ones(40, 3, 50))[:, 0] == 0
    assert gone.unique(dim=0).shape[0] == 40 and gone.T.unique(dim=0).shape[0] == 50
