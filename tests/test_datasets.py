"""droptune/datasets.py, through Data: the built-in sets and their files."""

import gzip
import struct

import numpy as np
import pytest
import torch

from droptune.data import Data
from droptune.errors import DataError

rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("name", "columns", "rows", "classes"),
    [
        ("digits", 64, 1797, 10),
        ("breast_cancer", 30, 569, 2),
        ("wine", 13, 178, 3),
        ("diabetes", 10, 442, None),
    ],
)
def test_built_in_sets_are_scaled_by_train_alone(name, columns, rows, classes):
    loaded = getattr(Data, name)()
    assert loaded.name == name and loaded.classes == classes
    assert sum(map(len, (loaded.train, loaded.val, loaded.test))) == rows
    assert loaded.train.x.shape[1:] == (columns,)
    values = loaded.train.x.flatten() if name == "digits" else loaded.train.x
    torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1:]), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(0, False), torch.ones(values.shape[1:]))
    assert abs(float(loaded.val.x.mean())) > 1e-4  # val was not used for the statistics


def test_the_target_of_diabetes_is_in_standard_deviations_of_train():
    y = Data.diabetes().train.y
    assert abs(float(y.mean())) < 1e-5 and float(y.std(unbiased=False)) == pytest.approx(1)


def test_built_in_sets_take_a_seed():
    assert Data.wine().digest() == Data.wine(seed=0).digest() != Data.wine(seed=1).digest()


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder with a Fashion-MNIST of 120 + 20 images."""
    monkeypatch.delenv("DROPTUNE_DATA", raising=False)
    monkeypatch.setattr("droptune.datasets.FASHION_MNIST", tmp_path / "not there")
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, n in (("train", 120), ("t10k", 20)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + values.tobytes()))
    return folder


def test_fashion_mnist_is_read_scaled_and_split(fashion):
    loaded = Data.fashion_mnist(fashion)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (100, 20, 20)
    assert loaded.train.x.shape == (100, 1, 28, 28) and loaded.classes == 10
    assert np.bincount(loaded.val.y).tolist() == [2] * 10
    assert loaded.test.y.tolist() == [i % 10 for i in range(20)]
    low, high = (0 - 0.2860) / 0.3530, (1 - 0.2860) / 0.3530
    assert float(loaded.train.x.min()) == pytest.approx(low)
    assert float(loaded.train.x.max()) == pytest.approx(high)


@pytest.mark.parametrize("inside", [True, False])
def test_fashion_mnist_is_found_through_the_environment(fashion, inside, monkeypatch):
    monkeypatch.setenv("DROPTUNE_DATA", str(fashion if inside else fashion.parent))
    assert len(Data.fashion_mnist()) == 100


def test_a_missing_fashion_mnist_says_what_to_install(fashion, tmp_path):
    for arguments in ((), (tmp_path,)):
        with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist") as caught:
            Data.fashion_mnist(*arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda whole: whole[:-20], "cannot be read"),
        (lambda whole: b"<html>", "cannot be read"),
        (lambda whole: gzip.compress(b""), "not a whole IDX file"),
        (lambda whole: gzip.compress(b"\0\0\x08\x03\0"), "not a whole IDX file"),
        (lambda whole: gzip.compress(gzip.decompress(whole)[:-1]), "not a whole IDX file"),
        (lambda whole: gzip.compress(b"\0\0\x0d\x01" + b"\0" * 8), "not a whole IDX file"),
    ],
)
def test_a_damaged_file_is_named(fashion, damage, match):
    path = fashion / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path.name} .*{match}.*; install it again"):
        Data.fashion_mnist(fashion)


def test_a_file_that_is_not_there_is_named(fashion):
    (fashion / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels.* cannot be read: No such file"):
        Data.fashion_mnist(fashion)
