"""A network's pass in training."""

from typing import Any

import flax.linen as nn
import jax

Variables = Any


def apply_train(
    model: nn.Module, variables: Variables, images: jax.Array, key: jax.Array | None = None
) -> tuple[Any, Any]:
    """The outputs of a network in training, and its new statistics.

    `functools.partial(apply_train, model)` is what `bnjax.training.steps.make_train_step` takes.

    Args:
        model: any network that takes `train`.
        variables: `{"params": ..., "batch_stats": ...}`; not changed. The latter is empty, or
            absent, for a network whose layers keep no statistics.
        images: `[n, ...]`, as the network takes them.
        key: for dropout; a network without it needs none.

    Returns:
        What the network returns, and the `batch_stats` after this batch: an empty dictionary if it
        has none.

    Example:
        >>> from bnjax.models import MLP
        >>> model, images = MLP((8,), norm="batch"), jnp.ones((4, 2, 2, 1))
        >>> variables = model.init(jax.random.key(0), images, train=False)
        >>> logits, batch_stats = apply_train(model, variables, images)
        >>> logits.shape, sorted(batch_stats["hidden1"]["norm"])
        ((4, 10), ['mean', 'var'])
    """
    rngs = {} if key is None else {"dropout": key}
    outputs, updates = model.apply(
        variables, images, train=True, mutable=["batch_stats"], rngs=rngs
    )
    return outputs, updates.get("batch_stats", {})
