"""The data of a study: three splits in memory, and the order of batches.

Everything is loaded once into tensors, checked, and copied to the device by `Data.to`, so a
training loop only indexes. Used by trainers and study. Which rows go where is decided in
splitting.py; the files of the built-in sets are read in datasets.py.
"""

import copy
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from droptune import datasets, splitting
from droptune.duplicates import copies, copies_line
from droptune.errors import DataError
from droptune.loading import Raw, array, check_finite, pair, tensor
from droptune.metrics import IGNORED


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data: inputs and targets of the same rows.

    Attributes:
        x: inputs, shape `(n, ...)`; float32, or int64 for token ids.
        y: targets, shape `(n, ...)`; int64 labels, or float32 for regression.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> "Split":
        """Return this split on `device`; itself if it is there already."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def ends(self, size: int) -> "Split":
        """Return the first batch of this size and the last, which may be smaller, of its rows."""
        n = len(self)
        rows = [*range(min(size, n)), *range(max(size, n - n % size), n)]
        return replace(self, x=self.x[rows], y=self.y[rows])


class Data:
    """What a study trains and is judged on.

    Floating inputs become float32, also uint8 images and booleans; other integer inputs stay
    integers (token ids). Integer targets are class labels, counted from 0; floating targets
    mean regression. All is copied, so later changes of the caller's arrays change nothing.

    Args:
        train: the split that is trained on: `(x, y)` of tensors, arrays or nested lists, or a
            map-style `Dataset` of such pairs. A dataset is read once: random augmentation in
            it is frozen.
        val: the split that every choice is made on.
        test: the split that is read once, at the very end; None if there is none.
        name: a word for listings.

    Attributes:
        classes: number of classes (highest label + 1), or None for regression.

    Raises:
        DataError: a split is empty, not numeric, not finite, or does not fit the others.
    """

    def __init__(self, train: Raw, val: Raw, test: Raw | None = None, name: str | None = None):
        self.train = _load("train", train)
        self.val = _load("val", val)
        self.test = None if test is None else _load("test", test)
        self.name = name
        for split, part in self._splits():
            _check_like_train(split, part, self.train)
        self.classes = _classes(dict(self._splits()))

    def _splits(self) -> Iterable[tuple[str, Split]]:
        """Yield name and split, in the order train, val, test."""
        yield "train", self.train
        yield "val", self.val
        if self.test is not None:
            yield "test", self.test

    def __len__(self) -> int:
        return len(self.train)

    def __repr__(self) -> str:
        rows = ", ".join(f"{len(part)} {split}" for split, part in self._splits())
        task = "regression" if self.classes is None else f"{self.classes} classes"
        return f"Data({self.name or 'unnamed'}: {rows}; x {tuple(self.train.x.shape[1:])}, {task})"

    def to(self, device: torch.device | str) -> "Data":
        """Return the same data on `device`; tensors that are there already are shared."""
        moved = copy.copy(self)
        for split, part in self._splits():
            setattr(moved, split, part.to(device))
        return moved

    def example(self, n: int = 2) -> Tensor:
        """Return the first `n` training inputs, shape `(n, ...)`."""
        return self.train.x[:n]

    @property
    def blocks(self) -> int:
        """How many blocks differ in their rows: the number of folds, or 1."""
        return 1

    def block(self, number: int) -> "Data":
        """Return what a block of a study trains and is judged on."""
        return self

    def remarks(self) -> list[str]:
        """Return what is to be known of the splits, in one line each: copies, lone classes."""
        found = copies({name: part.x.numpy() for name, part in self._splits()})
        said = [copies_line(found)] if found else []
        for name, part in self._splits() if self.classes is not None else ():
            if part.y.ndim == 1 and bool((part.y == part.y[0]).all()):
                said.append(
                    f"{name} has rows of class {int(part.y[0])} alone, so it cannot tell a good "
                    "model from a bad one; give it rows of every class"
                )
        return said

    def digest(self) -> str:
        """Return the sha256 of all splits as hex digits: same content, same digest."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256()
        for split, part in self._splits():
            for axis, rows in (("x", part.x), ("y", part.y)):
                total.update(f"{split} {axis} {rows.dtype} {tuple(rows.shape)}\n".encode())
                total.update(rows.cpu().contiguous().numpy())
        return total.hexdigest()

    @classmethod
    def split(
        cls,
        X: Any,
        y: Any,
        val: float = 0.2,
        test: float | None = 0.2,
        seed: int = 0,
        stratify: bool | None = None,
        name: str | None = None,
        groups: Any = None,
        order: Any = None,
    ) -> "Data":
        """Split rows into train, val and test: at random, by groups, or along time.

        Args:
            X: inputs, shape `(n, ...)`.
            y: targets, shape `(n, ...)`.
            val: fraction of all rows for val, in (0, 1).
            test: fraction of all rows for test, in (0, 1); 0 or None for no test split.
            seed: of the random order.
            stratify: give every split the same share of each class, and train at least one
                row of each; None: yes for integer labels of shape `(n,)`.
            name: a word for listings.
            groups: shape `(n,)`, such as patients: rows of one group stay in one split. The
                fractions are then met about, as whole groups allow.
            order: "time" if the rows stand in the order of time, or their times, shape `(n,)`:
                train is the past, val what follows, test the end. Nothing is drawn.

        Raises:
            DataError: a fraction leaves a split empty, labels or groups are too few for it, or
                the data is not valid.
        """
        x, y = _rows(X, y)
        by = splitting.Rule(y, seed, stratify, groups, order)
        rows = splitting.split_rows(by, val, test or 0.0)
        return cls(**{part: (x[numbers], y[numbers]) for part, numbers in rows.items()}, name=name)

    @classmethod
    def folds(
        cls,
        X: Any,
        y: Any,
        k: int = 5,
        test: float | None = 0.2,
        seed: int = 0,
        stratify: bool | None = None,
        name: str | None = None,
        groups: Any = None,
        order: Any = None,
    ) -> "Data":
        """Return data whose blocks validate on different rows: block b on fold b mod k.

        The search's block 0 has fold 0; the blocks that confirm go through all folds, so the
        verdict no longer rests on one choice of validation rows. Pairs stay within blocks. The
        test split is apart from all folds and the same in every block.

        Folds share training rows, so their differences are correlated and the usual interval
        is too narrow: no estimate of its variance is unbiased (Bengio & Grandvalet 2004,
        https://www.jmlr.org/papers/v5/grandvalet04a.html). The correction of Nadeau & Bengio
        (2003, https://doi.org/10.1023/A:1024068626366) multiplies the variance of a mean over
        J blocks by `1 + J / (k - 1)`. The verdict's text says so.

        Args:
            X, y, test, seed, stratify, name, groups: as in `split`.
            k: number of folds, from 2.
            order: as in `split`; each fold is validated after what it was trained on, and the
                training rows grow from fold to fold.

        Raises:
            DataError: k is more than rows, groups or the rows of a class allow, or the data is
                not valid.
        """
        x, y = _rows(X, y)
        by = splitting.Rule(y, seed, stratify, groups, order)
        folds, held = splitting.fold_rows(by, k, test or 0.0)
        parts = [fold | ({"test": held} if len(held) else {}) for fold in folds]
        return Folds(x, y, parts, name)

    @classmethod
    def digits(cls, seed: int = 0) -> "Data":
        """Return scikit-learn's digits: 1797 images of 8x8 as 64 columns, 10 classes.

        All pixels share one mean and one standard deviation, those of train: a pixel that is
        almost always blank would otherwise be blown up.
        """
        return cls._table("digits", seed, by_column=False)

    @classmethod
    def breast_cancer(cls, seed: int = 0) -> "Data":
        """Return scikit-learn's breast cancer: 569 x 30, 2 classes, scaled by train."""
        return cls._table("breast_cancer", seed)

    @classmethod
    def wine(cls, seed: int = 0) -> "Data":
        """Return scikit-learn's wine: 178 x 13, 3 classes, scaled by train."""
        return cls._table("wine", seed)

    @classmethod
    def diabetes(cls, seed: int = 0) -> "Data":
        """Return scikit-learn's diabetes: 442 x 10, regression of shape `(n,)`.

        Inputs and target are scaled by train: an error of 1 is one standard deviation.
        """
        return cls._table("diabetes", seed)

    @classmethod
    def fashion_mnist(cls, root: str | Path | None = None, seed: int = 0) -> "Data":
        """Return Fashion-MNIST, images of shape `(1, 28, 28)`, 10 classes.

        Zalando Research, https://arxiv.org/abs/1708.07747. A sixth of the 60000 training
        images becomes val (10000, stratified); test is the original test set. Pixels are
        scaled by mean 0.2860 and standard deviation 0.3530.

        Args:
            root: folder of the four `.gz` files; None: `$DROPTUNE_DATA/fashion-mnist` or
                `$DROPTUNE_DATA`, else the folder of Debian's package.
            seed: of the choice of val.

        Raises:
            DataError: the files are not there, or damaged.
        """
        (pixels, labels), test = datasets.fashion_mnist(root)
        rows = splitting.split_rows(splitting.Rule(labels, seed, True), val=1 / 6, test=0.0)
        parts = {part: (pixels[numbers], labels[numbers]) for part, numbers in rows.items()}
        parts["test"] = test
        images = {part: (datasets.fashion_images(x), y) for part, (x, y) in parts.items()}
        return cls(**images, name="fashion_mnist")

    @classmethod
    def _table(cls, name: str, seed: int, by_column: bool = True) -> "Data":
        """Return one of scikit-learn's sets, split and scaled by its train rows."""
        x, y = datasets.table(name)
        rows = splitting.split_rows(splitting.Rule(y, seed), val=0.2, test=0.2)
        x = datasets.scaled(x, rows["train"], axis=0 if by_column else None)
        if y.dtype.kind == "f":
            y = datasets.scaled(y, rows["train"])
        return cls(**{part: (x[numbers], y[numbers]) for part, numbers in rows.items()}, name=name)


