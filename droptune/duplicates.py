"""Copies of a row in several splits: what is judged on them was seen in training.

Exact copies of inputs alone are found, by hashes; used by data.py. On how common and how
costly they are: Barz & Denzler 2020, https://arxiv.org/abs/1902.00423.
"""

import hashlib
from collections.abc import Mapping

import numpy as np


def copies(splits: Mapping[str, np.ndarray]) -> dict[tuple[str, str], tuple[int, int]]:
    """Count the rows of later splits that stand in an earlier one, too.

    Args:
        splits: name -> inputs, shape `(n, ...)`, in the order train, val, test.

    Returns:
        (later, earlier) -> how many of the later split's rows, and how many it has; pairs
        without a copy are left out.
    """
    hashes = {name: _hashes(rows) for name, rows in splits.items()}
    names = list(splits)
    found = {}
    for i, later in enumerate(names):
        for earlier in names[:i]:
            seen = set(hashes[earlier])
            count = sum(h in seen for h in hashes[later])
            if count:
                found[later, earlier] = (count, len(hashes[later]))
    return found


def copies_line(found: Mapping[tuple[str, str], tuple[int, int]]) -> str:
    """Return what `copies` found, in one line."""
    parts = [
        f"{count} of {total} rows of {later} are exact copies of rows of {earlier}"
        for (later, earlier), (count, total) in found.items()
    ]
    return (
        f"leakage: {', '.join(parts)}; what they score is too good, so remove them, or keep "
        "copies together with Data.split(X, y, groups=...)"
    )


def _hashes(rows: np.ndarray) -> list[bytes]:
    """Return a hash of each row; 0.0 and -0.0 are equal."""
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1))
    if flat.dtype.kind == "f":
        flat = flat + flat.dtype.type(0)  # -0.0 becomes 0.0
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in flat]
