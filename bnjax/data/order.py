"""The order of examples that are stored in shards, computed from the seed and never stored.

Position p is the p-th example that training sees, counted from step 0 over all hosts; epochs follow
one another without a gap. Which example stands there is a function of the seed and of p alone, so
that a run resumes at any step on any number of hosts.
"""

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np

from bnjax.data.batches import permutation

Shuffle = Literal["shards", "within_shard", "thorough"]
"""From the least thorough to the most:

- `"shards"`: each epoch draws the order of the shards; the examples of a shard keep their order, so
  the same ones meet in a batch in every epoch. So we read the paper's Inception and BN-Baseline.
- `"within_shard"`: the examples of each shard are drawn as well: a batch is of one shard (or of two
  neighbours), but of other examples each time. The sixth change of section 4.2.1, which the paper
  credits with about 1 % of validation accuracy.
- `"thorough"`: one permutation of all examples each epoch; shards do not matter.
"""


class Order(NamedTuple):
    """Which example stands at which position.

    Attributes:
        seed: of the order, >= 0.
        shard_sizes: examples of each shard; shards are consecutive ranges of the stored examples.
        shuffle: how thorough.
    """

    seed: int
    shard_sizes: tuple[int, ...]
    shuffle: Shuffle

    def check(self) -> None:
        """Raises ValueError for a bad seed, an unknown shuffle, or an empty shard."""
        if self.shuffle not in get_args(Shuffle):
            choices = ", ".join(map(repr, get_args(Shuffle)))
            raise ValueError(f"shuffle must be one of {choices}; got {self.shuffle!r}.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0 .. 2**64 - 1, got {self.seed}.")
        if not self.shard_sizes or min(self.shard_sizes) < 1:
            raise ValueError(f"shard_sizes must be of 1 and more, got {self.shard_sizes}.")

    def indices(self, first: int, count: int) -> np.ndarray:
        """The stored examples at `count` positions from `first` on, int64 `[count]`."""
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
    key = bits.random_raw(len(stored)) if order.shuffle == "within_shard" else stored
    return np.lexsort((key, np.repeat(rank, sizes))).astype(np.int32)
