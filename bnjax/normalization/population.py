"""Population statistics from many batches, after training (Algorithm 2 of the 2015 paper)."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization.arguments import Stats
from bnjax.normalization.batch_norm import update_stats
from bnjax.normalization.meshes import divided_like, explicit_parts
from bnjax.normalization.moments import Moments, from_all_devices, merge, pool, unbiased
from bnjax.normalization.settings import RunningVar, check_choice

Tree = Any

Estimator = Literal["batchwise", "weighted", "pooled"]
"""How many batches become one estimate: see `population_stats`."""


def population_stats(
    batch_moments: Callable[[Tree], Tree],
    batches: Tree,
    *,
    running_var: RunningVar = "unbiased",
    estimator: Estimator = "batchwise",
    axis_name: str | Sequence[str] | None = None,
) -> Tree:
    """Returns E[x] and Var[x] for every layer at once, parameters frozen ("precise BN").

    Training statistics are neither read nor changed. Layers run in training mode: each one sees
    what the layers below made of the same batch, normalized by that batch's moments. With one
    layer, or with the layers below frozen, `"pooled"` is exact for the examples given; deeper
    down it describes activations in training mode, which differ from those at inference the more
    the smaller the batches are.

    The estimators, for batches i with means E_i, biased variances V_i and m_i values:

    - `"batchwise"`: the mean of E_i, and the mean of V_i, times m_i/(m_i-1) if `"unbiased"`, as
      Algorithm 2 has it. A batch counts once, however small. The variance between the batches'
      means is left out: harmless if batches are drawn at random, too small if they are sorted.
    - `"weighted"`: the same means, weighted by m_i: for batches of unequal sizes.
    - `"pooled"`: mean and variance of all values, the sum of m_i (V_i + (E_i - E)^2) over the
      sum of m_i = m, times m/(m-1) if `"unbiased"`. The batches' borders do not matter.

    Batches without a value for a feature (masked as a whole) do not count for it. Of batches that
    are normalized in groups, V_i is the variance within the groups and m_i the size of a group.

    Args:
        batch_moments: pure function from one batch to a tree whose nodes are `Moments`, one for
            each normalization layer, for example `bnjax.linen.model_moments` of a model. It is
            traced and compiled at each call, for it may hold other weights by then; who calls often
            does so in a function of the weights, under `jax.jit`.
        batches: tree of arrays `[batches, ...]`; scanned, so memory holds one batch's activations.
            Under `jit`, and on explicit meshes, the examples of each batch may be sharded; nothing
            else is needed then.
        running_var: as in `normalize_batch`.
        estimator: `"batchwise"`, `"weighted"` or `"pooled"`.
        axis_name: mapped axes (`pmap`, `shard_map`, `vmap`) over whose devices the batches are
            divided, each device having whole batches of its own. All of them get the same
            statistics. None if the layers share each batch over the devices already.

    Returns:
        The tree with `{"mean", "var"}` in the place of each `Moments`: a `batch_stats` to
        evaluate with.

    Raises:
        ValueError: if there is no batch, the function returns no `Moments`, or an explicit mesh
            divides the leading axis; for a bad choice.

    Example:
        >>> from bnjax import batch_moments
        >>> batches = jnp.array([[[0.0], [2.0]], [[10.0], [12.0]]])  # two batches of two examples
        >>> def of_a_layer(x):
        ...     return batch_moments(x, axes=(0,))
        >>> population_stats(of_a_layer, batches)
        {'mean': Array([6.], dtype=float32), 'var': Array([2.], dtype=float32)}
        >>> population_stats(of_a_layer, batches, running_var="biased", estimator="pooled")["var"]
        Array([26.], dtype=float32)
    """
    check_choices(estimator, running_var)
    lengths = {len(leaf) if jnp.ndim(leaf) else "scalar" for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or lengths & {0, "scalar"}:
        raise ValueError(
            f"batches must share a leading axis of one or more batches, got lengths {lengths}."
        )
    if any(explicit_parts(leaf, 0) > 1 for leaf in jax.tree.leaves(batches)):
        raise ValueError(
            "batches are divided over devices along their leading axis, which is scanned: divide "
            "each batch's examples, P(None, 'data'), or give each device batches of its own, by "
            "shard_map and axis_name."
        )

    def start_from(batches: Tree) -> Tree:
        first = jax.tree.map(lambda leaf: leaf[0], batches)
        return start_estimate(jax.eval_shape(batch_moments, first), estimator)

    def visit(estimate: Tree, batch: Tree) -> tuple[Tree, None]:
        moments = batch_moments(batch)
        return add_batch(estimate, moments, estimator=estimator, running_var=running_var), None

    # By `jit`, for batches on an explicit mesh: its zeros lie there, although they need no batch.
    start = jax.jit(start_from, keep_unused=True)(batches)
    estimate, _ = lax.scan(visit, start, batches)
    population = finish_estimate(
        estimate, estimator=estimator, running_var=running_var, axis_name=axis_name
    )
    return jax.tree.map(
        lambda moments: {"mean": moments.mean, "var": moments.var}, population, is_leaf=_is_moments
    )


def check_choices(estimator: str, running_var: str) -> None:
    """Raises ValueError unless these are choices that `population_stats` offers."""
    check_choice("estimator", estimator, Estimator)
    check_choice("running_var", running_var, RunningVar)


def start_estimate(moments: Tree, estimator: Estimator) -> Tree:
    """Returns the estimate from no batch.

    Args:
        moments: tree of `Moments`, of arrays or of their shapes.
        estimator: as in `population_stats`.

    Returns:
        The tree with `mean`, `var` and `count` in the place of each `Moments`; what is counted are
        batches if `"batchwise"`, otherwise values.

    Raises:
        ValueError: if the tree has other nodes than `Moments`, or none.
    """
    nodes, structure = jax.tree.flatten(moments, is_leaf=_is_moments)
    if not nodes or not all(map(_is_moments, nodes)):
        raise ValueError(
            "batch_moments must return a tree of Moments, one for each normalization layer, got "
            f"{jax.tree.structure(moments)}."
        )

    def zeros(node: Moments) -> Stats:
        count = jnp.int32 if estimator == "batchwise" else node.var.dtype
        # Of a shape: typed as varying over what it varies over. The mean may be complex. JAX 0.12
        # does not divide zeros as what they are like.
        zeros = {
            "mean": jnp.zeros_like(node.mean),
            "var": jnp.zeros_like(node.var),
            "count": jnp.zeros_like(node.var, count),
        }
        return {name: divided_like(leaf, node.mean) for name, leaf in zeros.items()}

    return jax.tree.unflatten(structure, map(zeros, nodes))


def add_batch(
    estimate: Tree, moments: Tree, *, estimator: Estimator, running_var: RunningVar
) -> Tree:
    """Returns the estimate from one batch more, whose moments are given."""

    def add(new: Moments, old: Stats) -> Stats:
        if jnp.iscomplexobj(new.mean):
            of_new, of_old = _parts(new.mean, new.var), _parts(old["mean"], old["var"])
            real, imaginary = (
                add(new._replace(**one), old | other)
                for one, other in zip(of_new, of_old, strict=True)
            )
            return real | _joined(real, imaginary)
        if estimator == "batchwise":
            return update_stats(old, new, averaging="cumulative", running_var=running_var)
        mean, var, size = jax.tree.map(lax.stop_gradient, new)
        if estimator == "weighted" and running_var == "unbiased":
            var = unbiased(var, size)
        size += jnp.zeros_like(mean)  # of each feature
        pairs = [
            [divided_like(each, mean) for each in pair]
            for pair in ((old["mean"], mean), (old["var"], var), (old["count"], size))
        ]
        mean, var, count = _combine(Moments(*map(jnp.stack, pairs)), estimator)
        return {"mean": mean, "var": var, "count": count}

    return jax.tree.map(add, moments, estimate, is_leaf=_is_moments)


def finish_estimate(
    estimate: Tree,
    *,
    estimator: Estimator,
    running_var: RunningVar,
    axis_name: str | Sequence[str] | None = None,
) -> Tree:
    """Returns the estimate as a tree of `Moments`, joined over the devices along `axis_name`.

    `var` is biased or unbiased as asked for, `size` is the number of batches or values behind it:
    features where it is zero have seen nothing.
    """

    def finish(stats: Stats) -> Moments:
        mean = stats["mean"]
        if jnp.iscomplexobj(mean):
            real, imaginary = (finish(stats | part) for part in _parts(mean, stats["var"]))
            return real._replace(**_joined(real._asdict(), imaginary._asdict()))
        moments = Moments(mean, stats["var"], stats["count"].astype(mean.dtype))
        if axis_name is not None:
            packed = from_all_devices(jnp.stack(moments), axis_name)
            parts = Moments(*(packed[:, i] for i in range(len(moments))))
            moments = _combine(parts, estimator)
        if estimator == "pooled" and running_var == "unbiased":
            moments = moments._replace(var=unbiased(moments.var, moments.size))
        return moments

    return jax.tree.map(finish, estimate, is_leaf=_is_stats)


def _combine(parts: Moments, estimator: Estimator) -> Moments:
    """Returns one estimate from several, stacked on a leading axis, each by its size."""
    if estimator == "pooled":
        return merge(parts)
    return pool(parts)._replace(size=parts.size.sum(0))


def _parts(mean: jax.Array, var: jax.Array) -> tuple[Stats, Stats]:
    """Returns real statistics of both parts of complex numbers; the variances add up to `var`.

    All that is done to variances is linear in them, so that it does not matter which part has it.
    """
    return {"mean": mean.real, "var": var}, {"mean": mean.imag, "var": jnp.zeros_like(var)}


def _joined(real: Stats, imaginary: Stats) -> Stats:
    """Returns the complex mean, and the variance E|x - mean|^2: the sum of those of both parts."""
    mean = lax.complex(real["mean"], imaginary["mean"])
    return {"mean": mean, "var": real["var"] + imaginary["var"]}


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)


def _is_stats(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == {"mean", "var", "count"}
