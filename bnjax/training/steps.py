"""Training and evaluation steps as pure functions. Nothing here is compiled or placed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bnjax.training.accumulation import Loss
from bnjax.training.averaging import widened
from bnjax.training.objectives import Metrics, Objective, classification_metrics
from bnjax.training.state import TrainState
from bnjax.training.updates import (
    AxisName,
    as_each_devices,
    step_keys,
    sum_over_devices,
    update,
)

Tree = Any
State = TypeVar("State")
Variables = Any
TrainApply = Callable[..., tuple[Any, Any]]
"""`apply(variables, images) -> (outputs, new batch_stats)`; the objective takes the outputs
(logits). In a run whose state has a `key`, the step's key is a third argument."""

EvalApply = Callable[[Variables, jax.Array], jax.Array]
"""`apply(variables, images) -> logits`"""

Batch = tuple[jax.Array, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def cross_entropy(
    logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, Metrics]:
    """The default objective of `make_train_step`; arguments as of `classification_metrics`."""
    metrics = classification_metrics(logits, labels, mask)
    return metrics.loss, metrics


def make_train_step(
    apply: TrainApply,
    tx: optax.GradientTransformation,
    objective: Objective = cross_entropy,
    *,
    axis_name: AxisName = None,
) -> TrainStep:
    """Makes a step on one batch `(images, labels)`: the mean objective's gradient, one update.

    Args:
        apply: the network in training: `partial(apply_train, model)`, not `model.apply`.
        tx: the optimizer.
        objective: the loss to minimize.
        axis_name: mapped axes of devices that hold a share of the batch. Gradient and metrics are
            then summed over them, and the gradient is divided by the count of all, so that all
            devices return the same. Layers must be given the axes themselves. Until it is divided,
            the gradient is that of the sum, in the parameters' types: in float16 it may overflow
            where that of the mean, as without axes, does not.

    Raises:
        ValueError: from the step, while tracing, for a batch that is not `(images, labels)`, or
            `(images, labels, mask)` as `make_loss` says.

    Example:
        >>> from functools import partial
        >>> from bnjax.models import MLP, apply_train
        >>> model, images = MLP((8,), norm="batch"), jnp.ones((4, 2, 2, 1))
        >>> variables = model.init(jax.random.key(0), images, train=False)
        >>> params, batch_stats = variables["params"], variables["batch_stats"]
        >>> tx = optax.sgd(0.1)
        >>> step = jax.jit(make_train_step(partial(apply_train, model), tx))
        >>> state = TrainState(jnp.int32(0), params, batch_stats, tx.init(params))
        >>> state, metrics = step(state, (images, jnp.array([0, 1, 2, 3])))
        >>> int(state.step), int(metrics.examples)
        (1, 4)
    """
    loss = make_loss(apply, objective)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = step_keys(state)

        def mean(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
            total, (batch_stats, metrics) = loss(params, state.batch_stats, batch, *keys)
            if axis_name is not None:  # the sum: the count of all devices is not known yet
                return total, (batch_stats, metrics)
            count = jnp.maximum(metrics.examples, 1)  # a mask may leave none: no gradient then
            return total / count.astype(jnp.float32), (batch_stats, metrics)

        params = as_each_devices(state.params, axis_name)
        gradient, (batch_stats, metrics) = jax.grad(mean, has_aux=True)(params)
        if axis_name is not None:
            gradient, metrics = sum_over_devices((gradient, metrics), axis_name)
            count = jnp.maximum(metrics.examples, 1).astype(jnp.float32)
            gradient = jax.tree.map(
                lambda total: (widened(total) / count).astype(total.dtype), gradient
            )
        return update(state, tx, gradient, batch_stats, metrics)

    return train_step


def make_loss(apply: TrainApply, objective: Objective = cross_entropy) -> Loss:
    """Makes the summed loss of a batch `(images, labels)`, as `make_accumulating_step` takes it.

    A third array of the batch is a mask bool `[n]` of the examples that the objective counts;
    normalization counts all of them. What is no such batch is a ValueError, while tracing.
    """

    def loss(
        params: Any, batch_stats: Any, batch: Any, *key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        _check_batch(batch)
        images, labels, *mask = batch
        outputs, batch_stats = apply({"params": params, "batch_stats": batch_stats}, images, *key)
        total, metrics = objective(outputs, labels, *mask)
        return total, (batch_stats, metrics)

    return loss


def _check_batch(batch: Any) -> None:
    """Raises ValueError unless a batch is images and labels, in this order, and perhaps a mask."""
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) in (2, 3):
        return
    got = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        got = f"a dict of {', '.join(map(str, batch))}"
    elif isinstance(batch, Sequence):
        got += f" of {len(batch)}"
    raise ValueError(
        f"batch must be (images, labels) or (images, labels, mask), got {got}: give such a tuple, "
        "for example (batch['image'], batch['label'])."
    )


def scan_steps(
    step: Callable[[State, Tree], tuple[State, Metrics]],
) -> Callable[..., tuple[State, Metrics]]:
    """Makes one dispatch of many steps.

    Args:
        step: `(state, inputs of one step) -> (state, metrics)`, for example from `make_train_step`.

    Returns:
        `run(state, inputs) -> (state, metrics)`, with inputs of leaves `[steps, ...]`, for example
        batches, or indices of examples that lie on the device; the metrics are summed over steps.
        `run(state, inputs, count)` takes the first `count` of them, int32: one program for
        dispatches of any length up to `steps`.
    """

    def run(state: State, inputs: Tree, count: jax.Array | None = None) -> tuple[State, Metrics]:
        def at(i: int | jax.Array) -> Tree:
            return jax.tree.map(lambda leaf: leaf[i], inputs)

        if count is None and len(jax.tree.leaves(inputs)[0]) == 1:
            return step(state, at(0))  # XLA's CPU backend convolves slowly in a loop

        def body(carry: tuple[State, Metrics], own: Tree) -> tuple[tuple[State, Metrics], None]:
            state, sums = carry
            state, metrics = step(state, own)
            return (state, jax.tree.map(jnp.add, sums, metrics)), None

        start = state, Metrics.zero()
        if count is None:
            return lax.scan(body, start, inputs)[0]
        return lax.fori_loop(0, count, lambda i, carry: body(carry, at(i))[0], start)

    return run


def make_eval_step(
    apply: EvalApply, prepare: Callable[[jax.Array], jax.Array]
) -> Callable[..., Metrics]:
    """Makes the evaluation of a whole test set.

    Args:
        apply: the network in inference.
        prepare: stored images to network inputs, one batch at a time.

    Returns:
        `evaluate(variables, batches) -> metrics`, with `batches` an `EvalBatches` of arrays;
        batches are visited one after another, so that memory holds the activations of one. Others
        are a ValueError, while tracing.
    """

    def evaluate(variables: Variables, batches: Any) -> Metrics:
        if not all(hasattr(batches, name) for name in ("images", "labels", "mask")):
            raise ValueError(
                f"batches must be EvalBatches, got {type(batches).__name__}: make them with "
                "bnjax.data.arrays.eval_batches."
            )

        def body(sums: Metrics, batch: Any) -> tuple[Metrics, None]:
            logits = apply(variables, prepare(batch.images))
            metrics = classification_metrics(logits, batch.labels, batch.mask)
            return jax.tree.map(jnp.add, sums, metrics), None

        sums, _ = lax.scan(body, Metrics.zero(), batches)
        return sums

    return evaluate
