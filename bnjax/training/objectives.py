"""Losses and metrics as sums over examples; the one division comes last, on the host."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Metrics(NamedTuple):
    """Sums over examples; add two of them with `jax.tree.map(jnp.add, a, b)`.

    Attributes:
        loss: summed cross-entropy in nats, float32.
        correct: examples whose largest logit is their label's, int32.
        examples: how many, int32.
    """

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array

    @classmethod
    def zero(cls) -> "Metrics":
        """The sums over nothing."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))


def classification_metrics(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> Metrics:
    """Cross-entropy and accuracy of a batch, as sums.

    Args:
        logits: `[n, classes]`.
        labels: int `[n]`, in `range(classes)`; check them once on the host with `check_labels`.
        mask: bool `[n]`; what is False does not count.

    Raises:
        ValueError: while tracing, if shapes or dtypes do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be [n, classes] and labels [n], got {logits.shape} and {labels.shape}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integer class numbers, got {labels.dtype}.")
    if mask is not None and (mask.dtype != bool or mask.shape != labels.shape):
        raise ValueError(
            f"mask must be bool {list(labels.shape)}, got {mask.dtype} {list(mask.shape)}."
        )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    correct = jnp.argmax(logits, -1) == labels
    counted = jnp.ones(labels.shape, bool) if mask is None else mask
    return Metrics(
        jnp.where(counted, loss, 0).sum(),
        (correct & counted).sum(dtype=jnp.int32),
        counted.sum(dtype=jnp.int32),
    )


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Refuses labels that are no class, before any compute: the loss would be NaN or wrong.

    Raises:
        ValueError: with the first bad label and its position.
    """
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        where = int(bad.argmax())
        raise ValueError(
            f"labels must be in 0..{classes - 1}, got {int(labels[where])} at position {where}: "
            "count classes from zero."
        )
