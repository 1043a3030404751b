"""Batch normalization as pure functions over explicit state (Ioffe & Szegedy 2015, section 3).

params, stats = init_params(100), init_stats(100)
y, stats = normalize_batch(x, params, stats)        # training: the batch's own moments
y = normalize_population(x, params, stats)          # inference: cannot change the statistics
"""

import math
import operator
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization.fused import Batch, affine, normalize_autodiff, normalize_fused
from bnjax.normalization.moments import Moments, batch_size, precision

Params = dict[str, jax.Array]
"""`scale` and `bias`, each of the features' shape; either may be absent."""

Stats = dict[str, jax.Array]
"""`mean` and `var` of the features' shape, and `count`, each feature's updates so far, where
averaging needs it. `mean` and `var` are ready for use at any time, debiased ones included."""

Averaging = Literal["ema", "ema_debiased", "cumulative"]
RunningVar = Literal["unbiased", "biased"]
Impl = Literal["fused", "autodiff"]


def init_params(
    shape: int | Sequence[int],
    *,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Scale (gamma) one and bias (beta) zero, for features of the given shape."""
    params = {}
    if use_scale:
        params["scale"] = jnp.ones(shape, dtype)
    if use_bias:
        params["bias"] = jnp.zeros(shape, dtype)
    return params


def init_stats(
    shape: int | Sequence[int],
    *,
    averaging: Averaging = "ema",
    dtype: DTypeLike = jnp.float32,
) -> Stats:
    """Mean zero and variance one; a count of zero where `averaging` needs one."""
    _check_choice("averaging", averaging, Averaging)
    stats = {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)}
    if averaging != "ema":
        stats["count"] = jnp.zeros(shape, jnp.int32)
    return stats


def normalize_batch(
    x: jax.Array,
    params: Params,
    stats: Stats,
    *,
    axis: int | Sequence[int] = -1,
    decay: float = 0.99,
    epsilon: float = 1e-5,
    averaging: Averaging = "ema",
    running_var: RunningVar = "unbiased",
    mask: jax.Array | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    impl: Impl = "fused",
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Stats]:
    """Normalizes by the moments of the batch (Algorithm 1) and moves the statistics.

    Args:
        x: floating, rank 2 or more. `[examples, features]` for a dense layer; `[examples, height,
            width, channels]` for a convolution.
        params: `scale` and `bias`, of the features' shape.
        stats: from `init_stats`; carry no gradient.
        axis: the feature axes; moments average over all others. -1 is one feature per channel,
            over examples and positions (section 3.2); (1, 2, 3) is one per pixel and channel,
            over examples alone.
        decay: fraction of the old statistics kept by an update, in [0, 1). torch's momentum m is
            decay = 1 - m.
        epsilon: added to the variance; > 0.
        averaging: `"ema"`; `"ema_debiased"`, which forgets the initial values at once; or
            `"cumulative"`, the mean over all updates (Algorithm 2), which ignores `decay`.
        running_var: what the statistics hold: `"unbiased"` m/(m-1) times the batch's variance, as
            in the paper and torch; `"biased"`, as in Flax, Haiku and Keras. `y` always uses the
            biased one.
        mask: bool, of the rank of `x`, sizes equal or one. What is False is normalized, but does
            not count; NaN and infinity there give `bias`. Features that are masked as a whole
            keep their statistics.
        axis_name: mapped axes (`pmap`, `shard_map`, `vmap`) whose devices share the batch.
        axis_index_groups: groups of devices along `axis_name`, each a batch of its own; JAX knows
            them in `pmap` and in `shard_map(check_vma=False)`.
        impl: `"fused"` has its reverse mode in closed form; `"autodiff"` is the plain definition,
            for forward mode and Hessian-vector products.
        dtype: of `y`; that of `x` by default. Inside, at least float32.

    Returns:
        `y`, of the shape of `x`, and the new statistics, of the structure and dtypes of the old.

    Raises:
        ValueError: while tracing, for a bad argument, or a batch of one value per feature.
    """
    _check_stats(stats, _split_axes(x, axis)[1])
    check_update(decay, averaging, running_var)
    _check_count(stats, averaging)
    y, moments = batch_transform(
        x,
        params,
        axis=axis,
        epsilon=epsilon,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        impl=impl,
        dtype=dtype,
    )
    stats = update_stats(stats, moments, decay=decay, averaging=averaging, running_var=running_var)
    return y, stats


def batch_transform(
    x: jax.Array,
    params: Params,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    mask: jax.Array | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    impl: Impl = "fused",
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """The transform of Algorithm 1 alone: `y` and the batch's moments, which carry no gradient.

    Arguments and errors are those of `normalize_batch`, which adds the statistics.
    """
    axes, features = _split_axes(x, axis)
    _check_features("params", params, features, allowed={"scale", "bias"})
    _check_epsilon(epsilon)
    _check_choice("impl", impl, Impl)
    mask = _full_mask(mask, x)
    name = axis_name if axis_name is None or isinstance(axis_name, str) else tuple(axis_name)
    groups = _check_groups(axis_index_groups, name)
    batch = Batch(axes, name, groups)
    if batch_size(x.shape, axes, name, groups) < 2:
        raise ValueError(
            f"x of shape {x.shape} with feature axis {axis} leaves one value per feature: its "
            "variance is zero and the output would be `bias`, whatever x. Train on a larger "
            "batch, or use normalize_population."
        )
    normalize = normalize_fused if impl == "fused" else normalize_autodiff
    scale, bias = params.get("scale"), params.get("bias")
    return normalize(x, scale, bias, mask, batch, epsilon, jnp.dtype(dtype or x.dtype))


def normalize_population(
    x: jax.Array,
    params: Params,
    stats: Stats,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalizes by the statistics (Algorithm 2, line 11): a fixed affine map.

    Arguments are those of `normalize_batch`; a single example is fine here.
    """
    axes, features = _split_axes(x, axis)
    _check_features("params", params, features, allowed={"scale", "bias"})
    _check_stats(stats, features)
    _check_epsilon(epsilon)
    mean, var = (stats[key].astype(precision(x.dtype)) for key in ("mean", "var"))
    y = affine(x, mean, lax.rsqrt(var + epsilon), params.get("scale"), params.get("bias"), axes)
    return y.astype(dtype or x.dtype)


def update_stats(
    stats: Stats,
    moments: Moments,
    *,
    decay: float = 0.99,
    averaging: Averaging = "ema",
    running_var: RunningVar = "unbiased",
) -> Stats:
    """Moves the statistics towards one batch's moments, by a weight that `averaging` sets.

    The weight of the new batch is 1 - decay for `"ema"`; 1/t at update t for `"cumulative"`; and
    (1 - decay)/(1 - decay^t) for `"ema_debiased"`, which equals the zero-initialized average
    divided by 1 - decay^t. The last two are one at the first update. Features without a value
    (count zero) keep their statistics.

    Raises:
        ValueError: for a bad `decay` or choice, or if `stats` lacks the count that is needed.
    """
    check_update(decay, averaging, running_var)
    _check_count(stats, averaging)
    moments = jax.tree.map(lax.stop_gradient, moments)
    mean, var, size = moments
    if running_var == "unbiased":
        var = var * (size / jnp.maximum(size - 1, 1))

    new = dict(stats)
    weight: jax.Array | float = 1 - decay
    if averaging != "ema":
        new["count"] = stats["count"] + (size > 0).astype(stats["count"].dtype)
        updates = jnp.maximum(new["count"], 1).astype(mean.dtype)
        weight = 1 / updates if averaging == "cumulative" else _debiased_weight(decay, updates)
    weight = jnp.where(size > 0, jnp.asarray(weight, mean.dtype), 0)
    for key, value in (("mean", mean), ("var", var)):
        old = stats[key].astype(value.dtype)
        new[key] = ((1 - weight) * old + weight * value).astype(stats[key].dtype)
    return new


def _debiased_weight(decay: float, updates: jax.Array) -> jax.Array:
    """(1 - decay)/(1 - decay^updates), without the cancellation of a decay close to one."""
    log = jnp.asarray(math.log(decay) if decay else -math.inf, updates.dtype)
    return jnp.expm1(log) / jnp.expm1(log * updates)


def feature_axes(ndim: int, axis: int | Sequence[int]) -> tuple[int, ...]:
    """`axis` as sorted non-negative numbers.

    Raises:
        ValueError: if one is out of range or given twice.
    """
    given = tuple(axis) if isinstance(axis, Sequence) else (operator.index(axis),)
    if not given or any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"axis={axis} does not name axes of x, which has rank {ndim}.")
    axes = tuple(sorted(a % ndim for a in given))
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis={axis} names an axis twice, for x of rank {ndim}.")
    return axes


