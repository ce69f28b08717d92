"""droptune/splitting.py, through Data.split: which rows go where."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from droptune.data import Data
from droptune.errors import DataError

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 5))
Y = np.arange(60) % 3


@given(
    n=st.integers(10, 200),
    val=st.floats(0.1, 0.4),
    test=st.sampled_from([0.0, 0.1, 0.3]),
    seed=st.integers(0, 5),
    stratify=st.booleans(),
)
def test_every_row_lands_in_exactly_one_split(n, val, test, seed, stratify):
    x = np.arange(n, dtype=float)[:, None]
    halves = Data.split(x, np.arange(n) % 2, val, test, seed, stratify)
    parts = [halves.train, halves.val] + ([halves.test] if test else [])
    rows = torch.cat([part.x[:, 0] for part in parts])
    assert sorted(rows.tolist()) == list(range(n))
    assert len(halves.val) == round(n * val)
    assert (0 if halves.test is None else len(halves.test)) == round(n * test)


def test_a_split_is_a_function_of_its_seed():
    def digest(seed: int) -> str:
        return Data.split(X, Y, seed=seed).digest()

    assert digest(0) == digest(0) != digest(1)


def test_no_test_split_is_made_for_a_fraction_of_zero_or_none():
    assert Data.split(X, Y, test=0).test is None
    assert Data.split(X, Y, test=None).test is None


def test_every_split_has_the_same_share_of_each_class():
    y = rng.permutation(np.repeat([0, 1, 2], [700, 200, 100]))
    parts = Data.split(np.zeros((1000, 1)), y, val=0.2, test=0.1)
    for part, shares in ((parts.val, [140, 40, 20]), (parts.test, [70, 20, 10])):
        assert np.abs(np.bincount(part.y) - shares).max() <= 1


def test_without_stratification_the_shares_are_left_to_chance():
    y = np.repeat([0, 1], 500)
    counts = {
        int(Data.split(np.zeros((1000, 1)), y, seed=seed, stratify=False).val.y.sum())
        for seed in range(5)
    }
    assert len(counts) > 2


@given(seed=st.integers(0, 50))
def test_a_rare_class_is_always_in_train(seed):
    y = np.array([0] * 30 + [1])
    assert Data.split(np.zeros((31, 1)), y, val=0.3, test=0.3, seed=seed).classes == 2


def test_regression_is_split_without_classes():
    assert len(Data.split(X, X[:, 0]).val) == 12


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"val": 0}, "val=0 and test=0.2: val > 0"),
        ({"val": 0.5, "test": 0.5}, "val=0.5 and test=0.5"),
        ({"val": 0.001}, "of 60 rows leave a split empty"),
        ({"test": 0.001}, "of 60 rows leave a split empty"),
        ({"seed": -1}, "seed -1 of the split"),
        ({"y": X[:, 0], "stratify": True}, "has no classes to stratify by"),
        ({"y": Y[:59]}, "must be the same rows"),
        ({"y": 3}, "must be the same rows"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(arguments, match):
    with pytest.raises(DataError, match=match):
        Data.split(**({"X": X, "y": Y} | arguments))
