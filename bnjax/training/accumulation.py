"""Gradient accumulation: one update from several micro-batches, and what that does to BN.

Each micro-batch is normalized by its own moments: a ghost batch. Parameters move as they would
with one batch normalized in groups of that size, `bnjax.normalize_batch(..., batch=k)`, and not as
with one batch normalized as a whole. That cannot be had piece by piece: the moments of a layer
need all examples as the layers below made them, from moments of all examples, and gradients flow
through all of them. For it, give the whole batch to one step, with `jax.checkpoint` to save memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bnjax.training.averaging import is_float, widened
from bnjax.training.objectives import Metrics
from bnjax.training.state import TrainState
from bnjax.training.updates import AxisName, step_keys, sum_over_devices, update

Tree = Any

Loss = Callable[..., tuple[jax.Array, tuple[Tree, Metrics]]]
"""`loss(params, batch_stats, batch, key=None) -> (sum, (new batch_stats, metrics))`: the loss
summed over the `metrics.examples` that count; for example from `bnjax.training.steps.make_loss`."""

Statistics = Literal["once", "each"]
"""How micro-batches move the running statistics: see `accumulate`."""


class Accumulated(NamedTuple):
    """What one update is made from.

    Attributes:
        gradient: of the mean loss over all examples that count; dtypes of the parameters.
        batch_stats: the new running statistics.
        metrics: sums over all micro-batches.
    """

    gradient: Tree
    batch_stats: Tree
    metrics: Metrics


def accumulate(
    loss: Loss,
    params: Tree,
    batch_stats: Tree,
    batches: Tree,
    *,
    statistics: Statistics,
    key: jax.Array | None = None,
    axis_name: AxisName = None,
) -> Accumulated:
    """The gradient over several micro-batches, one after another: memory holds one's activations.

    It is the summed losses' gradient over the summed count, in at least float32, hence a
    micro-batch counts by its examples, and one without any not at all. If none has any, the
    gradient is zero.

    The running statistics move

    - `"once"`: as one update by the mean of the micro-batches' moments, weighted by their
      examples. All start from `batch_stats`, and what they make of it is averaged, which is the
      same because an update is affine in the moments. They are those of one batch in groups,
      unless masks leave unequal groups: unbiased variances then differ a little, and where a
      feature is masked as a whole, its old statistics take part.
    - `"each"`: by each micro-batch in turn, as in as many steps: `decay` should then be
      `decay ** (1 / micro_batches)`, for statistics that remember as many updates of the
      parameters.

    Args:
        loss: of one micro-batch.
        params: to differentiate by.
        batch_stats: before the update; an empty dict without normalization.
        batches: tree of arrays `[micro_batches, ...]`, for example from `split_batch`.
        statistics: `"once"` or `"each"`; there is no default because papers rarely say.
        key: of random layers; micro-batch i's loss is given the key with i folded in.
        axis_name: mapped axes of devices that hold a share of each micro-batch; all sums go over
            them, at the end and at once.

    Raises:
        ValueError: for bad `statistics`, or batches without a common leading axis.
    """
    _check_statistics(statistics)
    numbers = jnp.arange(_leading("batches", batches))
    keys = () if key is None else (jax.vmap(partial(jax.random.fold_in, key))(numbers),)
    first = jax.tree.map(lambda leaf: leaf[0], (batches, *keys))
    _, (_, metrics) = jax.eval_shape(loss, params, batch_stats, *first)
    start = Accumulated(
        jax.tree.map(_zeros, params),
        batch_stats if statistics == "each" else _start_mean(batch_stats),
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics),
    )

    def visit(sums: Accumulated, batch: tuple[Tree, ...]) -> tuple[Accumulated, None]:
        old = sums.batch_stats if statistics == "each" else batch_stats
        gradient, (new, metrics) = jax.grad(loss, has_aux=True)(params, old, *batch)
        if statistics == "once":
            new = _add_change(sums.batch_stats, batch_stats, new, metrics.examples)
        gradient = jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums.gradient, gradient)
        return Accumulated(gradient, new, jax.tree.map(jnp.add, sums.metrics, metrics)), None

    sums, _ = lax.scan(visit, start, (batches, *keys))
    sums = _over_devices(sums, axis_name, statistics)
    examples = jnp.maximum(sums.metrics.examples, 1)

    def mean(total: jax.Array, like: jax.Array) -> jax.Array:
        return (total / examples.astype(total.dtype)).astype(like.dtype)

    new = sums.batch_stats
    if statistics == "once":
        new = jax.tree.map(
            lambda total, old: old + mean(total, old) if is_float(old) else total, new, batch_stats
        )
    return Accumulated(jax.tree.map(mean, sums.gradient, params), new, sums.metrics)


def make_accumulating_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    statistics: Statistics,
    axis_name: AxisName = None,
) -> Callable[[TrainState, Tree], tuple[TrainState, Metrics]]:
    """A training step on `batches`, leaves `[micro_batches, ...]`: one update, one step counted.

    Arguments and errors are those of `accumulate`.
    """
    _check_statistics(statistics)

    def train_step(state: TrainState, batches: Tree) -> tuple[TrainState, Metrics]:
        gradient, batch_stats, metrics = accumulate(
            loss,
            state.params,
            state.batch_stats,
            batches,
            statistics=statistics,
            key=next(iter(step_keys(state)), None),
            axis_name=axis_name,
        )
        return update(state, tx, gradient, batch_stats, metrics)

    return train_step


def split_batch(batch: Tree, micro_batches: int) -> Tree:
    """Leaves `[n, ...]` as `[micro_batches, n / micro_batches, ...]`, of consecutive examples.

    The groups of `bnjax.normalize_batch(batch=n / micro_batches)`. Where examples are divided over
    devices, make the micro-batches before placing them, divided along the second axis; otherwise
    each would lie on a few devices.

    Raises:
        ValueError: if it does not divide the examples, or leaves differ in their number.
    """
    examples = _leading("batch", batch)
    if micro_batches < 1 or examples % micro_batches:
        raise ValueError(
            f"micro_batches={micro_batches} must be >= 1 and divide the {examples} examples."
        )
    return jax.tree.map(
        lambda leaf: leaf.reshape(micro_batches, examples // micro_batches, *leaf.shape[1:]), batch
    )


def _check_statistics(statistics: str) -> None:
    if statistics not in get_args(Statistics):
        raise ValueError(f"statistics must be 'once' or 'each', got {statistics!r}.")


def _leading(name: str, tree: Tree) -> int:
    """The size of the first axis, which all leaves share."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if not shapes or len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            f"{name} must be arrays that share a leading axis of one or more, got shapes {shapes}."
        )
    return shapes[0][0]