def _split_axes(x: jax.Array, axis: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes to average over, and the features' shape."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be floating, got {x.dtype}: convert it first, for example x.astype(float32)."
        )
    if x.ndim < 2:
        raise ValueError(
            f"x must have an axis of examples and one of features, got shape {x.shape}: "
            "add the missing axis, for example x[None]."
        )
    features = feature_axes(x.ndim, axis)
    axes = tuple(a for a in range(x.ndim) if a not in features)
    return axes, tuple(x.shape[a] for a in features)


def _check_stats(stats: Stats, features: tuple[int, ...]) -> None:
    _check_features("stats", stats, features, allowed={"mean", "var", "count"})
    if not {"mean", "var"} <= set(stats):
        raise ValueError(f"stats has the keys {sorted(stats)}: make it with init_stats.")


def _check_features(
    name: str, tree: dict[str, jax.Array], features: tuple[int, ...], allowed: set[str]
) -> None:
    if not set(tree) <= allowed:
        raise ValueError(
            f"{name} has the keys {sorted(tree)}, expected {sorted(allowed)}: "
            f"make it with init_{name}."
        )
    for key in tree:
        if jnp.shape(tree[key]) != features:
            raise ValueError(
                f"{name}[{key!r}] has shape {jnp.shape(tree[key])}, but x has features of "
                f"shape {features}: make it with init_{name}({features}), or set `axis`."
            )


