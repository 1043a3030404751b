"""Orders of sharded examples: permutations, each a function of seed and position alone."""

import numpy as np
import pytest

from bnjax.data.order import Order, batch_indices, epoch_order, permutation

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
        (Order(0, SIZES, "none"), "shuffle must be one of 'shards', .*, got 'none'"),
        (Order(0, (), "shards"), r"shard_sizes must be of 1 and more, got \(\)"),
        (Order(0, (3, 0), "shards"), "shard_sizes must be of 1 and more"),
    ],
)
def test_bad_orders_are_refused(order, said):
    with pytest.raises(ValueError, match=said):
        order.check()


@pytest.mark.parametrize("size", [1, 7, 60, 4000])
def test_every_epoch_is_a_permutation(size):
    for epoch in (0, 1, 5):
        order = epoch_order(3, epoch, size)
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_the_order_is_the_one_of_the_published_results():
    """A change of these numbers changes every result that is committed."""
    assert epoch_order(0, 0, 4000)[:8].tolist() == [1926, 3556, 3085, 2561, 1051, 998, 3767, 2483]
    assert epoch_order(0, 0, 60_000)[:4].tolist() == [47848, 34552, 24994, 32827]
    assert epoch_order(9, 49, 60_000)[-4:].tolist() == [21358, 33334, 18912, 42333]


def test_seed_and_epoch_both_set_the_order():
    """Red if they only add up: seed 1, epoch 0 would repeat seed 0, epoch 1."""
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_an_order_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 5)[0] = 1


@pytest.mark.parametrize(("batch_size", "size"), [(60, 4000), (7, 10), (10, 10), (4, 6), (1, 3)])
def test_every_example_is_seen_equally_often(batch_size, size):
    """Red if the rest of an epoch is dropped or repeated; 60 does not divide 4,000."""
    steps = 3 * size  # then whole epochs have passed
    seen = batch_indices(1, 0, steps, batch_size=batch_size, size=size)
    assert seen.shape == (steps, batch_size)
    assert seen.dtype == np.int32
    counts = np.bincount(seen.ravel(), minlength=size)
    np.testing.assert_array_equal(counts, np.full(size, 3 * batch_size))


def test_a_batch_across_epochs_ends_one_and_begins_the_next():
    batch = batch_indices(0, 2, 1, batch_size=4, size=10)[0]  # examples 8 to 11
    expected = [*epoch_order(0, 0, 10)[8:], *epoch_order(0, 1, 10)[:2]]
    np.testing.assert_array_equal(batch, expected)


@pytest.mark.parametrize("parts", [[1] * 10, [3, 7], [9, 1], [2, 5, 3]])
def test_dispatches_do_not_change_the_order(parts):
    whole = batch_indices(5, 20, 10, batch_size=7, size=16)
    starts = 20 + np.cumsum([0, *parts[:-1]])
    pieces = [
        batch_indices(5, int(start), steps, batch_size=7, size=16)
        for start, steps in zip(starts, parts, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_integers_of_numpy_do_not_wrap():
    """Red where a position above 2^31 is the product of two of them."""
    given = {"batch_size": 7, "size": 16}
    batch = batch_indices(np.int32(5), np.int32(2**30), np.int32(1), **given)
    np.testing.assert_array_equal(batch, batch_indices(5, 2**30, 1, **given))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be between 1 and the 10 training examples, got 0"),
        ({"batch_size": 11}, "batch_size must be between 1 and the 10 training examples, got 11"),
        ({"first_step": -1}, "first_step must be >= 0, got -1"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"first_step": 0.5}, "first_step must be an integer, got 0.5"),
    ],
)
def test_bad_arguments_of_batch_indices(arguments, message):
    given = {"seed": 0, "first_step": 0, "steps": 1, "batch_size": 4, "size": 10} | arguments
    with pytest.raises(ValueError, match=message):
        batch_indices(**given)


@pytest.mark.parametrize("arguments", [(0, -1, 5), (0, 2**64, 5), (0, 0, 0)])
def test_bad_arguments_of_epoch_order(arguments):
    _, epoch, size = arguments
    with pytest.raises(ValueError, match=f"epoch={epoch}, size={size}"):
        epoch_order(*arguments)


@pytest.mark.parametrize(
    ("seed", "said"),
    [
        (-1, r"seed must be in 0 \.\. 2\*\*64 - 1, got -1"),
        (2**64, r"seed must be in 0 \.\. 2\*\*64 - 1, got 18446744073709551616"),
        (1.5, "seed must be an integer, got 1.5"),
        ("1", "seed must be an integer, got '1'"),
        (None, "seed must be an integer, got None"),
        (True, "seed must be an integer, got True"),
    ],
)
@pytest.mark.parametrize(
    "order",
    [
        lambda seed: Order(seed, SIZES, "shards").check(),
        lambda seed: permutation(seed, 0, 5),
        lambda seed: epoch_order(seed, 0, 5),
        lambda seed: batch_indices(seed, 0, 1, batch_size=4, size=10),
    ],
    ids=["Order", "permutation", "epoch_order", "batch_indices"],
)
def test_bad_seeds_are_refused_alike(order, seed, said):
    with pytest.raises(ValueError, match=said):
        order(seed)


def test_the_largest_seed():
    assert sorted(permutation(2**64 - 1, 2**64 - 1, 5)) == [0, 1, 2, 3, 4]
