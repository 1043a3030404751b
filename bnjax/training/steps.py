"""Training and evaluation steps as pure functions. Nothing here is compiled or placed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bnjax.training.accumulation import Loss
from bnjax.training.averaging import widened
from bnjax.training.objectives import Metrics, Objective, classification_metrics
from bnjax.training.state import TrainState
from bnjax.training.updates import AxisName, step_keys, sum_over_devices, update

Variables = Any
TrainApply = Callable[..., tuple[Any, Any]]
"""Variables and images to what the objective takes (logits) and new `batch_stats`. In a run whose
state has a `key`, the step's key is a third argument."""

EvalApply = Callable[[Variables, jax.Array], jax.Array]
"""Variables and images to logits."""

Batch = tuple[jax.Array, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, Metrics]:
    """The objective of `make_train_step` by default; arguments of `classification_metrics`."""
    metrics = classification_metrics(logits, labels, mask)
    return metrics.loss, metrics


def make_train_step(
    apply: TrainApply,
    tx: optax.GradientTransformation,
    objective: Objective = cross_entropy,
    *,
    axis_name: AxisName = None,
) -> TrainStep:
    """A step on one batch `(images, labels)`: the mean objective's gradient, one update.

    Args:
        apply: the network in training.
        tx: the optimizer.
        objective: what to minimize.
        axis_name: mapped axes of devices that hold a share of the batch. Gradient and metrics are
            then summed over them and divided by the count of all, so that all devices return the
            same. Layers that share moments are given it by themselves.
    """
    loss = make_loss(apply, objective)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = step_keys(state)

        def mean(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            total, (batch_stats, metrics) = loss(params, state.batch_stats, batch, *keys)
            if axis_name is not None:  # the count of all is not known yet
                return total, (batch_stats, metrics)
            count = jnp.maximum(metrics.examples, 1)  # none, under a mask: no gradient
            return total / count.astype(jnp.float32), (batch_stats, metrics)

        gradient, (batch_stats, metrics) = jax.grad(mean, has_aux=True)(state.params)
        if axis_name is not None:
            gradient, metrics = sum_over_devices((gradient, metrics), axis_name)
            count = jnp.maximum(metrics.examples, 1).astype(jnp.float32)
            gradient = jax.tree.map(
                lambda total: (widened(total) / count).astype(total.dtype), gradient
            )
        return update(state, tx, gradient, batch_stats, metrics)

    return train_step


def make_loss(apply: TrainApply, objective: Objective = cross_entropy) -> Loss:
    """The summed loss of a batch `(images, labels)`, as `make_accumulating_step` takes it.

    A third array of the batch is a mask bool `[n]` of the examples that the objective counts;
    normalization counts all of them.
    """

    def loss(
        params: Any, batch_stats: Any, batch: Any, *key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        images, labels, *mask = batch
        outputs, batch_stats = apply({"params": params, "batch_stats": batch_stats}, images, *key)
        total, metrics = objective(outputs, labels, *mask)
        return total, (batch_stats, metrics)

    return loss


def scan_batches(step: TrainStep) -> TrainStep:
    """Many steps in one dispatch: `step` on batches of leaves `[steps, n, ...]`, metrics summed."""

    def run(state: TrainState, batches: Any) -> tuple[TrainState, Metrics]:
        if len(jax.tree.leaves(batches)[0]) == 1:  # XLA's CPU backend convolves slowly in a loop
            return step(state, jax.tree.map(lambda leaf: leaf[0], batches))
        state, metrics = lax.scan(step, state, batches)
        return state, jax.tree.map(lambda each: each.sum(0, dtype=each.dtype), metrics)

    return run


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
