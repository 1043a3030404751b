"""Full whitening: features without correlation, not each on its own scale alone.

y = scale * (x - mean) @ W + bias, with W = (Cov[x] + epsilon I)^(-1/2): what Ioffe & Szegedy (2015,
section 2) consider first, and give up for batch normalization because of its price. Here to compare
with, and for small layers.

params, stats = init_params(64), init_whitening_stats(64, groups=4)
y, stats = whiten_batch(x, params, stats)           # training: the batch's own covariance
y = whiten_population(x, params, stats)             # inference: cannot change the statistics

Price, forward, for N vectors of C features in groups of c = C / groups: 2NCc operations for the
covariance, 2NCc for (x - mean) @ W, and about 11 Cc^2 for W (an eigendecomposition, hardly
parallel). Backward costs twice the products again. Batch normalization costs about 8NC. Undivided
(c = C) that is C^2 N + C^3 against C N; groups cost as much less as there are more of them, and
leave the correlations between groups (Huang et al. 2018, decorrelated batch normalization).

The statistics hold the covariance, not W. The average of covariances estimates the population's;
the average of inverse roots estimates the root of nothing, and is too large (the inverse root is
convex: in small batches, far too large); for PCA, whose eigenvectors have no order or sign to keep
from batch to batch, it has no meaning at all. A covariance also pools by count over devices, and
leaves method and epsilon open until inference. The price is one W at each `whiten_population`;
`whitening_matrix` gives it once, for a fixed layer.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization.arguments import (
    Params,
    Stats,
    check_array,
    check_count,
    check_features,
    check_floating,
)
from bnjax.normalization.axes import check_integer
from bnjax.normalization.batch_norm import move_stats
from bnjax.normalization.dtypes import at_least_float32, canonical, check_dtype, precision
from bnjax.normalization.meshes import divided_like
from bnjax.normalization.moments import Moments
from bnjax.normalization.settings import (
    RunningVar,
    Settings,
    StatsAveraging,
    check_choice,
)
from bnjax.normalization.transform import widened
from bnjax.whitening.covariance import (
    Covariance,
    batch_vectors,
    covariance_and_centred,
    einsum,
    feature_count,
    group_width,
    rows_of,
)
from bnjax.whitening.matrix import Method, check_method, whitening_matrix


def init_whitening_stats(
    features: int,
    *,
    groups: int = 1,
    averaging: StatsAveraging = "ema",
    dtype: DTypeLike = jnp.float32,
) -> Stats:
    """Returns mean zero and covariance one; `count`, a scalar of zero, where `averaging` needs one.

    Args:
        features: how many.
        groups: number of blocks of neighbouring features, each whitened by itself; 1 is all
            together, `features` is batch normalization.
        averaging: as in `whiten_batch`.
        dtype: of mean and covariance; float32 if it is narrower, for narrower averages stick.

    Returns:
        `mean` `[features]`, `cov` `[groups, c, c]` with c = features / groups, and perhaps `count`.

    Raises:
        ValueError: if the features do not divide into the groups, `averaging` is unknown, or
            `dtype` not floating.
    """
    check_choice("averaging", averaging, StatsAveraging)
    check_dtype(dtype)
    dtype = at_least_float32(dtype)
    check_integer("features", features, 0)
    width = group_width(features, groups)
    cov = jnp.broadcast_to(jnp.eye(width, dtype=dtype)[None], (groups, width, width))
    stats = {"mean": jnp.zeros(features, dtype), "cov": cov}
    if averaging != "ema":
        stats["count"] = jnp.zeros((), jnp.int32)
    return stats


def whiten_batch(
    x: jax.Array,
    params: Params,
    stats: Stats,
    *,
    axis: int = -1,
    method: Method = "zca",
    decay: float = 0.99,
    epsilon: float = 1e-3,
    averaging: StatsAveraging = "ema",
    running_cov: RunningVar = "unbiased",
    mask: jax.Array | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Stats]:
    """Whitens by the covariance of the batch and moves the statistics.

    Differentiable any number of times, forward and reverse. For `"zca"` that holds at repeated
    eigenvalues too. For `"pca"` the derivative there is infinite, and NaN is what it gives where
    two eigenvalues differ by no more than rounding.

    Args:
        x: floating, rank 2 or more.
        params: `scale` and `bias`, `[features]`, from `init_params`; either may be absent.
        stats: from `init_whitening_stats`, which sets the groups; carry no gradient.
        axis: the feature axis, one; the covariance runs over all others.
        method: `"zca"` rotates back to the features' own axes, and so changes x least of all
            whitenings; `"pca"` leaves the principal axes, the widest first within each group, each
            pointing so that its largest component is positive.
        decay: fraction of the old statistics kept by an update, in [0, 1).
        epsilon: added to every eigenvalue; > 0. It bounds the gain by 1/sqrt(epsilon), also where
            the batch has fewer vectors than features. In float32, rounding moves every eigenvalue
            by some 1e-7 of the largest: y is as accurate as that is small against epsilon.
        averaging: as in `normalize_batch`.
        running_cov: what the statistics hold: `"unbiased"`, m/(m-1) times the batch's covariance,
            or `"biased"`. `y` always uses the biased one.
        mask: bool, of the rank of `x`, sizes equal or one, and one along `axis`. What is False is
            whitened, but does not count; NaN and infinity there are taken for the mean. Where
            nothing counts, `y` is the bias.
        axis_name: mapped axes (`pmap`, `shard_map`, `vmap`) whose devices share the batch.
        axis_index_groups: groups of devices along `axis_name`, each a batch of its own.
        dtype: of `y`; that of `x` by default. Inside, at least float32; float64 if it is.

    Returns:
        `y`, of the shape of `x`, and the new statistics, of the structure and dtypes of the old,
        but at least float32.

    Raises:
        ValueError: while tracing, for a bad argument, a batch of one vector, or a `"pca"` of fewer
            vectors than features in a group.

    Example:
        >>> x = jnp.array([[0.0, 1.0], [2.0, 2.0], [4.0, 6.0], [6.0, 3.0]])
        >>> params, stats = {}, init_whitening_stats(2)
        >>> y, stats = whiten_batch(x, params, stats, epsilon=1e-6)
        >>> print(np.abs(np.cov(y.T, bias=True)))
        [[1. 0.]
         [0. 1.]]
    """
    groups = _check_stats(stats, feature_count(x, axis))
    check_choice("running_cov", running_cov, RunningVar)
    settings = Settings(decay=decay, averaging=averaging, running_var=running_cov)
    check_count(stats, averaging)
    y, batch = whitening_transform(
        x,
        params,
        axis=axis,
        groups=groups,
        method=method,
        epsilon=epsilon,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        dtype=dtype,
    )
    # The update is linear in what it averages: a covariance goes through it as a variance does.
    moved = move_stats(
        {"var" if key == "cov" else key: value for key, value in stats.items()},
        Moments(batch.mean, batch.cov, batch.size),
        settings,
    )
    return y, {"cov" if key == "var" else key: value for key, value in moved.items()}


def whitening_transform(
    x: jax.Array,
    params: Params,
    *,
    axis: int = -1,
    groups: int = 1,
    method: Method = "zca",
    epsilon: float = 1e-3,
    mask: jax.Array | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Covariance]:
    """Returns the transform alone: `y` and the batch's covariance, which carries no gradient.

    Arguments and errors are those of `whiten_batch`, which adds the statistics; `groups` is that of
    `init_whitening_stats`.
    """
    features = feature_count(x, axis)
    width = group_width(features, groups)
    check_features("params", params, (features,), allowed={"scale", "bias"})
    check_method(method, epsilon, x.dtype)
    dtype = canonical(x.dtype) if dtype is None else dtype
    check_dtype(dtype)
    x = widened(x, dtype)
    vectors = batch_vectors(x, axis, axis_name, axis_index_groups)
    if method == "pca" and vectors < width:
        raise ValueError(
            f"method='pca' needs as many vectors as features, got {vectors} for groups of {width}: "
            "the eigenvalue zero repeats, and its axes are arbitrary. Use method='zca', more "
            "groups or a larger batch."
        )
    batch, centred = covariance_and_centred(x, axis, groups, mask, axis_name, axis_index_groups)
    matrix = whitening_matrix(batch.cov, method=method, epsilon=epsilon)
    y = _from_rows(_affine(centred, matrix, params), x, axis)
    return y.astype(dtype), jax.tree.map(lax.stop_gradient, batch)


def whiten_population(
    x: jax.Array,
    params: Params,
    stats: Stats,
    *,
    axis: int = -1,
    method: Method = "zca",
    epsilon: float = 1e-3,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Whitens by the statistics: a fixed affine map.

    Arguments are those of `whiten_batch`; a single vector is fine here.
    """
    features = feature_count(x, axis)
    groups = _check_stats(stats, features)
    check_features("params", params, (features,), allowed={"scale", "bias"})
    check_method(method, epsilon, x.dtype)
    dtype = canonical(x.dtype) if dtype is None else dtype
    check_dtype(dtype)
    x = widened(x, dtype)
    mean, cov = (stats[key].astype(precision(x.dtype)) for key in ("mean", "cov"))
    matrix = whitening_matrix(cov, method=method, epsilon=epsilon)
    centred = rows_of(x, axis, groups).astype(mean.dtype) - mean[None]
    y = _affine(centred.reshape(-1, groups, features // groups), matrix, params)
    return _from_rows(y, x, axis).astype(dtype)


def _affine(centred: jax.Array, matrix: jax.Array, params: Params) -> jax.Array:
    """Returns rows `[vectors, features]`, scaled and shifted, from `[vectors, groups, c]`."""
    y = einsum("ngi,gij->ngj", centred, matrix).reshape(len(centred), -1)
    if "scale" in params:
        y *= params["scale"].astype(y.dtype)[None]
    if "bias" in params:
        y += params["bias"].astype(y.dtype)[None]
    return y


def _from_rows(rows: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    y = jnp.moveaxis(rows.reshape(jnp.moveaxis(x, axis, -1).shape), -1, axis)
    return divided_like(y, x)


def _check_stats(stats: Stats, features: int) -> int:
    """Returns the number of groups that the statistics are for."""
    if not isinstance(stats, Mapping):
        raise ValueError(
            f"stats must be a dict of arrays, got {type(stats).__name__}: make it with "
            "init_whitening_stats."
        )
    if not {"mean", "cov"} <= set(stats) <= {"mean", "cov", "count"}:
        raise ValueError(
            f"stats has the keys {sorted(stats)}, expected 'mean', 'cov' and perhaps 'count': "
            "make it with init_whitening_stats."
        )
    for key, value in stats.items():
        check = check_array if key == "count" else check_floating
        check(f"stats[{key!r}]", value)
    remedy = f"init_whitening_stats({features})"
    groups = jnp.shape(stats["cov"])[0] if jnp.ndim(stats["cov"]) == 3 else 1
    width = features // max(groups, 1)
    _check_shape("stats['mean']", stats["mean"], (features,), remedy)
    _check_shape("stats['cov']", stats["cov"], (groups, width, width), remedy)
    if "count" in stats:
        _check_shape("stats['count']", stats["count"], (), remedy)
    group_width(features, groups)
    return groups


def _check_shape(name: str, value: jax.Array, shape: tuple[int, ...], remedy: str) -> None:
    if jnp.shape(value) != shape:
        raise ValueError(
            f"{name} has shape {jnp.shape(value)}, but x needs {shape}: make it with {remedy}, or "
            "set `axis`."
        )
