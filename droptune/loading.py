"""Reading what a user gives as a split: arrays, tensors, lists or a dataset, made tensors.

Used by data.py alone.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from droptune.errors import DataError

Raw = tuple[Any, Any] | Dataset


def pair(split: str, raw: Raw) -> tuple[Any, Any]:
    """Return inputs and targets of a pair or a map-style dataset."""
    if isinstance(raw, (tuple, list)) and len(raw) == 2:
        return raw[0], raw[1]
    is_map = hasattr(raw, "__getitem__") and hasattr(raw, "__len__")
    if isinstance(raw, (tuple, list, dict, Tensor, np.ndarray)) or not is_map:
        if isinstance(raw, IterableDataset):
            raise DataError(f"{split} is an IterableDataset; load it and give (x, y)")
        raise DataError(
            f"{split} is {type(raw).__name__}; give (x, y) or a map-style Dataset of such pairs"
        )
    if type(raw) is TensorDataset and len(raw.tensors) == 2:
        return raw.tensors
    items = [raw[i] for i in range(len(raw))]
    if not all(isinstance(item, (tuple, list)) and len(item) == 2 for item in items):
        raise DataError(f"{split}: the dataset's items must be pairs (x, y)")
    if not items:
        raise DataError(f"{split} is empty; it needs at least one row")
    return _stack(f"{split} x", [x for x, _ in items]), _stack(f"{split} y", [y for _, y in items])


def _stack(what: str, rows: list[Any]) -> np.ndarray:
    """Return a dataset's items as one array, shape `(n, ...)`."""
    arrays = [row.detach().cpu().numpy() if isinstance(row, Tensor) else row for row in rows]
    shapes = sorted({np.shape(array) for array in arrays})
    if len(shapes) > 1:
        raise DataError(
            f"{what}: the dataset's items have {len(shapes)} shapes, such as {shapes[0]} and "
            f"{shapes[1]}; pad or crop them to one"
        )
    return np.stack(arrays)


def tensor(what: str, value: Any, target: bool = False) -> Tensor:
    """Return a copy of `value` on the CPU as float32 or int64, shape `(n, ...)`."""
    given = array(what, value)
    if given.dtype.kind not in "biuf":
        raise DataError(
            f"{what} has dtype {given.dtype}, which is not a number; convert it to float or int"
        )
    if given.ndim == 0:
        raise DataError(f"{what} is a single number; it must have one row a sample")
    as_image = given.dtype == np.uint8 and not target
    as_switch = given.dtype.kind == "b" and not target
    wanted = np.float32 if given.dtype.kind == "f" or as_image or as_switch else np.int64
    with np.errstate(over="ignore"):  # too large for float32 becomes inf and is reported as such
        return torch.from_numpy(np.array(given, dtype=wanted, order="C"))


def array(what: str, value: Any) -> np.ndarray:
    """Return `value` as a numpy array, without a copy where possible."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise DataError(f"{what} is a sparse tensor; give x.to_dense()")
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        message = f"{what} cannot be made an array: {first}; give rows of one shape"
        raise DataError(message) from None


def check_finite(what: str, values: Tensor) -> None:
    """Raise if a row has NaN or inf, naming how many rows and the first."""
    if not values.is_floating_point():
        return
    bad = ~torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else ~torch.isfinite(values)
    if bad.any():
        raise DataError(
            f"{what} has NaN or inf in {int(bad.sum())} of {len(values)} rows, the first is row "
            f"{int(bad.nonzero()[0])}; remove those rows or fill them in"
        )
