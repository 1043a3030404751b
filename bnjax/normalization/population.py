"""Population statistics from many batches, after training (Algorithm 2 of the 2015 paper)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization.batch_norm import RunningVar, update_stats
from bnjax.normalization.moments import Moments

Tree = Any


def population_stats(
    batch_moments: Callable[[Tree], Tree],
    batches: Tree,
    *,
    running_var: RunningVar = "unbiased",
) -> Tree:
    """E[x] and Var[x] for every layer at once, with the parameters frozen.

    E[x] is the mean of the batches' means, Var[x] the mean of their variances, times m/(m-1) if
    `"unbiased"`. The variance between the batches' means is left out, as in the paper. Training
    statistics are neither read nor changed.

    Args:
        batch_moments: pure function from one batch to a tree whose nodes are `Moments`, one for
            each normalization layer, for example `bnjax.linen.batch_moments` of a model.
        batches: tree of arrays `[batches, ...]`; scanned, so memory holds one batch's activations.
        running_var: as in `normalize_batch`.

    Returns:
        The tree with `{"mean", "var"}` in the place of each `Moments`: a `batch_stats` to
        evaluate with.

    Raises:
        ValueError: if there is no batch, or the function returns no `Moments`.
    """
    lengths = {len(leaf) for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"batches must share a leading axis of one or more batches, got lengths {lengths}."
        )
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    shapes = jax.eval_shape(batch_moments, first)
    nodes, _ = jax.tree.flatten(shapes, is_leaf=_is_moments)
    if not nodes or not all(map(_is_moments, nodes)):
        raise ValueError(
            "batch_moments must return a tree of Moments, one for each normalization layer, got "
            f"{jax.tree.structure(shapes)}."
        )

    def start(moments: Moments) -> dict[str, jax.Array]:
        zeros = jnp.zeros(moments.mean.shape, moments.mean.dtype)
        return {"mean": zeros, "var": zeros, "count": jnp.zeros(zeros.shape, jnp.int32)}

    def visit(stats: Tree, batch: Tree) -> tuple[Tree, None]:
        return jax.tree.map(
            lambda moments, old: update_stats(
                old, moments, averaging="cumulative", running_var=running_var
            ),
            batch_moments(batch),
            stats,
            is_leaf=_is_moments,
        ), None

    stats, _ = lax.scan(visit, jax.tree.map(start, shapes, is_leaf=_is_moments), batches)
    return jax.tree.map(
        lambda _, new: {"mean": new["mean"], "var": new["var"]}, shapes, stats, is_leaf=_is_moments
    )


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)
