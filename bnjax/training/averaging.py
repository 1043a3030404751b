"""Averages of parameters over training, for evaluation.

    average = start_average(params)
    average = update_average(average, params, averaging="ema_tensorflow", decay=0.9999)
    model.apply({"params": average.values, "batch_stats": ...}, images, train=False)

Batch statistics belong to the weights they were measured with, and no training step ever saw the
activations of averaged weights. `bnjax.recalibration.recalibrate` measures theirs: prefer it for
numbers that are reported. The released Inception-v3 code averages the running statistics as well,
by the same rule: give `{"params": ..., "batch_stats": ...}` as one tree. That costs no pass over
data and suits curves drawn during training, but a mean of variances is not the variance under mean
weights; they differ more, the further the weights travel within the average's memory.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bnjax.scalars import check_choice, check_decay

Tree = Any

Averaging = Literal["ema", "ema_debiased", "ema_tensorflow", "cumulative"]
"""How the newest tree is weighted: see `update_average`."""


class Average(NamedTuple):
    """A running average of trees of arrays.

    Attributes:
        values: the average, in at least float32; ready for use at any time.
        updates: trees averaged, int32.
    """

    values: Tree
    updates: jax.Array


def start_average(tree: Tree) -> Average:
    """Returns the average before any update: a copy of the tree.

    Only `"ema"` and `"ema_tensorflow"` count it: give them the initial parameters. As a copy, it
    survives a train step that the tree is donated to.

    Raises:
        ValueError: for a leaf that is no array.

    Example:
        >>> start_average({"w": jnp.ones(2)}).updates
        Array(0, dtype=int32)
    """
    _check_arrays(tree)
    return Average(jax.tree.map(lambda leaf: jnp.copy(widened(leaf)), tree), jnp.int32(0))


def update_average(
    average: Average, tree: Tree, *, averaging: Averaging, decay: float = 0.9999
) -> Average:
    """Returns the average with one more tree, `values + weight * (tree - values)`.

    The weight of the newest tree, at update t = 1, 2, ...:

    - `"ema"`: 1 - decay. At first the average is that of the initial values.
    - `"ema_debiased"`: (1 - decay)/(1 - decay^t), which equals the average that starts from zero,
      divided by 1 - decay^t. The initial values do not count.
    - `"ema_tensorflow"`: 1 - min(decay, (1 + t)/(10 + t)), the rule of TensorFlow's averages that
      are told the number of updates, as those of the released Inception-v3 are.
    - `"cumulative"`: 1/t, the arithmetic mean of all trees (Polyak & Juditsky 1992), as for
      GoogLeNet; ignores `decay`. The initial values do not count. Begin late, as early iterates
      count as much as late ones. In float32 an update below 2^-24 of the value is lost: for more
      than about a million steps, update only every so many of them.

    Args:
        average: from `start_average`.
        tree: a tree of the same structure. Its counts, which are neither floating nor complex, are
            taken as they are.
        averaging: the rule; the same one at every update.
        decay: fraction of the old average kept, in [0, 1).

    Raises:
        ValueError: for a bad `averaging` or `decay`, or a leaf that is no array.

    Example:
        >>> average = start_average({"w": jnp.zeros(1)})
        >>> for value in (1.0, 3.0):
        ...     average = update_average(average, {"w": jnp.full(1, value)}, averaging="cumulative")
        >>> average.values
        {'w': Array([2.], dtype=float32)}
    """
    check_choice("averaging", averaging, Averaging)
    check_decay(decay)
    _check_arrays(tree)
    updates = average.updates + 1
    weight = _weight(averaging, decay, updates.astype(jnp.float32))
    forgets = averaging in ("ema_debiased", "cumulative")  # the initial values, at the first update

    def update(old: jax.Array, new: jax.Array) -> jax.Array:
        if not is_inexact(new):
            return new
        new = widened(new)
        moved = old + weight.astype(old.dtype) * (new - old)
        # By the formula, NaN would stay, and large values would round small ones away.
        return jnp.where(updates == 1, new, moved) if forgets else moved

    return Average(jax.tree.map(update, average.values, tree), updates)


def _check_arrays(tree: Tree) -> None:
    """Raises ValueError, which names the path, for a leaf that is no array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype"):
            name = f"tree{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{name} must be an array, got {type(leaf).__name__}: use jnp.asarray."
            )


def _weight(averaging: Averaging, decay: float, t: jax.Array) -> jax.Array:
    if averaging == "cumulative":
        return 1 / t
    if averaging == "ema_debiased":  # without the cancellation of a decay close to one
        log = math.log(decay) if decay else -math.inf
        return math.expm1(log) / jnp.expm1(log * t)
    if averaging == "ema_tensorflow":
        return jnp.maximum(1 - decay, 9 / (10 + t))
    return jnp.float32(1 - decay)


def widened(leaf: jax.Array) -> jax.Array:
    """Returns a floating array in at least float32, for long sums; any other as it is.

    No complex one is narrower.
    """
    narrow = is_inexact(leaf) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf


def is_inexact(leaf: jax.Array) -> bool:
    """Whether a leaf is floating or complex; counts are not, nor are keys."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
