"""droptune/data.py: loading, checking and ordering the data."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from droptune.data import Data, Split, batches
from droptune.errors import DataError

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 5))
Y = np.arange(60) % 3


def data(**changes) -> Data:
    """Return small data of three classes with some splits exchanged."""
    splits = {"train": (X[:40], Y[:40]), "val": (X[40:50], Y[40:50]), "test": (X[50:], Y[50:])}
    return Data(**(splits | changes))


def fails(match: str, **changes) -> None:
    """Check that data with some splits exchanged is refused, in one line that has `match`."""
    with pytest.raises(DataError, match=match) as caught:
        data(**changes)
    assert "\n" not in str(caught.value)


class Pairs(Dataset):
    """A map-style dataset without anything but the two methods."""

    def __init__(self, rows: list):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        return self.rows[i]


class Stream(IterableDataset):
    """A dataset without length or order."""

    def __iter__(self):
        yield X[0], Y[0]


# Loading


@pytest.mark.parametrize(
    "raw",
    [
        (X, Y),
        (X.tolist(), Y.tolist()),
        (torch.tensor(X), torch.tensor(Y, dtype=torch.int32)),
        [X, Y],
        (X[::-1][::-1], Y[::-1][::-1]),
        (X.astype(">f8"), Y.astype(">i4")),
        TensorDataset(torch.tensor(X), torch.tensor(Y)),
        Pairs([(torch.tensor(x), int(y)) for x, y in zip(X, Y, strict=True)]),
        Pairs([(x, y) for x, y in zip(X, Y, strict=True)]),
    ],
)
def test_tensors_arrays_lists_and_datasets_become_float_inputs_and_integer_labels(raw):
    loaded = Data(train=raw, val=(X, Y)).train
    assert loaded.x.dtype == torch.float32 and loaded.x.shape == (60, 5)
    assert loaded.y.dtype == torch.int64 and loaded.y.shape == (60,)
    np.testing.assert_array_equal(loaded.x.numpy(), X.astype("f4"))
    np.testing.assert_array_equal(loaded.y.numpy(), Y)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.uint8, torch.float32),  # images
        (torch.bool, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float32),
        (torch.int32, torch.int64),  # token ids
        (torch.int64, torch.int64),
    ],
)
def test_inputs_keep_their_meaning(dtype, wanted):
    x = torch.ones(4, 2).to(dtype)
    loaded = Data(train=(x, [0, 1, 0, 1]), val=(x, [0, 1, 0, 1]))
    assert loaded.train.x.dtype == wanted
    assert torch.equal(loaded.train.x, torch.ones(4, 2, dtype=wanted))


def test_floating_targets_mean_regression():
    for target in (X[:, 0], X[:, :2]):
        loaded = Data(train=(X, target), val=(X, target))
        assert loaded.classes is None
        assert loaded.train.y.dtype == torch.float32 and loaded.train.y.shape == target.shape


def test_booleans_and_bytes_are_labels_too():
    for labels in (Y == 1, (Y == 1).astype(np.uint8)):
        loaded = Data(train=(X, labels), val=(X, labels))
        assert loaded.classes == 2 and loaded.train.y.dtype == torch.int64


def test_the_number_of_classes_is_the_highest_label_plus_one():
    assert data().classes == 3
    assert data(train=(X, Y * 2), val=(X, Y * 2), test=None).classes == 5


def test_a_rare_token_may_be_missing_in_train():
    tokens = np.array([[0, 1], [1, 2]])
    loaded = Data(train=(tokens, tokens), val=(tokens, tokens + 1))
    assert loaded.classes == 4 and loaded.train.y.shape == (2, 2)


def test_later_changes_of_the_arrays_change_nothing():
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    loaded = Data(train=(x, y), val=(x.numpy(), y.numpy()))
    before = loaded.digest()
    x += 1
    y += 1
    assert loaded.train.x.sum() == 0 and loaded.val.y.sum() == 2
    assert Data(train=(loaded.train.x, loaded.train.y), val=(x * 0, y - 1)).digest() == before


def test_gradients_do_not_come_along():
    x = torch.zeros(4, 2, requires_grad=True)
    loaded = Data(train=(x, [0, 1, 0, 1]), val=(x, [0, 1, 0, 1]))
    assert not loaded.train.x.requires_grad


def test_a_test_split_is_not_needed():
    assert data(test=None).test is None


def test_lengths_example_and_repr_tell_what_is_there():
    loaded = data(name="mine")
    assert (len(loaded), len(loaded.val), len(loaded.test)) == (40, 10, 10)
    assert torch.equal(loaded.example(), loaded.train.x[:2]) and len(loaded.example(7)) == 7
    assert repr(loaded) == "Data(mine: 40 train, 10 val, 10 test; x (5,), 3 classes)"


def test_to_moves_every_split_and_leaves_the_original():
    loaded = data()
    moved = loaded.to("meta")
    assert {moved.train.x.device.type, moved.val.y.device.type, moved.test.x.device.type} == {
        "meta"
    }
    assert loaded.train.x.device.type == "cpu"
    assert (moved.classes, len(moved)) == (3, 40)


def test_moving_to_the_same_device_copies_nothing():
    loaded = data()
    assert loaded.to("cpu").train.x is loaded.train.x


@pytest.mark.gpu
def test_the_digest_and_the_order_do_not_depend_on_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert data().to("cuda").digest() == data().digest()
    for here, there in zip(batches(9, 4, 0, 0), batches(9, 4, 0, 0, "cuda"), strict=True):
        assert there.device.type == "cuda" and torch.equal(here, there.cpu())


# Digest


def test_the_digest_is_the_same_for_the_same_content_in_any_form():
    first = data()
    again = data(train=(torch.tensor(X[:40]), Y[:40].tolist()), name="another name")
    assert first.digest() == again.digest() == first.to("cpu").digest()


def test_the_digest_never_changes_between_versions():
    fixed = Data(train=([[1.0]], [0]), val=([[2.0]], [0]))
    assert fixed.digest() == "a5edadc4d66fc5c0c7f6a9ea2538b6d10c218172b1aa70d4a26c22f436c1950a"


@pytest.mark.parametrize(
    "changes",
    [
        {"train": (X[:40] + np.eye(40, 5) * 1e-3, Y[:40])},
        {"train": (X[:40], np.roll(Y[:40], 1))},
        {"train": (X[:40][::-1], Y[:40][::-1])},
        {"val": (X[41:51], Y[41:51])},
        {"test": (X[49:59], Y[49:59])},
        {"test": None},
        {"val": (X[50:], Y[50:]), "test": (X[40:50], Y[40:50])},
    ],
)
def test_the_digest_changes_with_any_content(changes):
    assert data(**changes).digest() != data().digest()


# Errors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_rows_that_are_not_finite_are_counted_and_the_first_is_named(split, value):
    bad = X.copy()
    bad[7, 1] = bad[7, 3] = bad[9, 0] = value
    fails(f"{split} x has NaN or inf in 2 of 60 rows, the first is row 7", **{split: (bad, Y)})


def test_targets_must_be_finite_too():
    target = X[:, 0].copy()
    target[3] = np.nan
    fails(
        "val y has NaN or inf in 1 of 60 rows, the first is row 3",
        train=(X, X[:, 0]),
        val=(X, target),
        test=None,
    )


def test_labels_below_zero_are_refused():
    fails("val has labels from -1 to 1; labels count from 0", val=(X, Y - 1))


def test_a_split_without_a_label_that_counts_is_refused():
    tokens = np.repeat(Y[:, None], 3, axis=1)
    fails("val has no label but -100", train=(X, tokens), val=(X, tokens * 0 - 100), test=None)


def test_labels_that_count_from_one_are_refused():
    fails("train has labels from 1 to 3; labels count from 0", train=(X, Y + 1), val=(X, Y + 1))


@pytest.mark.parametrize("split", ["val", "test"])
def test_labels_that_train_has_not_are_named(split):
    fails(f"{split} has labels that train has not: 3, 4;", **{split: (X, Y + 2)})


def test_a_long_list_of_unknown_labels_is_cut():
    fails("3, 4, 5, 6, 7, ...;", val=(X, np.arange(60)))


@pytest.mark.parametrize("empty", [(X[:0], Y[:0]), Pairs([]), ([], [])])
def test_an_empty_split_is_refused(empty):
    fails("val is empty; it needs at least one row", val=empty)


def test_inputs_and_targets_must_have_the_same_rows():
    fails("test: x has 60 rows and y has 59", test=(X, Y[:59]))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (X.astype(object), "object"),
        (X.astype(str), "<U"),
        (X.astype(complex), "complex128"),
        (np.full((60, 1), "2020-01-01", "M8[D]"), "datetime64"),
    ],
)
def test_what_is_not_a_number_is_refused(values, dtype):
    fails(f"train x has dtype {dtype}.*, which is not a number", train=(values, Y))


@pytest.mark.parametrize(
    ("values", "shape"), [(X[:, :4], r"\(4,\)"), (X[:, :, None], r"\(5, 1\)"), (X[:, 0], r"\(\)")]
)
def test_splits_must_have_rows_of_one_shape(values, shape):
    fails(rf"val x has rows of shape {shape}, train x \(5,\)", val=(values, Y))


def test_splits_must_have_one_task():
    fails("val y became torch.float32, train y torch.int64", val=(X, X[:, 0]))


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (X, r"train is ndarray; give \(x, y\)"),
        ((X, Y, Y), r"train is tuple; give \(x, y\)"),
        (None, r"train is NoneType; give \(x, y\)"),
        ({"x": X, "y": Y}, r"train is dict; give \(x, y\)"),
        (Stream(), r"train is an IterableDataset; load it and give \(x, y\)"),
        (Pairs([X[0], X[1]]), r"items must be pairs \(x, y\)"),
        (Pairs([(X[0], 0), (X[0, :2], 1)]), r"train x: .* 2 shapes, such as \(2,\) and \(5,\)"),
        ((3.0, Y), "train x is a single number"),
        (([[1.0], [1.0, 2.0]], [0, 1]), "train x cannot be made an array"),
        ((torch.eye(3).to_sparse(), [0, 1, 2]), "train x is a sparse tensor"),
    ],
)
def test_what_cannot_be_loaded_is_named(raw, match):
    fails(match, train=raw)


# Batches


@given(
    n=st.integers(1, 300),
    batch_size=st.integers(1, 310),
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_visits_every_row_once(n, batch_size, seed, epoch):
    order = batches(n, batch_size, seed, epoch)
    assert sorted(torch.cat(order).tolist()) == list(range(n))
    assert [len(batch) for batch in order[:-1]] == [batch_size] * (len(order) - 1)
    assert len(order[-1]) == (n % batch_size or batch_size)


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    def order(seed: int, epoch: int, batch_size: int = 7) -> list[int]:
        return torch.cat(batches(50, batch_size, seed, epoch)).tolist()

    first = order(0, 0)
    torch.manual_seed(5)
    torch.rand(3)
    assert order(0, 0) == order(0, 0, batch_size=50) == first
    assert len({tuple(order(seed, epoch)) for seed in range(20) for epoch in range(20)}) == 400


def test_the_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(50, 7, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_order_never_changes_between_versions():  # else stored runs cannot be repeated
    assert torch.cat(batches(8, 4, seed=0, epoch=0)).tolist() == [3, 4, 5, 2, 1, 0, 7, 6]


@pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (4, 0), (4, -1)])
def test_batches_of_nothing_are_refused(n, batch_size):
    with pytest.raises(DataError, match=f"{n} rows in batches of {batch_size}"):
        batches(n, batch_size, 0, 0)


def test_a_split_has_rows():
    assert len(Split(torch.zeros(3, 2), torch.zeros(3))) == 3
