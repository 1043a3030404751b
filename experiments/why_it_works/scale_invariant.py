"""A network of digits whose loss does not change when a layer's weights grow: normalized, float64.

Two layers with batch normalization, without scale and bias, and a last layer that is fixed. The
variance has no epsilon to speak of: 1e-5 would break the invariance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.data import DataSet
from bnjax.data.order import batch_indices
from experiments.why_it_works.standardize import TINY, standardize

_WIDTHS = (784, 100, 100)
_CLASSES = 10
Weights = list[jax.Array]


class Problem(NamedTuple):
    """What is minimized.

    Attributes:
        loss: `(weights, images and labels) -> mean loss`.
        weights: the initial ones, `[inputs, outputs]` of each layer.
        batches: images `[steps, batch, 784]` and labels `[steps, batch]`.
    """

    loss: Callable[[Weights, Any], jax.Array]
    weights: Weights
    batches: tuple[jax.Array, jax.Array]


def problem(
    seed: int, data: DataSet, *, steps: int, batch_size: int, epsilon: float = TINY
) -> Problem:
    """Returns a network's training problem; order and weights are a function of the seed."""
    rng = np.random.default_rng(seed)
    pairs = zip(_WIDTHS, (*_WIDTHS[1:], _CLASSES), strict=True)
    drawn = [jnp.asarray(rng.normal(size=pair) / np.sqrt(pair[0])) for pair in pairs]
    *weights, last = drawn
    images = data.train.images.reshape(len(data.train), -1) / 255.0
    order = batch_indices(seed, 0, steps, batch_size=batch_size, size=len(images))

    def loss(weights: Weights, batch: Any) -> jax.Array:
        x, labels = batch
        for kernel in weights:
            x = jax.nn.relu(standardize(x @ kernel, epsilon=epsilon))
        losses = optax.softmax_cross_entropy_with_integer_labels(x @ last, labels)
        return losses.mean()

    return Problem(
        loss, weights, (jnp.asarray(images[order]), jnp.asarray(data.train.labels[order]))
    )