def _check_epsilon(epsilon: float) -> None:
    if not epsilon > 0:
        raise ValueError(f"epsilon must be > 0, got {epsilon}: constant features divide by it.")


def check_update(decay: float, averaging: str, running_var: str) -> None:
    """Raises ValueError unless these can be arguments of `update_stats`."""
    if not 0 <= decay < 1:
        raise ValueError(
            f"decay must be in [0, 1), got {decay}: it is the fraction kept; "
            "torch's momentum m is decay = 1 - m."
        )
    _check_choice("averaging", averaging, Averaging)
    _check_choice("running_var", running_var, RunningVar)


def _check_count(stats: Stats, averaging: str) -> None:
    if averaging != "ema" and "count" not in stats:
        raise ValueError(
            f"averaging={averaging!r} needs stats['count']: "
            f"make the statistics with init_stats(..., averaging={averaging!r})."
        )


def _check_choice(name: str, value: str, choices: object) -> None:
    allowed = choices.__args__  # type: ignore[attr-defined]
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def _full_mask(mask: jax.Array | None, x: jax.Array) -> jax.Array | None:
    if mask is None:
        return None
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask must be bool, got {mask.dtype}: use mask.astype(bool).")
    fits = mask.ndim == x.ndim and all(
        m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)
    )
    if not fits:  # one of lower rank could mean examples or features
        raise ValueError(
            f"mask of shape {mask.shape} does not fit x of shape {x.shape}: it needs the same "
            "rank and sizes, or ones; for one flag per example, reshape it to (examples, 1, ...)."
        )
    return jnp.broadcast_to(mask, x.shape)


def _check_groups(
    groups: Sequence[Sequence[int]] | None, axis_name: str | tuple[str, ...] | None
) -> tuple[tuple[int, ...], ...] | None:
    if groups is None:
        return None
    if axis_name is None:
        raise ValueError(f"axis_index_groups={groups} needs axis_name: the axis they divide.")
    if len({len(group) for group in groups}) != 1:
        raise ValueError(f"axis_index_groups must be of one size, got {groups}.")
    return tuple(map(tuple, groups))
