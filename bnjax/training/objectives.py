"""Losses and metrics as sums over examples; the one division comes last, on the host."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.scalars import number

Objective = Callable[..., tuple[jax.Array, "Metrics"]]
"""`objective(outputs, labels, mask=None) -> (loss, metrics)`: the loss to minimize, summed over the
examples that count, and the metrics, whose loss may be another one."""


class Metrics(NamedTuple):
    """Sums over examples; add two of them with `jax.tree.map(jnp.add, a, b)`.

    Attributes:
        loss: summed cross-entropy in nats, float32.
        correct: examples whose largest logit is their label's, int32.
        examples: how many, int32.

    Example:
        >>> metrics = Metrics(loss=jnp.array(3.0), correct=jnp.array(5), examples=jnp.array(6))
        >>> float(metrics.loss) / int(metrics.examples)  # divided once, on the host
        0.5
    """

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array

    @classmethod
    def zero(cls) -> "Metrics":
        """Returns the sums over no examples."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))


def classification_metrics(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> Metrics:
    """Returns cross-entropy and accuracy of a batch, as sums.

    Args:
        logits: `[n, classes]`.
        labels: int `[n]`, in `range(classes)`; of others the loss is NaN, or that of another class.
            Check them once on the host with `check_labels`.
        mask: bool `[n]`; what is False does not count, its gradient is zero, NaN included.

    Returns:
        The sums; what has NaN among its logits is not correct.

    Raises:
        ValueError: while tracing, if shapes or dtypes do not fit.

    Example:
        >>> logits = jnp.array([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
        >>> metrics = classification_metrics(logits, jnp.array([0, 1, 1]))
        >>> int(metrics.correct), int(metrics.examples)
        (2, 3)
    """
    check_classification(logits, labels, mask)
    logits = _without_masked(logits, mask)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    # `argmax` takes NaN for the largest.
    correct = (jnp.argmax(logits, -1) == labels) & ~jnp.isnan(logits).any(-1)
    counted = jnp.ones(labels.shape, bool) if mask is None else mask
    return Metrics(
        jnp.where(counted, loss, 0).sum(),
        (correct & counted).sum(dtype=jnp.int32),
        counted.sum(dtype=jnp.int32),
    )


def smoothed_cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None, *, smoothing: float
) -> jax.Array:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, 1512.00567, section 7), summed.

    The label's distribution is mixed with the uniform one: q'(k) = (1 - e) [k = label] + e/K, so
    that a label keeps 1 - e + e/K of K classes.

    Args:
        logits: `[n, classes]`.
        labels: int `[n]`, in `range(classes)`.
        mask: bool `[n]`; what is False does not count, its gradient is zero, NaN included.
        smoothing: e, in [0, 1); 0.1 in the paper.

    Returns:
        The sum in nats, float32.

    Raises:
        ValueError: while tracing, for a bad `smoothing`, or shapes or dtypes that do not fit.
    """
    _check_smoothing("smoothing", smoothing)
    check_classification(logits, labels, mask)
    logits = _without_masked(logits, mask)
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_label = jnp.take_along_axis(logs, labels[:, None], 1)[:, 0]
    # Without smoothing, a class may be impossible: 0 * -inf is NaN.
    loss = -((1 - smoothing) * of_label + smoothing * logs.mean(1)) if smoothing else -of_label
    return (loss if mask is None else jnp.where(mask, loss, 0)).sum()


def classification_objective(
    *, label_smoothing: float = 0.0, auxiliary_weights: Sequence[float] = ()
) -> Objective:
    """Makes the cross-entropy of a classifier and of its side heads, if it has any.

    The metrics are those of the main logits with plain labels, so that runs with different
    objectives can be compared.

    Args:
        label_smoothing: smoothing of all heads, as in the released Inception-v3 code; 0.1 there.
        auxiliary_weights: weights of the side heads' losses, which are added to the main one:
            (0.3, 0.3) for GoogLeNet, (0.4,) for Inception-v3 (the released code; the paper has no
            number).

    Returns:
        An `Objective`; its outputs are logits `[n, classes]`, or a pair of those and a tuple of the
        side heads', such as `bnjax.models.Logits`. It raises ValueError, while tracing, if the
        heads are not as many as the weights.

    Example:
        >>> objective = classification_objective(label_smoothing=0.1)
        >>> loss, metrics = objective(jnp.zeros((2, 10)), jnp.array([3, 7]))
        >>> round(float(loss), 3)  # twice log 10
        4.605
    """
    _check_smoothing("label_smoothing", label_smoothing)
    weights = tuple(auxiliary_weights)
    for weight in weights:
        number("auxiliary_weights", weight)

    def objective(
        outputs: Any, labels: jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, Metrics]:
        main, auxiliary = outputs if isinstance(outputs, tuple) else (outputs, ())
        if len(auxiliary) != len(weights):
            raise ValueError(
                f"auxiliary_weights={weights} must be one for each side head, of which the network "
                f"returns {len(auxiliary)}."
            )

        def loss(logits: jax.Array) -> jax.Array:
            return smoothed_cross_entropy(logits, labels, mask, smoothing=label_smoothing)

        # All are sums over the same examples, so the weights are those of the means as well.
        total = sum(
            (w * loss(head) for w, head in zip(weights, auxiliary, strict=True)), loss(main)
        )
        return total, jax.tree.map(
            jax.lax.stop_gradient, classification_metrics(main, labels, mask)
        )

    return objective


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Refuses labels that are not classes, before any compute: the loss would be NaN or wrong.

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


def check_classification(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None, *, name: str = "logits"
) -> None:
    """Raises ValueError unless logits (or scores of this `name`), labels and mask fit together."""
    for argument, value in ((name, logits), ("labels", labels), ("mask", mask)):
        if value is not None and not (hasattr(value, "dtype") and hasattr(value, "astype")):
            raise ValueError(
                f"{argument} must be an array, got {type(value).__name__}: use "
                f"jnp.asarray({argument})."
            )
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"{name} must be [n, classes] and labels [n], got {logits.shape} and {labels.shape}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integer class numbers, got {labels.dtype}.")
    if mask is not None and (mask.dtype != bool or mask.shape != labels.shape):
        raise ValueError(
            f"mask must be bool {list(labels.shape)}, got {mask.dtype} {list(mask.shape)}."
        )


def _without_masked(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns zeros where masked: to leave out a loss of NaN leaves its gradient NaN."""
    return logits if mask is None else jnp.where(mask[:, None], logits, 0)


def _check_smoothing(name: str, smoothing: float) -> None:
    if not 0 <= number(name, smoothing) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {smoothing}; the paper has 0.1.")
