"""droptune/kinds/controlled.py: exactly so many units, the same for a whole minibatch."""

from collections import Counter
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from droptune.kinds.controlled import count_kept
from tests.kinds.making import batch, make

rates = st.floats(0, 0.99)


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4), rate=rates, seed=st.integers(0, 999)
)
def test_exactly_k_units_are_kept_and_scaled_the_same_for_all_samples(shape, rate, seed):
    x = batch(*shape).abs() + 1
    y = make("controlled", rate, seed)(x)
    kept = (y != 0).flatten(0, -2)
    count = int(count_kept(torch.tensor(rate), shape[-1]))
    assert kept[0].sum() == count
    assert torch.equal(kept, kept[:1].expand_as(kept))
    torch.testing.assert_close(y, x * (y != 0) * (shape[-1] / count), rtol=1e-6, atol=0)


@given(rate=rates, units=st.integers(1, 5000))
def test_as_many_are_kept_as_the_rate_says_and_at_least_one(rate, units):
    count = count_kept(torch.tensor(rate), units).item()
    assert count == int(count) and 1 <= count <= units
    assert count == 1 or abs(count - (1 - rate) * units) <= 0.5 + 1e-6 * units


@pytest.mark.parametrize(
    ("rate", "units", "count"), [(0.0, 7, 7), (0.5, 8, 4), (0.3, 10, 7), (0.99, 4, 1), (0.05, 9, 9)]
)
def test_how_many_are_kept(rate, units, count):
    assert count_kept(torch.tensor(rate), units).item() == count


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.75, 0.9])
def test_the_mean_over_masks_is_kept_for_every_unit(rate):
    x = torch.tensor([[1.0, -2.0, 3.0, 0.5, -4.0]])
    kind = make("controlled", rate)
    mean = torch.stack([kind(x) for _ in range(6000)]).mean(0)
    torch.testing.assert_close(mean, x, rtol=0.11, atol=0)


def test_all_choices_of_k_units_are_equally_likely():
    kind, calls = make("controlled", 0.4), 3000
    seen = Counter(
        tuple(kind(torch.ones(1, 5))[0].nonzero().flatten().tolist()) for _ in range(calls)
    )
    assert len(seen) == comb(5, 3)
    assert max(seen.values()) < 1.3 * calls / comb(5, 3)


def test_python_knows_the_rate_only_where_it_was_set():
    kind = make("controlled", 0.5)
    assert kind.number is None
    kind.set_rate(0.25)
    assert kind.number == 0.25 and kind.rate == 0.25
