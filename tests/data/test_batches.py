"""The order of examples is a function of (seed, step); evaluation sees each example once."""

import numpy as np
import pytest

from bnjax.data.batches import batch_indices, epoch_order, eval_batches


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be between 1 and the 10 training examples, got 0"),
        ({"batch_size": 11}, "batch_size must be between 1 and the 10 training examples, got 11"),
        ({"first_step": -1}, "first_step=-1"),
        ({"steps": 0}, "steps=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_of_batch_indices(arguments, message):
    given = {"seed": 0, "first_step": 0, "steps": 1, "batch_size": 4, "size": 10} | arguments
    with pytest.raises(ValueError, match=message):
        batch_indices(**given)


@pytest.mark.parametrize("arguments", [(-1, 0, 5), (0, -1, 5), (0, 0, 0)])
def test_bad_arguments_of_epoch_order(arguments):
    seed, epoch, size = arguments
    with pytest.raises(ValueError, match=f"seed={seed}, epoch={epoch}, size={size}"):
        epoch_order(*arguments)


@pytest.mark.parametrize(("size", "batch_size"), [(10, 5), (10, 3), (2, 5), (1, 1)])
def test_evaluation_sees_every_example_once(size, batch_size):
    """Red if the last batch is dropped, or its padding counts."""
    images = np.arange(1, size + 1, dtype=np.uint8).reshape(size, 1, 1, 1) * np.ones(
        (1, 2, 3, 1), np.uint8
    )
    labels = np.arange(size, dtype=np.int32)[::-1].copy()
    batches = eval_batches(images, labels, batch_size)
    count = -(-size // batch_size)
    assert batches.images.shape == (count, batch_size, 2, 3, 1)
    assert batches.labels.shape == batches.mask.shape == (count, batch_size)
    assert (batches.images.dtype, batches.labels.dtype, batches.mask.dtype) == (
        np.uint8,
        np.int32,
        bool,
    )
    np.testing.assert_array_equal(batches.images[batches.mask], images)
    np.testing.assert_array_equal(batches.labels[batches.mask], labels)


@pytest.mark.parametrize(
    ("images", "labels", "batch_size", "message"),
    [
        (3, 2, 1, "got 3 images, 2 labels"),
        (0, 0, 1, "got 0 images"),
        (3, 3, 0, "batch_size=0"),
    ],
)
def test_bad_arguments_of_eval_batches(images, labels, batch_size, message):
    with pytest.raises(ValueError, match=message):
        eval_batches(np.zeros((images, 2)), np.zeros(labels), batch_size)
