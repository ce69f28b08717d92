"""droptune/kinds/embedding.py: rows of an embedding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from droptune.kinds.standard import mask
from tests.kinds.making import batch, make


@given(rows=st.integers(1, 30), rate=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_a_row_is_dropped_or_scaled_as_a_whole(rows, rate, seed):
    table = batch(rows, 4)
    uniform = make("embedding", seed=seed).stream.uniform((rows, 1), table.device)
    expected = table * mask(uniform, torch.tensor(rate))
    assert torch.equal(make("embedding", rate, seed)(table), expected)


def test_rows_are_dropped_each_by_itself():
    gone = make("embedding", 0.5)(torch.ones(2000, 3)) == 0
    assert torch.equal(gone.any(1), gone.all(1)) and 900 < gone[:, 0].sum() < 1100
