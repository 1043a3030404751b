"""The order of training examples, computed from the seed and never stored.

Position p is the p-th example that training sees, counted from step 0 over all hosts; epochs follow
one another without a gap. Which example stands there is a function of the seed and of p alone, so
that a run resumes at any step on any number of hosts.

The order comes from raw bits of NumPy's Philox generator, whose stream NumPy guarantees across
versions; it depends neither on JAX nor on the backend.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from bnjax.scalars import check_choice, check_seed, integer

Shuffle = Literal["shards", "within_shard", "thorough"]
"""Ways to shuffle, from the least thorough to the most:

- `"shards"`: each epoch draws the order of the shards; the examples of a shard keep their order, so
  the same ones meet in a batch in every epoch. So we read the paper's Inception and BN-Baseline.
- `"within_shard"`: the examples of each shard are drawn as well: a batch is of one shard (or of two
  neighbours), but of other examples each time. The sixth change of section 4.2.1, which the paper
  credits with about 1 % of validation accuracy.
- `"thorough"`: one permutation of all examples each epoch; shards do not matter.
"""


class Order(NamedTuple):
    """The example at each position.

    Attributes:
        seed: of the order, in 0 .. 2**64 - 1.
        shard_sizes: examples of each shard; shards are consecutive ranges of the stored examples.
        shuffle: how thorough.
    """

    seed: int
    shard_sizes: tuple[int, ...]
    shuffle: Shuffle

    def check(self) -> None:
        """Raises ValueError for a bad seed, an unknown shuffle, or an empty shard."""
        check_choice("shuffle", self.shuffle, Shuffle)
        check_seed(self.seed)
        if not self.shard_sizes or min(self.shard_sizes) < 1:
            raise ValueError(f"shard_sizes must be of 1 and more, got {self.shard_sizes}.")

    def indices(self, first: int, count: int) -> np.ndarray:
        """Returns the stored examples at `count` positions from `first` on, int64 `[count]`."""
        size = sum(self.shard_sizes)
        parts = []
        for epoch in range(first // size, (first + count - 1) // size + 1):
            begin = first - epoch * size
            parts.append(_epoch(self, epoch)[max(begin, 0) : begin + count])
        return np.concatenate(parts).astype(np.int64)


@lru_cache(maxsize=2)  # a batch that ends an epoch and begins the next; 10 MB for ImageNet
def _epoch(order: Order, epoch: int) -> np.ndarray:
    sizes = np.array(order.shard_sizes)
    if order.shuffle == "thorough":
        return permutation(order.seed, epoch, int(sizes.sum()))
    bits = np.random.Philox(key=np.array([order.seed, epoch], np.uint64))
    rank = np.argsort(np.argsort(bits.random_raw(len(sizes)), kind="stable"))
    stored = np.arange(sizes.sum())
    # Shards by rank, and examples of a shard by their own bits. Bits are drawn for the shards
    # first: the order of shards must not depend on how thoroughly their examples are shuffled.
    key = bits.random_raw(len(stored)) if order.shuffle == "within_shard" else stored
    return np.lexsort((key, np.repeat(rank, sizes))).astype(np.int32)


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns a permutation of `range(size)`, int32 `[size]`, for one epoch of one seed.

    Raises:
        ValueError: for a seed or epoch outside of 0 .. 2**64 - 1, or a size below one; for what is
            no integer.
    """
    seed, epoch, size = check_seed(seed), integer("epoch", epoch), integer("size", size)
    if not 0 <= epoch < 2**64 or size < 1:
        raise ValueError(
            f"epoch must be in 0 .. 2**64 - 1 and size >= 1, got epoch={epoch}, size={size}."
        )
    key = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(key, kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=64)  # seeds that train together take their batches in turn
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns `permutation` and remembers it: steps of an epoch follow one another."""
    return permutation(seed, epoch, size)


def batch_indices(
    seed: int, first_step: int, steps: int, *, batch_size: int, size: int
) -> np.ndarray:
    """Returns the examples of `steps` batches from `first_step` on, int32 `[steps, batch_size]`.

    The order is `"thorough"`, for data in memory. A batch may end one epoch and begin the next, so
    every example is seen equally often whatever the batch size.

    Raises:
        ValueError: if the batch is empty or larger than the data, a step below zero, or the seed
            outside of 0 .. 2**64 - 1; for what is no integer.

    Example:
        >>> batch_indices(0, first_step=0, steps=2, batch_size=3, size=6).shape
        (2, 3)
        >>> sorted(batch_indices(0, first_step=0, steps=2, batch_size=3, size=6).ravel().tolist())
        [0, 1, 2, 3, 4, 5]
    """
    seed, first_step = check_seed(seed), integer("first_step", first_step, least=0)
    steps, size = integer("steps", steps, least=1), integer("size", size)
    batch_size = integer("batch_size", batch_size)
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size must be between 1 and the {size} training examples, got {batch_size}."
        )
    first, last = first_step * batch_size, (first_step + steps) * batch_size
    epochs = range(first // size, (last - 1) // size + 1)
    order = np.concatenate([epoch_order(seed, epoch, size) for epoch in epochs])
    offset = first - epochs[0] * size
    return order[offset : offset + last - first].reshape(steps, batch_size)
