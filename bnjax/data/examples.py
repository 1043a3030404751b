"""What a data set of encoded images is: examples by index, in two splits."""

from typing import NamedTuple, Protocol

import numpy as np

Image = bytes | np.ndarray
"""An encoded JPEG or PNG file, whatever its name is, or uint8 `[height, width, 1 or 3]`."""

SHARD_SIZE = 1251
"""Examples of a shard where data is not stored in shards of this size or less: those of ImageNet,
1,281,167 images in 1,024 files."""


class Example(NamedTuple):
    """One image, not decoded yet.

    Attributes:
        image: encoded, or pixels.
        label: its class.
        name: says which record this is, for messages.
    """

    image: Image
    label: int
    name: str


class Examples(Protocol):
    """A split: random access by index; `pickle` carries it to worker processes."""

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Examples of each shard; shards are consecutive ranges."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Reads one example; DataError, naming it, if it cannot be read."""
        ...


class ImageData(NamedTuple):
    """A data set of images, opened but not read.

    Attributes:
        name: the name that it was asked for by.
        classes: labels are 0 .. classes - 1.
        train: what to learn from.
        validation: what to measure on.
        sha256: hex digest that tells data sets apart, the same for a copy on another machine.
            Reading every byte would take hours, so it does not prove that no byte was changed; each
            kind of data says what goes into it.
    """

    name: str
    classes: int
    train: Examples
    validation: Examples
    sha256: str


def split_shards(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of shards, none larger than `SHARD_SIZE`: larger ones fall into parts of equal size.

    So one big file behaves as many small ones do; the parts differ by one example at most.
    """
    parts: list[int] = []
    for size in sizes:
        count = -(-size // SHARD_SIZE)
        parts += [size * (part + 1) // count - size * part // count for part in range(count)]
    return tuple(parts)