class Folds(Data):
    """Data of which every block validates on another fold; see `Data.folds`.

    As `Data` itself it is what block 0 has.

    Args:
        x: inputs of all rows, shape `(n, ...)`.
        y: targets of all rows.
        parts: of each fold: name of the split -> row numbers.
        name: a word for listings.
    """

    def __init__(self, x: Any, y: Any, parts: list[dict[str, Any]], name: str | None):
        self._x, self._y, self._parts = np.array(x), np.array(y), parts
        super().__init__(**self._split_into(0), name=name)
        for number in range(1, len(parts)):  # what does not fit is found now, not after hours
            self.block(number)

    def _split_into(self, number: int) -> dict[str, Raw]:
        rows = self._parts[number % len(self._parts)]
        return {split: (self._x[numbers], self._y[numbers]) for split, numbers in rows.items()}

    @property
    def blocks(self) -> int:
        """The number of folds."""
        return len(self._parts)

    def block(self, number: int) -> Data:
        """Return the data of a block: fold `number` mod k."""
        return Data(**self._split_into(number), name=self.name)

    def remarks(self) -> list[str]:
        """Return what is to be known of the first fold of which there is something to say."""
        for number in range(self.blocks):
            if said := self.block(number).remarks():
                return [f"fold {number}: {line}" for line in said]
        return []

    @cached_property
    def _digest(self) -> str:
        digests = [self.block(number).digest() for number in range(self.blocks)]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def batches(
    n: int, batch_size: int, seed: int, epoch: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, ...]:
    """Return the row indices of one epoch's batches, in training order.

    The order is a function of `(seed, epoch)` alone and the same on every device: it comes
    from a generator of its own on the CPU.

    Args:
        n: number of rows.
        batch_size: rows a batch; the last batch may be smaller and is kept.
        seed: of the block.
        epoch: clock of the block, in epochs.
        device: where the indices are wanted.

    Returns:
        int64 tensors of shape `(batch_size,)`, together a permutation of `0 .. n - 1`.

    Raises:
        DataError: `n` or `batch_size` is below 1.
    """
    if n < 1 or batch_size < 1:
        raise DataError(f"{n} rows in batches of {batch_size}: both must be 1 or more")
    # Hashed, because neighbouring seeds and epochs must not give related orders.
    word = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    # The CPU generator uses 32 bits of its seed.
    generator = torch.Generator().manual_seed(int.from_bytes(word[:4], "big"))
    return torch.randperm(n, generator=generator).to(device).split(batch_size)


