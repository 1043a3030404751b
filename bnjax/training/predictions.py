"""Predictions averaged over views and networks, and how many of them are wrong.

Ioffe & Szegedy 2015, section 4.2.3: the mean of the class probabilities. Probabilities are kept as
logarithms, so that classes keep their order where float32 would round all of them to zero.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from bnjax.scalars import integer
from bnjax.training.objectives import check_classification


class Errors(NamedTuple):
    """Counts over examples; add two of them with `jax.tree.map(jnp.add, a, b)`.

    Attributes:
        top_1: examples whose label is not the most probable class, int32.
        top_5: examples whose label is not among the five most probable classes, int32.
        examples: how many, int32.
    """

    top_1: jax.Array
    top_5: jax.Array
    examples: jax.Array


def mean_prediction(log_probabilities: jax.Array, axis: int) -> jax.Array:
    """Returns the logarithms of the probabilities' mean over an axis, in float32.

    Args:
        log_probabilities: `[..., classes]`, of views or of networks along `axis`.
        axis: the axis to average over.
    """
    logs = log_probabilities.astype(jnp.float32)
    return logsumexp(logs, axis) - jnp.log(jnp.float32(logs.shape[axis]))


def predict(
    logits_of: Callable[[jax.Array], jax.Array], views: jax.Array, *, at_once: int
) -> jax.Array:
    """Returns the mean prediction of one network over the views of each example.

    Args:
        logits_of: images `[n, ...]` to logits `[n, classes]`.
        views: `[n, views, ...]`.
        at_once: views of each example that are computed together, to bound the memory; divides
            their number.

    Returns:
        Logarithms of probabilities, float32 `[n, classes]`.

    Raises:
        ValueError: while tracing, if `at_once` does not divide the number of views.
    """
    n, count, *image = views.shape
    if integer("at_once", at_once) < 1 or count % at_once:
        raise ValueError(f"at_once must divide the {count} views of an example, got {at_once}.")

    def of_part(part: jax.Array) -> jax.Array:
        logits = logits_of(part.reshape(n * at_once, *image))
        logs = jax.nn.log_softmax(logits.astype(jnp.float32))
        return mean_prediction(logs.reshape(n, at_once, -1), 1)

    parts = jnp.moveaxis(views.reshape(n, count // at_once, at_once, *image), 1, 0)
    return mean_prediction(jax.lax.map(of_part, parts), 0)


def count_errors(
    log_probabilities: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> Errors:
    """Counts the top-1 and top-5 errors of a batch.

    Of classes that are equally probable the first counts as more so, as for `argmax`. A label whose
    probability is NaN is an error.

    Args:
        log_probabilities: `[n, classes]`; or logits, or anything else that orders the classes.
        labels: int `[n]`, in `range(classes)`.
        mask: bool `[n]`; what is False does not count.

    Raises:
        ValueError: while tracing, if shapes or dtypes do not fit.

    Example:
        >>> log_probabilities = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]))
        >>> count_errors(log_probabilities, jnp.array([0, 0])).top_1
        Array(1, dtype=int32)
    """
    check_classification(log_probabilities, labels, mask, name="log_probabilities")
    labels = labels[:, None]
    own = jnp.take_along_axis(log_probabilities, labels, 1)
    later = jnp.arange(log_probabilities.shape[1])[None] > labels
    behind = (log_probabilities < own) | ((log_probabilities == own) & later)
    rank = log_probabilities.shape[1] - 1 - behind.sum(1)  # NaN counts as before the label
    counted = jnp.ones(rank.shape, bool) if mask is None else mask

    def errors(most: int) -> jax.Array:
        wrong = (rank >= most) | jnp.isnan(own[:, 0])
        return (wrong & counted).sum(dtype=jnp.int32)

    return Errors(errors(1), errors(5), counted.sum(dtype=jnp.int32))
