"""Which rows go to train, val and test, or to folds; used by data.py alone.

Groups and folds are scikit-learn's splitters. The random split is droptune's own: it keeps a row
of every class for train, and what is stored of a study names its rows.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from droptune.errors import DataError


@dataclass(frozen=True, eq=False)
class Rule:
    """What decides which rows go together.

    Args:
        y: targets, shape `(n, ...)`.
        seed: of the random order.
        stratify: give every split the same share of each class; None: yes for integer labels
            of shape `(n,)`, unless groups or time decide.
        groups: shape `(n,)`, rows of one group stay together; None: each row for itself.
        order: "time" for rows in the order of time, or their times, shape `(n,)`; None: random.

    Raises:
        DataError: they contradict each other, or do not fit the rows.
    """

    y: np.ndarray
    seed: int = 0
    stratify: bool | None = None
    groups: Any = None
    order: Any = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise DataError(f"seed {self.seed} of the split: it must be 0 or more")
        if self.order is not None and (self.groups is not None or self.stratify):
            raise DataError(
                "order= puts the past into train, so it goes with neither groups= nor "
                "stratify=True; leave one out"
            )
        if isinstance(self.order, str) and self.order != "time":
            raise DataError(
                f'order {self.order!r}: give "time" if the rows stand in the order of time, or '
                "the times of the rows"
            )
        if self.stratify and not self._has_classes:
            raise DataError(
                f"y of dtype {self.y.dtype} and shape {self.y.shape} has no classes to stratify "
                "by; give integer labels of shape (n,), or stratify=False"
            )
        if self.groups is not None:
            object.__setattr__(self, "groups", self._column("groups", self.groups))
        if len(self.y) and self.stratified and len(np.unique(self.y)) == 1:
            raise DataError(
                f"y has one class, {self.y[0]}, so there is nothing to tell apart; give rows of "
                "two classes or more"
            )

    @property
    def _has_classes(self) -> bool:
        return self.y.ndim == 1 and self.y.dtype.kind in "biu"

    @property
    def stratified(self) -> bool:
        """Whether classes get the same share in every split."""
        if self.order is not None:
            return False
        return self._has_classes if self.stratify is None else self.stratify

    def in_time(self) -> np.ndarray:
        """Return the row numbers in the order of time."""
        if isinstance(self.order, str):
            return np.arange(len(self.y))
        times = self._column("order", self.order)
        if times.dtype.kind not in "iufM" or (times != times).any():  # NaN and NaT differ from all
            raise DataError(f"order of dtype {times.dtype}: give numbers or dates, none missing")
        return np.argsort(times, kind="stable")

    def _column(self, what: str, values: Any) -> np.ndarray:
        column = np.asarray(values)
        if column.shape != (len(self.y),):
            raise DataError(
                f"{what} has shape {column.shape}; give one value a row, ({len(self.y)},)"
            )
        return column


def split_rows(rule: Rule, val: float, test: float) -> dict[str, np.ndarray]:
    """Return the row numbers of train, val and, if it gets rows, test.

    Args:
        rule: what decides which rows go together.
        val: fraction of all rows for val, in (0, 1).
        test: fraction of all rows for test, in [0, 1).

    Returns:
        ascending row numbers by name of the split; every row is in exactly one.

    Raises:
        DataError: a fraction is out of range or leaves a split empty, or groups are too few.
    """
    n = len(rule.y)
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise DataError(f"val={val} and test={test}: val > 0, test >= 0 and val + test < 1 needed")
    n_val, n_test = round(n * val), round(n * test)
    if n_val == 0 or n_val + n_test >= n or (test and n_test == 0):
        raise DataError(
            f"val={val} and test={test} of {n} rows leave a split empty; give more rows or "
            f"larger fractions"
        )
    if rule.order is not None:
        train, val_rows, test_rows = np.split(rule.in_time(), [n - n_val - n_test, n - n_test])
    elif rule.groups is not None:
        rest, test_rows = _group_apart(rule, np.arange(n), test)
        train, val_rows = _group_apart(rule, rest, val * n / len(rest))
    else:
        train, val_rows, test_rows = _at_random(rule, n_val, n_test)
    rows = {"train": train, "val": val_rows, "test": test_rows}
    return {split: np.sort(r) for split, r in rows.items() if len(r)}


def fold_rows(rule: Rule, k: int, test: float) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Return the folds, each with row numbers of train and val, and the rows of test.

    Args:
        rule: what decides which rows go together.
        k: number of folds, from 2.
        test: fraction of all rows that is in no fold, in [0, 1).

    Raises:
        DataError: there are fewer rows, groups or rows of a class than folds.
    """
    n = len(rule.y)
    if not isinstance(k, int) or isinstance(k, bool) or k < 2:
        raise DataError(f"k {k!r}: a whole number of folds from 2 is needed")
    if not 0 <= test < 1 or (test and not 0 < round(n * test) < n):
        raise DataError(f"test={test} of {n} rows: give a fraction in [0, 1) that leaves rows")
    rest, held = _apart(rule, test)
    if len(rest) <= k - (rule.order is None):
        raise DataError(f"k={k} folds of {len(rest)} rows; take a smaller k")
    labels = rule.y[rest] if rule.y.ndim == 1 else None
    groups = None if rule.groups is None else rule.groups[rest]
    _check_counts(rule, labels, groups, k)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class is in fewer groups than folds
            parts = [(rest[a], rest[b]) for a, b in _folder(rule, k).split(rest, labels, groups)]
    except ValueError as error:  # of scikit-learn
        raise DataError(f"k={k} folds: {error}; take a smaller k") from None
    folds = [{"train": np.sort(a), "val": np.sort(b)} for a, b in parts]
    return folds, np.sort(held)


