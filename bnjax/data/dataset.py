"""What a data set is: images and labels in two splits, checked, with a digest of every byte."""

import hashlib
from typing import NamedTuple

import numpy as np


class DataError(RuntimeError):
    """Data is missing, damaged or not to be had; the message says where and what to do."""


class Split(NamedTuple):
    """Images with their labels.

    Attributes:
        images: uint8 [n, height, width, channels], 0 is background.
        labels: int32 [n], the class of each image.
    """

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set held in memory.

    Attributes:
        name: the name it was asked for by.
        train: what to learn from.
        test: what to measure on.
        num_classes: labels are 0 .. num_classes - 1.
        sha256: hex digest over train images, train labels, test images and test labels, in C order,
            little-endian; the same whichever way the data came.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    sha256: str


def make_dataset(name: str, train: Split, test: Split, *, num_classes: int) -> Dataset:
    """Puts two splits together with their digest."""
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update(np.ascontiguousarray(split.images, "u1").data)
        digest.update(np.ascontiguousarray(split.labels, "<i4").data)
    return Dataset(name, train, test, num_classes, digest.hexdigest())


def check_split(
    split: Split, *, count: int, image_shape: tuple[int, ...], num_classes: int, where: str
) -> None:
    """Refuses a split that is not what its data set is known to be.

    Args:
        split: what was read.
        count: how many examples it must have.
        image_shape: height, width and channels that each image must have.
        num_classes: every label must be in 0 .. num_classes - 1.
        where: names the split in the message.

    Raises:
        DataError: a shape, a dtype, a count or a label is another.
    """
    images, labels = split
    for field, array, expected in (
        ("images", images, ("uint8", (count, *image_shape))),
        ("labels", labels, ("int32", (count,))),
    ):
        got = (str(array.dtype), array.shape)
        if got != expected:
            raise DataError(
                f"{where}: expected {field} {expected[0]} {list(expected[1])}, "
                f"got {got[0]} {list(got[1])}"
            )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"{where}: labels must be in 0 .. {num_classes - 1}, "
            f"got {labels.min()} .. {labels.max()}"
        )
