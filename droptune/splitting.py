"""Which rows go to train, val and test. Pure functions of numbers; used by data.py alone."""

import numpy as np

from droptune.errors import DataError


def split_rows(
    y: np.ndarray, val: float, test: float, seed: int, stratify: bool | None
) -> dict[str, np.ndarray]:
    """Return the row numbers of train, val and, if it gets rows, test.

    Args:
        y: targets, shape `(n, ...)`.
        val: fraction of all rows for val, in (0, 1).
        test: fraction of all rows for test, in [0, 1).
        seed: of the random order.
        stratify: give every split the same share of each class, and train at least one row of
            each; None: yes for integer labels of shape `(n,)`.

    Returns:
        ascending row numbers by name of the split; every row is in exactly one.

    Raises:
        DataError: a fraction is out of range or leaves a split empty, or `y` has no classes.
    """
    n = len(y)
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise DataError(f"val={val} and test={test}: val > 0, test >= 0 and val + test < 1 needed")
    n_val, n_test = round(n * val), round(n * test)
    if n_val == 0 or n_val + n_test >= n or (test and n_test == 0):
        raise DataError(
            f"val={val} and test={test} of {n} rows leave a split empty; give more rows or "
            f"larger fractions"
        )
    if seed < 0:
        raise DataError(f"seed {seed} of the split: it must be 0 or more")
    order = np.random.default_rng(seed).permutation(n)
    can_stratify = y.ndim == 1 and y.dtype.kind in "biu"
    if stratify and not can_stratify:
        raise DataError(
            f"y of dtype {y.dtype} and shape {y.shape} has no classes to stratify by; give integer "
            f"labels of shape (n,), or stratify=False"
        )
    if stratify or (stratify is None and can_stratify):
        order, kept = _by_class(order, y, n - n_val - n_test)
    else:
        kept = 0
    held, train = _every(order[kept:], n_val + n_test)
    test_rows, val_rows = _every(held, n_test)
    rows = {"train": np.concatenate([order[:kept], train]), "val": val_rows, "test": test_rows}
    return {split: np.sort(r) for split, r in rows.items() if len(r)}


def _by_class(order: np.ndarray, labels: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """Return `order` with one row of each class first, the others sorted by class.

    The second value is how many rows come first; they belong to train, which has `room`
    rows. With more classes than room none is kept.
    """
    order = order[np.argsort(labels[order], kind="stable")]
    _, first = np.unique(labels[order], return_index=True)
    if len(first) > room:
        return order, 0
    return np.concatenate([order[first], np.delete(order, first)]), len(first)


def _every(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `k` evenly spaced rows and the others: of sorted classes, a fair share of each."""
    i = np.arange(len(rows))
    chosen = (i + 1) * k // len(rows) > i * k // len(rows)
    return rows[chosen], rows[~chosen]
