"""The built-in sets as plain arrays: scikit-learn's tables, and Fashion-MNIST from files.

Nothing is downloaded. Splitting and checking is data.py's, which is the only user.
"""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from droptune.errors import DataError

Pair = tuple[np.ndarray, np.ndarray]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian puts it
FASHION_MEAN, FASHION_STD = 0.2860, 0.3530  # of the 60000 training images, pixels in [0, 1]


def table(name: str) -> Pair:
    """Return scikit-learn's set `name`: x of shape `(n, columns)` and y of shape `(n,)`."""
    from sklearn import datasets  # takes a second; only the built-in sets need it

    return getattr(datasets, f"load_{name}")(return_X_y=True)


def scaled(values: np.ndarray, rows: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return `values` shifted and scaled by the statistics of some of its rows.

    Args:
        values: shape `(n, ...)`.
        rows: numbers of the rows whose mean becomes 0 and standard deviation 1; no column
            may be constant in them.
        axis: 0 for each column by itself, None for all together.
    """
    mean, std = values[rows].mean(axis), values[rows].std(axis)
    return (values - mean) / std


def fashion_mnist(root: str | Path | None = None) -> tuple[Pair, Pair]:
    """Return the train and the test part: bytes `(n, 28, 28)` and labels `(n,)`.

    Raises:
        DataError: the files are not there, or damaged.
    """
    folder = _fashion_folder(root)
    return _fashion_part(folder, "train"), _fashion_part(folder, "t10k")


def fashion_images(pixels: np.ndarray) -> np.ndarray:
    """Return scaled images `(n, 1, 28, 28)` of bytes `(n, 28, 28)`."""
    return ((pixels.astype(np.float32) / 255 - FASHION_MEAN) / FASHION_STD)[:, None]


def _fashion_folder(root: str | Path | None) -> Path:
    """Return the folder that holds Fashion-MNIST."""
    if root is not None:
        folders = [Path(root)]
    elif given := os.environ.get("DROPTUNE_DATA"):
        folders = [Path(given) / "fashion-mnist", Path(given), FASHION_MNIST]
    else:
        folders = [FASHION_MNIST]
    for folder in folders:
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            return folder
    raise DataError(
        f"Fashion-MNIST is not in {' or '.join(map(str, folders))}; run apt-get install "
        f"dataset-fashion-mnist, or give the folder of its four .gz files as root= or in "
        f"DROPTUNE_DATA"
    )


def _fashion_part(folder: Path, part: str) -> Pair:
    """Return bytes and labels of "train" or "t10k"."""
    pixels = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    return pixels, labels.astype(np.int64)


def read_idx(path: Path) -> np.ndarray:
    """Return the array of bytes in a gzipped IDX file, http://yann.lecun.com/exdb/mnist.

    Raises:
        DataError: the file is missing, damaged, or of another type than bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} cannot be read: {reason}; install it again") from None
    rank = content[3] if len(content) > 3 and content[:3] == b"\0\0\x08" else 0  # 8: bytes
    start = 4 + 4 * rank
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist()) if len(content) >= start else ()
    if rank == 0 or len(content) != start + math.prod(shape):
        raise DataError(f"{path} is not a whole IDX file of bytes; install it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
