"""Training and evaluation steps as pure functions. Nothing here is compiled or placed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bnjax.training.objectives import Metrics, classification_metrics
from bnjax.training.state import TrainState

Variables = Any
TrainApply = Callable[[Variables, jax.Array], tuple[jax.Array, Any]]
"""Variables and images to logits and new `batch_stats`."""

EvalApply = Callable[[Variables, jax.Array], jax.Array]
"""Variables and images to logits."""

Batch = tuple[jax.Array, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(apply: TrainApply, tx: optax.GradientTransformation) -> TrainStep:
    """A step on one batch `(images, labels)`: the mean cross-entropy's gradient, one update."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images, labels = batch

        def loss(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            logits, batch_stats = apply(
                {"params": params, "batch_stats": state.batch_stats}, images
            )
            metrics = classification_metrics(logits, labels)
            return metrics.loss / metrics.examples.astype(jnp.float32), (batch_stats, metrics)

        gradient, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return train_step


def scan_steps(
    train_step: TrainStep, prepare: Callable[[jax.Array], jax.Array]
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Many steps in one dispatch, on data that lies on the device.

    Args:
        train_step: from `make_train_step`.
        prepare: stored images to network inputs, one batch at a time.

    Returns:
        `run(state, indices, images, labels) -> (state, metrics)`, with indices
        `[steps, batch_size]` into `images` and `labels`, and the metrics' sums over all steps.
    """

    def run(
        state: TrainState, indices: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def body(
            carry: tuple[TrainState, Metrics], chosen: jax.Array
        ) -> tuple[tuple[TrainState, Metrics], None]:
            state, sums = carry
            state, metrics = train_step(state, (prepare(images[chosen]), labels[chosen]))
            return (state, jax.tree.map(jnp.add, sums, metrics)), None

        carry, _ = lax.scan(body, (state, Metrics.zero()), indices)
        return carry

    return run


def make_eval_step(
    apply: EvalApply, prepare: Callable[[jax.Array], jax.Array]
) -> Callable[..., Metrics]:
    """Metrics over a whole test set.

    Returns:
        `evaluate(variables, batches) -> metrics`, with `batches` an `EvalBatches` of arrays;
        batches are visited one after another, so memory holds one batch's activations.
    """

    def evaluate(variables: Variables, batches: Any) -> Metrics:
        def body(sums: Metrics, batch: Any) -> tuple[Metrics, None]:
            logits = apply(variables, prepare(batch.images))
            metrics = classification_metrics(logits, batch.labels, batch.mask)
            return jax.tree.map(jnp.add, sums, metrics), None

        sums, _ = lax.scan(body, Metrics.zero(), batches)
        return sums

    return evaluate
