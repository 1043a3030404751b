"""The order of training examples as a function of (seed, step), and batches for evaluation.

Nothing about the order is stored: a run that resumes at step k computes what it would have seen.
The order comes from raw bits of NumPy's Philox generator, whose stream NumPy guarantees across
versions; it depends neither on JAX nor on the backend.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of `range(size)`, int32 `[size]`, for one epoch of one seed.

    Raises:
        ValueError: for a seed or epoch below zero, or a size below one.
    """
    if seed < 0 or epoch < 0 or size < 1:
        raise ValueError(
            f"seed and epoch must be >= 0 and size >= 1, got seed={seed}, epoch={epoch}, "
            f"size={size}."
        )
    key = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(key, kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=64)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """`permutation`, remembered: steps of an epoch follow one another."""
    return permutation(seed, epoch, size)


def batch_indices(
    seed: int, first_step: int, steps: int, *, batch_size: int, size: int
) -> np.ndarray:
    """Indices of the examples of `steps` batches from `first_step` on, int32 `[steps, batch_size]`.

    Epochs follow one another without a gap: a batch may end one and begin the next, so every
    example is seen equally often whatever the batch size.

    Raises:
        ValueError: if the batch is empty or larger than the data, or a step below zero.
    """
    if not 1 <= batch_size <= size:
        raise ValueError(
            f"batch_size must be between 1 and the {size} training examples, got {batch_size}."
        )
    if first_step < 0 or steps < 1:
        raise ValueError(
            f"first_step must be >= 0 and steps >= 1, got first_step={first_step}, steps={steps}."
        )
    first, last = first_step * batch_size, (first_step + steps) * batch_size
    epochs = range(first // size, (last - 1) // size + 1)
    order = np.concatenate([epoch_order(seed, epoch, size) for epoch in epochs])
    offset = first - epochs[0] * size
    return order[offset : offset + last - first].reshape(steps, batch_size)


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
    if len(images) != len(labels) or len(images) == 0 or batch_size < 1:
        raise ValueError(
            "images and labels must be of the same length >= 1 and batch_size >= 1, got "
            f"{len(images)} images, {len(labels)} labels, batch_size={batch_size}."
        )
    padding = -len(images) % batch_size

    def split(values: np.ndarray) -> np.ndarray:
        padded = np.concatenate([values, np.zeros((padding, *values.shape[1:]), values.dtype)])
        return padded.reshape(-1, batch_size, *values.shape[1:])

    return EvalBatches(split(images), split(labels), split(np.ones(len(images), bool)))
