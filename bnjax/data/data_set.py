"""A data set has two splits, whose examples are read by index."""

from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

Image = bytes | np.ndarray
"""An encoded JPEG or PNG file, whatever its name is, or uint8 `[height, width, 1 or 3]`."""

SHARD_SIZE = 1251
"""Most examples of a shard; that of ImageNet's 1,281,167 images in 1,024 files."""


class DataError(RuntimeError):
    """Data is missing, damaged or cannot be had; the message says where and what to do."""


class Example(NamedTuple):
    """One image, not decoded yet.

    Attributes:
        image: encoded, or pixels.
        label: its class.
        name: tells which record this is, for messages.
    """

    image: Image
    label: int
    name: str


class Split(Protocol):
    """Examples by index; `pickle` carries them to worker processes."""

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Examples of each shard; shards are consecutive ranges."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Reads one example; DataError, naming it, if it cannot be read."""
        ...


S = TypeVar("S", bound=Split, covariant=True)


class DataSet(NamedTuple, Generic[S]):
    """A data set: opened, or with splits of arrays held in memory (`bnjax.data.in_memory`).

    Attributes:
        name: the name it was asked for by; a path is shortened to its last parts.
        classes: labels are 0 .. classes - 1.
        channels: 1 if the data is of grayscale images, else 3. Views always have 3.
        train: what to learn from.
        test: what to measure on.
        sha256: hex digest that tells data sets apart, the same for a copy on another machine. For
            MNIST's relatives it covers every pixel and label (`bnjax.data.arrays.digest`). Reading
            every byte of larger data would take hours, so theirs does not prove that no byte was
            changed; each kind of data says what it covers.

    Example:
        >>> from bnjax.data import open_data
        >>> digits = open_data("mnist5k")
        >>> len(digits.train), len(digits.test), digits.classes
        (4000, 1000, 10)
    """

    name: str
    classes: int
    channels: int
    train: S
    test: S
    sha256: str


def check_label(example: Example, classes: int | None = None) -> None:
    """Raises DataError, naming the example, unless its label is one of the classes.

    Where their number is unknown, it must not be negative.
    """
    if example.label < 0 or (classes is not None and example.label >= classes):
        wanted = ">= 0" if classes is None else f"in 0 .. {classes - 1}"
        hint = ", the mark of what has none: give images that have labels"
        raise DataError(
            f"{example.name}: labels must be {wanted}, got {example.label}"
            f"{hint if example.label == -1 else ''}."
        )


def split_shards(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns sizes of shards of at most `SHARD_SIZE`: larger ones are cut into equal parts.

    So one big file behaves as many small ones do; the parts differ by one example at most.
    """
    parts: list[int] = []
    for size in sizes:
        count = -(-size // SHARD_SIZE)
        parts += [size * (part + 1) // count - size * part // count for part in range(count)]
    return tuple(parts)
