"""Gradient accumulation: one update from several micro-batches, and its effect on BN.

Each micro-batch is normalized by its own moments: a ghost batch. Parameters move as they would
with one batch normalized in groups of that size, `bnjax.normalize_batch(..., batch=k)`, and not as
with one batch normalized as a whole. The latter cannot be computed piece by piece: the moments of a
layer need all examples, as the layers below made them with moments of all examples, and gradients
flow through all of them. For that, give the whole batch to one step, with `jax.checkpoint` to save
memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bnjax.scalars import check_choice, integer
from bnjax.training.averaging import is_inexact, widened
from bnjax.training.objectives import Metrics
from bnjax.training.state import TrainState
from bnjax.training.updates import (
    AxisName,
    as_each_devices,
    step_keys,
    sum_over_devices,
    update,
)

Tree = Any

Loss = Callable[..., tuple[jax.Array, tuple[Tree, Metrics]]]
"""`loss(params, batch_stats, batch, key=None) -> (sum, (new batch_stats, metrics))`: the loss
summed over the `metrics.examples` that count; for example from `bnjax.training.steps.make_loss`."""

Statistics = Literal["once", "each"]
"""How micro-batches move the running statistics: see `accumulate`."""


class Accumulated(NamedTuple):
    """The ingredients of one update.

    Attributes:
        gradient: that of the mean loss over all examples that count; dtypes of the parameters.
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
    """Returns the gradient over several micro-batches, computed one after another.

    Memory holds the activations of one. The gradient of the summed loss is divided by the summed
    count, in at least float32, so that a micro-batch weighs as much as it has examples that count.
    If none has any, the gradient is zero. Until then a micro-batch's is that of its summed loss, in
    the parameters' types: in float16 it may overflow where that of a mean does not.

    The running statistics move

    - `"once"`: as by one update with the mean of the micro-batches' moments, weighted by their
      examples. Each micro-batch starts from `batch_stats`, and the results are averaged, which is
      the same because an update is affine in the moments. They equal those of one batch in groups,
      unless masks leave unequal groups: unbiased variances then differ a little, and where a
      feature is masked as a whole, its old statistics take part.
    - `"each"`: by each micro-batch in turn, as in as many steps. For statistics that remember as
      many updates of the parameters as before, `decay` should then be
      `decay ** (1 / micro_batches)`.

    Args:
        loss: the loss of one micro-batch.
        params: the parameters to differentiate by.
        batch_stats: statistics before the update; an empty dict without normalization.
        batches: a tree of arrays `[micro_batches, ...]`, for example from `split_batch`.
        statistics: `"once"` or `"each"`; there is no default because papers rarely say.
        key: PRNG key of random layers; micro-batch i's loss is given the key with i folded in.
        axis_name: mapped axes of devices that hold a share of each micro-batch; all sums are taken
            over them together, once, at the end.

    Raises:
        ValueError: for bad `statistics`, or batches without a common leading axis; where a mean
            becomes complex that is not in `batch_stats`.
    """
    check_choice("statistics", statistics, Statistics)
    once = statistics == "once"
    numbers = jnp.arange(_leading("batches", batches))
    keys = () if key is None else (jax.vmap(partial(jax.random.fold_in, key))(numbers),)

    # Carried from one micro-batch to the next: three sums, of gradients, of what micro-batches
    # would change in floating statistics (under "once"), and of metrics; and the statistics.
    def visit(carry: tuple[Tree, Tree], batch: tuple[Tree, ...]) -> tuple[tuple[Tree, Tree], None]:
        sums, stats = carry
        old = batch_stats if once else stats
        gradient, (new, metrics) = jax.grad(loss, has_aux=True)(params, old, *batch)
        changes = _weighted_changes(old, new, metrics.examples) if once else ()
        sums = jax.tree.map(
            lambda total, part: total + part.astype(total.dtype), sums, (gradient, changes, metrics)
        )
        return (sums, _with_largest_counts(stats, new) if once else new), None

    params = as_each_devices(params, axis_name)
    parts = params, _floats(batch_stats) if once else (), Metrics.zero()
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(widened(leaf)), parts)
    zeros = as_each_devices(zeros, axis_name)
    (sums, stats), _ = lax.scan(visit, (zeros, batch_stats), (batches, *keys))
    gradient, changes, metrics = sum_over_devices(sums, axis_name)
    examples = jnp.maximum(metrics.examples, 1)

    def mean(total: jax.Array, like: jax.Array) -> jax.Array:
        return (total / examples.astype(total.dtype)).astype(like.dtype)

    def moved(old: jax.Array, change: jax.Array | None) -> jax.Array:
        return old if change is None else old + mean(change, old)

    gradient = jax.tree.map(mean, gradient, params)
    return Accumulated(gradient, jax.tree.map(moved, stats, changes) if once else stats, metrics)


def make_accumulating_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    statistics: Statistics,
    axis_name: AxisName = None,
) -> Callable[[TrainState, Tree], tuple[TrainState, Metrics]]:
    """Makes a step on `batches` of leaves `[micro_batches, ...]`: one update, one step counted.

    Arguments and errors are those of `accumulate`.
    """
    check_choice("statistics", statistics, Statistics)

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
    """Returns leaves `[n, ...]` as `[micro_batches, n / micro_batches, ...]`.

    Examples stay in order, so that micro-batches are the groups of
    `bnjax.normalize_batch(batch=n / micro_batches)`. Where examples are divided over devices, split
    them into micro-batches first, and then divide the second axis: otherwise each micro-batch
    would lie on a few devices.

    Raises:
        ValueError: if `micro_batches` does not divide the examples, or leaves differ in their
            number.

    Example:
        >>> images, labels = split_batch((jnp.zeros((6, 8, 8, 3)), jnp.zeros(6)), micro_batches=2)
        >>> images.shape, labels.shape
        ((2, 3, 8, 8, 3), (2, 3))
    """
    examples = _leading("batch", batch)
    if integer("micro_batches", micro_batches) < 1 or examples % micro_batches:
        raise ValueError(
            f"micro_batches={micro_batches} must be >= 1 and divide the {examples} examples."
        )
    return jax.tree.map(
        lambda leaf: leaf.reshape(micro_batches, examples // micro_batches, *leaf.shape[1:]), batch
    )


def _leading(name: str, tree: Tree) -> int:
    """Returns the size of the first axis, which all leaves share."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if not shapes or len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            f"{name} must be arrays that share a leading axis of one or more, got shapes {shapes}."
        )
    return shapes[0][0]


def _floats(tree: Tree) -> Tree:
    """Returns a tree with None, which has no leaves, in place of its counts."""
    return jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, tree)


def _weighted_changes(old: Tree, new: Tree, examples: jax.Array) -> Tree:
    """Returns the change of floating statistics by a micro-batch, times its examples."""

    def change(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        if jnp.iscomplexobj(new) and not jnp.iscomplexobj(old):  # the sums would cut it
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"batch_stats has {name} of {old.dtype}, which becomes {new.dtype}: convert it "
                f"before the first step, .astype('{new.dtype}')."
            )
        old = widened(old)
        weighted = examples.astype(old.dtype) * (new.astype(old.dtype) - old)
        return jnp.where(examples > 0, weighted, 0)  # 0 * NaN is NaN

    return jax.tree_util.tree_map_with_path(change, *map(_floats, (old, new)))


def _with_largest_counts(stats: Tree, new: Tree) -> Tree:
    """Returns the statistics with the largest counts: a micro-batch without examples adds none."""
    return jax.tree.map(
        lambda kept, new: kept if is_inexact(kept) else jnp.maximum(kept, new), stats, new
    )
