"""Data in memory: splits that are arrays of pixels and labels, and their batches."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from bnjax.data.array_records import RecordSplit
from bnjax.data.data_set import DataError, DataSet, Example, Split, check_label, split_shards
from bnjax.scalars import integer

MOST_BYTES = 4 << 30
"""Most that `in_memory` takes unless told otherwise: Tiny ImageNet has a third of it, ImageNet at
64 x 64 pixels four times as much."""


_READ = 1000
"""Records read at once: some megabytes at 64 x 64 pixels."""


@dataclass(frozen=True, repr=False, eq=False)
class ArraySplit:
    """Images in memory, with their labels.

    Attributes:
        images: uint8 `[n, height, width, 1 or 3]`.
        labels: int32 `[n]`.
        name: of the split, for messages.
        shards: sizes of the shards of the data that was decoded; None for equal ones.

    Raises:
        ValueError: if images and labels differ in number, labels are no integers `[n]`, or shards
            are not those of as many images.

    Example:
        >>> images, labels = np.zeros((5, 8, 8, 3), np.uint8), np.arange(5, dtype=np.int32)
        >>> split = ArraySplit(images, labels, name="mine")
        >>> len(split), split[3].label, split[3].name
        (5, 3, 'mine image 3')
    """

    images: np.ndarray
    labels: np.ndarray
    name: str = "split"
    shards: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(
                f"{self.name}: images and labels must be of the same length, got "
                f"{len(self.images)} images and {len(self.labels)} labels."
            )
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{self.name}: labels must be integers [n], got {labels.dtype} "
                f"{list(labels.shape)}."
            )
        if self.shards is not None and sum(self.shards) != len(self.images):
            raise ValueError(
                f"{self.name}: shards must be the sizes of those of {len(self.images)} images, got "
                f"{sum(self.shards)} in all: of other images than the shards', give None."
            )

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Sizes of its shards, whose examples follow one another."""
        return self.shards or split_shards((len(self.labels),))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]), f"{self.name} image {index}")


def in_memory(data: DataSet[Split], *, most_bytes: int = MOST_BYTES) -> DataSet[ArraySplit]:
    """Decodes a small data set, each image once.

    Args:
        data: whose images all have one size. One that is in memory is returned as it is.
        most_bytes: refuse a data set whose pixels take more.

    Returns:
        The same name, digest, shards and order of examples, with `images` uint8
        `[n, height, width, channels]` and `labels` int32 `[n]` in both splits.

    Raises:
        DataError: the data is too large, an image has another size than the first or cannot be
            decoded, or a label is not one of the classes.

    Example:
        >>> from bnjax.data import open_data
        >>> in_memory(open_data("mnist5k")).train.images.shape
        (4000, 28, 28, 1)
    """
    if isinstance(data.train, ArraySplit) and isinstance(data.test, ArraySplit):
        return cast(DataSet[ArraySplit], data)
    from bnjax.data.views.decoding import open_image  # takes Pillow, which arrays do not

    example = data.train[0]
    try:
        first = open_image(example.image)
    except DataError as error:
        raise DataError(f"{example.name}: {error}") from error
    shape = (first.height, first.width, data.channels)
    count = len(data.train) + len(data.test)
    if (size := count * math.prod(shape)) > most_bytes:
        raise DataError(
            f"{data.name}: {count:,} images of {first.width} x {first.height} pixels take {size:,} "
            f"bytes in memory, more than most_bytes={most_bytes:,}: read it in batches "
            "(bnjax.data.stream), or raise most_bytes."
        )
    train = _decode(data.train, "train", shape, data.classes)
    test = _decode(data.test, "test", shape, data.classes)
    return DataSet(data.name, data.classes, data.channels, train, test, data.sha256)


def _decode(split: Split, name: str, shape: tuple[int, int, int], classes: int) -> ArraySplit:
    from bnjax.data.views.decoding import decode_image

    images = np.empty((len(split), *shape), np.uint8)
    labels = np.empty(len(split), np.int32)
    for index, example in enumerate(_read(split)):
        try:
            pixels = decode_image(example.image)
        except DataError as error:
            raise DataError(f"{example.name}: {error}") from error
        if pixels.shape[:2] != shape[:2]:
            raise DataError(
                f"{example.name}: has {pixels.shape[1]} x {pixels.shape[0]} pixels, the first is "
                f"{shape[1]} x {shape[0]}, and in memory all must have one size: read images of "
                "many sizes in batches of views (bnjax.data.stream)."
            )
        check_label(example, classes)
        images[index] = pixels[..., : shape[-1]]  # the channels of a grayscale image are equal
        labels[index] = example.label
    return ArraySplit(images, labels, name, tuple(split.shard_sizes))


def _read(split: Split) -> Iterator[Example]:
    """Yields all examples, many read at once from files where that is faster."""
    if not isinstance(split, RecordSplit):
        yield from (split[index] for index in range(len(split)))
        return
    for first in range(0, len(split), _READ):
        yield from split.__getitems__(range(first, min(first + _READ, len(split))))


def digest(train: ArraySplit, test: ArraySplit) -> str:
    """Returns the hex SHA-256 of train images, train labels, test images and test labels.

    Arrays are hashed in C order, labels as little-endian int32: the digest is the same whichever
    way the data came.
    """
    sha256 = hashlib.sha256()
    for split in (train, test):
        sha256.update(np.ascontiguousarray(split.images, "u1").data)
        sha256.update(np.ascontiguousarray(split.labels, "<i4").data)
    return sha256.hexdigest()


class EvalBatches(NamedTuple):
    """All examples once, in equal batches; the last one is padded.

    Attributes:
        images: `[batches, batch_size, ...]`.
        labels: int32 `[batches, batch_size]`.
        mask: bool `[batches, batch_size]`; False on padding.
    """

    images: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


def eval_batches(images: np.ndarray, labels: np.ndarray, batch_size: int) -> EvalBatches:
    """Splits a test set into equal batches, so that each example counts exactly once.

    Args:
        images: `[n, ...]`.
        labels: `[n]`.
        batch_size: examples per batch.

    Raises:
        ValueError: if there is no example, or lengths differ, or batch_size < 1.
    """
    batch_size = integer("batch_size", batch_size, least=1)
    images, labels = np.asarray(images), np.asarray(labels)
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            "images and labels must be of the same length >= 1, got "
            f"{len(images)} images, {len(labels)} labels."
        )
    padding = -len(images) % batch_size

    def split(values: np.ndarray) -> np.ndarray:
        padded = np.concatenate([values, np.zeros((padding, *values.shape[1:]), values.dtype)])
        return padded.reshape(-1, batch_size, *values.shape[1:])

    return EvalBatches(split(images), split(labels), split(np.ones(len(images), bool)))