# One split


def _rows(X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets of the same rows as arrays."""
    x, y = array("X", X), array("y", y)
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise DataError(f"X of shape {x.shape} and y of shape {y.shape} must be the same rows")
    return x, y


def _load(split: str, raw: Raw) -> Split:
    """Return `raw` as checked tensors; `split` names it in messages."""
    x, y = pair(split, raw)
    part = Split(tensor(f"{split} x", x), tensor(f"{split} y", y, target=True))
    if len(part.x) != len(part.y):
        raise DataError(
            f"{split}: x has {len(part.x)} rows and y has {len(part.y)}; they must be the same rows"
        )
    if len(part) == 0:
        raise DataError(f"{split} is empty; it needs at least one row")
    check_finite(f"{split} x", part.x)
    check_finite(f"{split} y", part.y)
    return part


# Splits against each other


def _check_like_train(split: str, part: Split, train: Split) -> None:
    """Raise if `part` differs from train in shape or type."""
    for axis in ("x", "y"):
        here, there = getattr(part, axis), getattr(train, axis)
        if here.shape[1:] != there.shape[1:]:
            raise DataError(
                f"{split} {axis} has rows of shape {tuple(here.shape[1:])}, train {axis} "
                f"{tuple(there.shape[1:])}; they must be equal"
            )
        if here.dtype != there.dtype:
            raise DataError(
                f"{split} {axis} became {here.dtype}, train {axis} {there.dtype}; "
                f"give both as floats or both as integers"
            )


def _classes(splits: dict[str, Split]) -> int | None:
    """Return the number of classes, or None for regression; check the labels."""
    train = splits["train"].y
    if train.is_floating_point():
        return None
    for split, part in splits.items():
        y = part.y[part.y != IGNORED] if part.y.ndim > 1 else part.y
        if not y.numel():
            raise DataError(
                f"{split} has no label but {IGNORED}, which is passed over; give it more rows"
            )
        if int(y.min()) < 0:
            raise DataError(
                f"{split} has labels from {int(y.min())} to {int(y.max())}; labels "
                f"count from 0; for regression give y as floats"
            )
    if train.ndim > 1:  # sequences of tokens: a rare word may be missing in train
        return max(int(part.y.max()) for part in splits.values()) + 1
    if int(train.min()) > 0:
        raise DataError(
            f"train has labels from {int(train.min())} to {int(train.max())}; labels count from "
            f"0: map them with numpy.unique(y, return_inverse=True), or give y as floats for "
            f"regression"
        )
    known = set(train.unique().tolist())
    for split, part in splits.items():
        if unknown := sorted(set(part.y.unique().tolist()) - known):
            shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise DataError(
                f"{split} has labels that train has not: {shown}; move rows of these classes "
                f"into train or leave them out"
            )
    return max(known) + 1
