"""Orders of sharded examples: permutations, each a function of seed and position alone."""

import numpy as np
import pytest

from bnjax.data.order import Order

SIZES = (5, 3, 4)
SIZE = sum(SIZES)
SHUFFLES = ("shards", "within_shard", "thorough")
BATCH = 4


def shard_of(indices, sizes=SIZES):
    return np.searchsorted(np.cumsum(sizes), indices, side="right")


def epoch(shuffle, number, seed=0, sizes=SIZES):
    size = sum(sizes)
    return Order(seed, sizes, shuffle).indices(number * size, size)


GOLDEN = {
    "shards": [5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7, 8],
    "within_shard": [5, 6, 7, 9, 8, 11, 10, 1, 3, 0, 4, 2, 6, 5, 7, 9],
    "thorough": [8, 4, 1, 6, 3, 2, 11, 7, 5, 9, 10, 0, 11, 3, 9, 1],
}


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_orders_never_change(shuffle):
    """Across versions of bnjax and NumPy: a run of today must be repeatable in years."""
    order = Order(7, SIZES, shuffle)
    got = order.indices(0, 16)
    assert got.dtype == np.int64
    assert got.tolist() == GOLDEN[shuffle]


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("number", [0, 1, 2**40])
def test_each_example_comes_once_an_epoch(shuffle, number):
    assert sorted(epoch(shuffle, number)) == list(range(SIZE))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_position_holds_the_same_example_however_it_is_reached(shuffle):
    """Alone, in a batch, across the ends of epochs, whatever was asked before."""
    order = Order(3, SIZES, shuffle)
    run = order.indices(0, 5 * SIZE)
    for first in (0, 7, SIZE - 1, 3 * SIZE - 2):
        for count in (1, 5, 2 * SIZE):
            np.testing.assert_array_equal(
                Order(3, SIZES, shuffle).indices(first, count), run[first : first + count]
            )


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_seeds_and_epochs_differ(shuffle):
    sizes = (6,) * 20
    orders = [epoch(shuffle, number, seed, sizes) for seed in (0, 1) for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def meetings(shuffle):
    """For each pair of examples, in how many of 60 epochs a batch holds both."""
    sizes = (8,) * 6
    size = sum(sizes)
    met = np.zeros((size, size), int)
    for number in range(60):
        for batch in epoch(shuffle, number, sizes=sizes).reshape(-1, BATCH):
            met[np.ix_(batch, batch)] += 1
    return met, shard_of(np.arange(size), sizes)


def test_shards_keep_their_batches():
    """Two batches a shard: who meets once meets in every epoch."""
    met, _ = meetings("shards")
    assert set(np.unique(met)) == {0, 60}
    assert np.all((met == 60).sum(1) == BATCH)


def test_within_a_shard_everyone_meets_and_nobody_else():
    """An example meets 3 of the 7 others of its shard: 60 * 3/7 = 25.7 times, of deviation 3.8."""
    met, shard = meetings("within_shard")
    same = shard[:, None] == shard[None]
    others = same & ~np.eye(len(shard), dtype=bool)
    assert np.all(met[~same] == 0)
    assert met[others].min() > 25.7 - 4.5 * 3.8
    assert met[others].max() < 25.7 + 4.5 * 3.8
    assert met[others].mean() == pytest.approx(60 * 3 / 7)


def test_thorough_shuffling_knows_no_shards():
    """An example meets 3 of the 47 others: the share of its own shard is 7 of 47."""
    met, shard = meetings("thorough")
    same = (shard[:, None] == shard[None]) & ~np.eye(len(shard), dtype=bool)
    total = met.sum() - np.trace(met)
    assert met[same].sum() / total == pytest.approx(7 / 47, abs=0.02)
    sizes = (SIZE,)
    np.testing.assert_array_equal(epoch("thorough", 2), epoch("thorough", 2, sizes=sizes))


def test_the_order_of_shards_is_even():
    """Each of three shards comes first in a third of 600 epochs, within 4.5 deviations."""
    first = np.bincount(
        [shard_of(epoch("within_shard", number)[0]) for number in range(600)], minlength=3
    )
    assert np.all(np.abs(first - 200) < 4.5 * np.sqrt(600 * 2 / 9))


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (Order(0, SIZES, "none"), "shuffle must be one of 'shards', .*; got 'none'"),
        (Order(-1, SIZES, "shards"), "seed must be in .* got -1"),
        (Order(2**64, SIZES, "shards"), "seed must be in"),
        (Order(0, (), "shards"), r"shard_sizes must be of 1 and more, got \(\)"),
        (Order(0, (3, 0), "shards"), "shard_sizes must be of 1 and more"),
    ],
)
def test_bad_orders_are_refused(order, said):
    with pytest.raises(ValueError, match=said):
        order.check()
