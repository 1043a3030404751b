"""5,000 genuine MNIST digits that come with bnjax; README.md in this folder says where from."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bnjax.data.arrays import ArraySplit, digest
from bnjax.data.data_set import DataError, DataSet

SHA256 = "8dc0fc3795a1475f58736ae8d423e60ec3f27e6fc9e4851f82a5e9bac5e43aeb"
"""Digest of mnist5k.npz."""
SIZE = 814_375
"""Bytes of mnist5k.npz."""
FILE = Path(__file__).with_name("mnist5k.npz")
PER_CLASS = 500
TRAIN_PER_CLASS = 400
_REMEDY = (
    "reinstall bnjax; in a clone, git checkout this file or run python -m bnjax.data.mnist5k.build"
)


class Digits(NamedTuple):
    """The packaged digits, 500 of each class, in class order.

    Attributes:
        images: uint8 [5000, 28, 28, 1].
        labels: int32 [5000].
        mnist_index: int32 [5000], the place of each digit in MNIST's train-images-idx3-ubyte,
            ascending within a class.
    """

    images: np.ndarray
    labels: np.ndarray
    mnist_index: np.ndarray


def read_digits(path: Path = FILE) -> Digits:
    """Reads the packaged file after verifying it.

    Args:
        path: the file.

    Returns:
        All 5,000 digits.

    Raises:
        DataError: the file is missing or is not the one that bnjax was published with.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); {_REMEDY}.") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != SHA256:
        raise DataError(
            f"{path}: expected {SIZE} bytes with SHA-256 {SHA256}, "
            f"got {len(data)} bytes with SHA-256 {sha256}; {_REMEDY}."
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Digits(arrays["images"], arrays["labels"].astype(np.int32), arrays["mnist_index"])


def load(path: Path = FILE) -> DataSet[ArraySplit]:
    """Splits the packaged digits: the last 100 of each class are for testing.

    No digit occurs twice in MNIST's training set, so the splits share none. Each split stands in
    MNIST's order, where the classes are mixed.

    Args:
        path: the file.

    Returns:
        4,000 digits to learn from and 1,000 to measure on. Both come from MNIST's training set, so
        an error rate on them is not one on MNIST's test set.

    Raises:
        DataError: as `read_digits`.
    """
    digits = read_digits(path)
    order = np.argsort(digits.mnist_index)
    is_train = np.arange(len(order)) % PER_CLASS < TRAIN_PER_CLASS
    train, test = (
        ArraySplit(digits.images[rows], digits.labels[rows], name)
        for name, rows in (("train", order[is_train[order]]), ("test", order[~is_train[order]]))
    )
    return DataSet("mnist5k", 10, 1, train, test, digest(train, test))