def _folder(rule: Rule, k: int) -> Any:
    """Return the splitter of scikit-learn that makes such folds."""
    from sklearn import model_selection as ms  # takes a second; only those who split need it

    shuffled = {"n_splits": k, "shuffle": True, "random_state": rule.seed}
    if rule.order is not None:
        return ms.TimeSeriesSplit(n_splits=k)
    if rule.groups is not None:
        return ms.StratifiedGroupKFold(**shuffled) if rule.stratified else ms.GroupKFold(k)
    return ms.StratifiedKFold(**shuffled) if rule.stratified else ms.KFold(**shuffled)


def _check_counts(rule: Rule, labels: np.ndarray | None, groups: np.ndarray | None, k: int) -> None:
    """Raise a DataError if there are too few groups, or rows of a class, for so many folds."""
    if groups is not None and (count := len(np.unique(groups))) < k:
        raise DataError(
            f"k={k} folds of {count} groups; take a k of at most {count}, or more groups"
        )
    if rule.stratified and groups is None:
        classes, counts = np.unique(labels, return_counts=True)
        if counts.min() < k:
            raise DataError(
                f"class {classes[counts.argmin()]} has {counts.min()} rows, too few to have one "
                f"in each of k={k} folds; take a smaller k, leave the class out, or stratify=False"
            )


def _apart(rule: Rule, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows without, and those of, a split of about this fraction."""
    n = len(rule.y)
    count = round(n * fraction)
    if rule.order is not None:
        return tuple(np.split(rule.in_time(), [n - count]))
    if rule.groups is not None:
        return _group_apart(rule, np.arange(n), fraction)
    kept, _, held = _at_random(rule, 0, count)
    return np.sort(kept), held


def _group_apart(rule: Rule, rows: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows without, and those of, a split of whole groups of about this fraction."""
    from sklearn import model_selection as ms

    if not fraction:
        return rows, rows[:0]
    groups = rule.groups[rows]
    count = len(np.unique(groups))
    parts = max(2, round(1 / fraction))
    if count < 2:
        raise DataError(
            f"groups has {count} group for several splits, and a group stays in one; give rows of "
            "more groups"
        )
    labels = rule.y[rows]
    if (
        rule.stratified
        and count >= parts
        and np.unique(labels, return_counts=True)[1].max() >= parts
    ):
        shuffled = {"n_splits": parts, "shuffle": True, "random_state": rule.seed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a class that is in few groups
            folds = list(ms.StratifiedGroupKFold(**shuffled).split(rows, labels, groups))
        kept, held = next((a, b) for a, b in folds if len(a) and len(b))
    else:
        drawn = ms.GroupShuffleSplit(1, test_size=fraction, random_state=rule.seed)
        kept, held = next(drawn.split(rows, groups=groups))
    return rows[kept], rows[held]


def _at_random(rule: Rule, n_val: int, n_test: int) -> tuple[np.ndarray, ...]:
    """Return the rows of train, val and test, drawn at random; stratified if the rule says so."""
    n = len(rule.y)
    order = np.random.default_rng(rule.seed).permutation(n)
    if rule.stratified:
        order, kept = _by_class(order, rule.y, n - n_val - n_test)
    else:
        kept = 0
    held, train = _every(order[kept:], n_val + n_test)
    test_rows, val_rows = _every(held, n_test)
    return np.concatenate([order[:kept], train]), val_rows, test_rows


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
    chosen = (i + 1) * k // max(len(rows), 1) > i * k // max(len(rows), 1)
    return rows[chosen], rows[~chosen]