def _over_devices(sums: Accumulated, axis_name: AxisName, statistics: Statistics) -> Accumulated:
    """The sums over devices; statistics that moved once are sums too, weighted by examples."""
    if axis_name is None:
        return sums
    gradient, leaves, metrics = sums
    leaves, tree = jax.tree.flatten(leaves)
    weighted = [statistics == "once" and is_float(leaf) for leaf in leaves]
    own = [leaf for leaf, is_sum in zip(leaves, weighted, strict=True) if is_sum]
    gradient, own, metrics = sum_over_devices((gradient, own, metrics), axis_name)
    rest = iter(own)
    leaves = [next(rest) if is_sum else leaf for leaf, is_sum in zip(leaves, weighted, strict=True)]
    return Accumulated(gradient, jax.tree.unflatten(tree, leaves), metrics)


def _start_mean(batch_stats: Tree) -> Tree:
    return jax.tree.map(lambda leaf: _zeros(leaf) if is_float(leaf) else leaf, batch_stats)


def _add_change(sums: Tree, old: Tree, new: Tree, examples: jax.Array) -> Tree:
    """The sums with what one micro-batch changed, times its examples; of counts, the largest."""

    def add(total: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
        if not is_float(old):
            return jnp.maximum(total, new)
        change = new.astype(total.dtype) - old.astype(total.dtype)
        return total + jnp.where(examples > 0, examples.astype(total.dtype) * change, 0)

    return jax.tree.map(add, sums, old, new)


def _zeros(leaf: jax.Array) -> jax.Array:
    return jnp.zeros_like(widened(leaf))
