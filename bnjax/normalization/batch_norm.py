"""Batch normalization as pure functions over explicit state (Ioffe & Szegedy 2015, section 3).

params, stats = init_params(100), init_stats(100)
y, stats = normalize_batch(x, params, stats)        # training: the batch's own moments
y = normalize_population(x, params, stats)          # inference: cannot change the statistics
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization.arguments import (
    Params,
    Stats,
    check_count,
    check_input,
    check_moments,
    check_shape,
    full_mask,
)
from bnjax.normalization.dtypes import at_least_float32, check_dtype, precision, widest
from bnjax.normalization.fast.fused import normalize_fused
from bnjax.normalization.groups import choose_groups, normalize_groups
from bnjax.normalization.meshes import divided_like
from bnjax.normalization.moments import Moments, unbiased
from bnjax.normalization.settings import (
    Activation,
    BatchChoice,
    Impl,
    RunningVar,
    Settings,
    StatsAveraging,
    check_choice,
)
from bnjax.normalization.transform import (
    Transform,
    activate,
    affine,
    normalize_autodiff,
    widened,
)


def init_params(
    shape: int | Sequence[int],
    *,
    use_scale: bool = True,
    use_bias: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Returns scale (gamma) one and bias (beta) zero, for features of the given shape.

    Example:
        >>> init_params(2)
        {'scale': Array([1., 1.], dtype=float32), 'bias': Array([0., 0.], dtype=float32)}
    """
    check_shape(shape)
    check_dtype(dtype)
    params = {}
    if use_scale:
        params["scale"] = jnp.ones(shape, dtype)
    if use_bias:
        params["bias"] = jnp.zeros(shape, dtype)
    return params


def init_stats(
    shape: int | Sequence[int],
    *,
    averaging: StatsAveraging = "ema",
    dtype: DTypeLike = jnp.float32,
) -> Stats:
    """Returns mean zero and variance one; a count of zero where `averaging` needs one.

    Mean and variance are at least float32, whatever `dtype`: narrower averages stick.

    Example:
        >>> init_stats(2)
        {'mean': Array([0., 0.], dtype=float32), 'var': Array([1., 1.], dtype=float32)}
        >>> sorted(init_stats(2, averaging="ema_debiased"))
        ['count', 'mean', 'var']
    """
    check_shape(shape)
    check_choice("averaging", averaging, StatsAveraging)
    check_dtype(dtype)
    dtype = at_least_float32(dtype)
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
    decay: float | jax.Array = 0.99,
    epsilon: float = 1e-5,
    averaging: StatsAveraging = "ema",
    running_var: RunningVar = "unbiased",
    activation: Activation | None = None,
    batch: BatchChoice = "all",
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
        decay: fraction of the old statistics kept by an update, in [0, 1); may be traced.
            torch's momentum m is decay = 1 - m.
        epsilon: added to the variance; > 0.
        averaging: `"ema"`; `"ema_debiased"`, which forgets the initial values at once; or
            `"cumulative"`, the mean over all updates (Algorithm 2), which ignores `decay`.
        running_var: what the statistics hold: `"unbiased"` m/(m-1) times the batch's variance, as
            in the paper and torch; `"biased"`, as in Flax, Haiku and Keras. `y` always uses the
            biased one.
        activation: None, `"relu"` or `"sigmoid"`, applied last. The backward pass recomputes it
            from `x`: between the passes nothing but `x` is kept.
        batch: what is normalized together. `"all"` examples, of all devices that `axis_name`
            names. k: each group of k consecutive examples ("ghost batch"), the same groups on any
            number of devices; what k leaves over is a smaller group, and with `axis_name`, k must
            divide a device's examples or be a multiple of them. `"device"`: each device of
            `axis_name` alone. Groups move the statistics once, by their mean moments.
        mask: bool, of the rank of `x`, sizes equal or one. What is False is normalized, but does
            not count; NaN and infinity there give `bias`. Features that are masked as a whole
            give it, too, and keep their statistics.
        axis_name: mapped axes (`pmap`, `shard_map`, `vmap`) whose devices share the batch.
        axis_index_groups: groups of devices along `axis_name`, each a batch of its own; JAX knows
            them in `pmap` and in `shard_map(check_vma=False)`.
        impl: `"fused"` has its reverse mode in closed form; `"autodiff"` is the plain definition,
            for forward mode (`jax.jvp`, `jax.jacfwd`), where `"fused"` is a TypeError of JAX.
        dtype: of `y`; that of `x` by default. Inside, at least float32; float64 if it is.

    Returns:
        `y`, of the shape of `x`, and the new statistics, of the structure and dtypes of the old;
        but at least float32: rounded to a narrower type, an average sticks where an update is less
        than half a unit in its last place. (To carry old narrow ones through `lax.scan`, widen
        them before.)

    Raises:
        ValueError: while tracing, for a bad argument, or a batch of one value per feature.
        NameError: while tracing, for an axis of `axis_name` that nothing maps.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [2.0], [5.0]])
        >>> y, stats = normalize_batch(x, init_params(1), init_stats(1), decay=0.9)
        >>> print(y[:, 0])
        [-1.07 -0.53  0.    1.6 ]
        >>> print(stats["mean"], stats["var"])  # a tenth of the way to 2 and 14/3
        [0.2] [1.367]
    """
    settings = Settings(
        axis=axis,
        decay=decay,
        epsilon=epsilon,
        averaging=averaging,
        running_var=running_var,
        activation=activation,
        batch=batch,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        impl=impl,
        dtype=dtype,
    )
    axes = check_input(x, params, settings, stats)
    check_count(stats, averaging)
    y, moments = transform_batch(x, params, mask, settings, axes)
    return y, move_stats(stats, moments, settings)


def batch_transform(
    x: jax.Array,
    params: Params,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    activation: Activation | None = None,
    batch: BatchChoice = "all",
    mask: jax.Array | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    impl: Impl = "fused",
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, Moments]:
    """Returns the `y` of Algorithm 1 and the batch's moments, which carry no gradient.

    Arguments and errors are those of `normalize_batch`, which adds the statistics.

    Example:
        >>> x = jnp.array([[0.0], [4.0], [10.0], [14.0]])
        >>> y, moments = batch_transform(x, {}, batch=2)  # two groups of two examples
        >>> print(y[:, 0])
        [-1.  1. -1.  1.]
        >>> moments.mean  # of both groups
        Array([7.], dtype=float32)
    """
    settings = Settings(
        axis=axis,
        epsilon=epsilon,
        activation=activation,
        batch=batch,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        impl=impl,
        dtype=dtype,
    )
    return transform_batch(x, params, mask, settings, check_input(x, params, settings))


def transform_batch(
    x: jax.Array,
    params: Params,
    mask: jax.Array | None,
    settings: Settings,
    axes: tuple[int, ...],
    correct: Callable[[Params, Moments], Params] | None = None,
) -> tuple[jax.Array, Moments]:
    """Returns what `batch_transform` does, of an input that `check_input` has seen.

    `correct` replaces the parameters by those of each group, given its moments.
    """
    mask = full_mask(mask, x)
    groups = choose_groups(x, axes, settings)
    dtype = jnp.dtype(settings.output_dtype(x))
    x = widened(x, dtype)
    transform = Transform(axes, groups, settings.epsilon, settings.activation, dtype)
    normalize = normalize_fused if settings.impl == "fused" else normalize_autodiff

    def normalize_one(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, Moments]:
        own = params
        if correct is not None:
            # XLA merges these moments with the same ones that `normalize` takes; where `jit`
            # divides the examples over the mesh in sight, all but their small collective.
            own = correct(params, transform.moments(lax.stop_gradient(x), mask))
        return normalize(x, own.get("scale"), own.get("bias"), mask, transform)

    return normalize_groups(normalize_one, x, mask, groups, axes[0])


def normalize_population(
    x: jax.Array,
    params: Params,
    stats: Stats,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
    activation: Activation | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Normalizes by the statistics (Algorithm 2, line 11): a fixed affine map.

    Arguments are those of `normalize_batch`; a single example is fine here, and groups of
    examples play no part.

    Example:
        >>> stats = {"mean": jnp.array([2.0]), "var": jnp.array([4.0])}
        >>> normalize_population(jnp.array([[6.0]]), init_params(1), stats)
        Array([[2.]], dtype=float32)
    """
    settings = Settings(axis=axis, epsilon=epsilon, activation=activation, dtype=dtype)
    return transform_population(x, params, stats, settings, check_input(x, params, settings, stats))


def transform_population(
    x: jax.Array, params: Params, stats: Stats, settings: Settings, axes: tuple[int, ...]
) -> jax.Array:
    """Returns what `normalize_population` does, of an input that `check_input` has seen."""
    dtype = settings.output_dtype(x)
    x = widened(x, dtype)
    mean, var = (stats[key].astype(precision(x.dtype)) for key in ("mean", "var"))
    rstd = lax.rsqrt(var + settings.epsilon)
    y = affine(x, mean, rstd, params.get("scale"), params.get("bias"), axes)
    return activate(y, settings.activation).astype(dtype)


def update_stats(
    stats: Stats,
    moments: Moments,
    *,
    decay: float | jax.Array = 0.99,
    averaging: StatsAveraging = "ema",
    running_var: RunningVar = "unbiased",
) -> Stats:
    """Moves the statistics towards one batch's moments, by a weight that `averaging` sets.

    The weight of the new batch is 1 - decay for `"ema"`; 1/t at update t for `"cumulative"`; and
    (1 - decay)/(1 - decay^t) for `"ema_debiased"`, which equals the zero-initialized average
    divided by 1 - decay^t. The last two are one at the first update. Features without a value
    (count zero) keep their statistics. What is narrower than float32 comes back as float32.

    Raises:
        ValueError: for a bad `decay` or choice, or if `stats` lacks the count that is needed.

    Example:
        >>> moments = Moments(mean=jnp.array([4.0]), var=jnp.array([9.0]), size=jnp.array(8))
        >>> stats = init_stats(1, averaging="cumulative")
        >>> update_stats(stats, moments, averaging="cumulative", running_var="biased")
        {'mean': Array([4.], dtype=float32), 'var': Array([9.], dtype=float32),
         'count': Array([1], dtype=int32)}
    """
    settings = Settings(decay=decay, averaging=averaging, running_var=running_var)
    check_moments(stats, moments)
    check_count(stats, averaging)
    return move_stats(stats, moments, settings)


def move_stats(stats: Stats, moments: Moments, settings: Settings) -> Stats:
    """Returns what `update_stats` does, of statistics and moments that have been checked."""
    mean, var, size = jax.tree.map(lax.stop_gradient, moments)
    if settings.running_var == "unbiased":
        var = unbiased(var, size)

    # In the widest type of both: a weight of zero leaves the statistics as they are, to the bit.
    dtype = widest(mean, var, stats["mean"], stats["var"])
    new = dict(stats)
    weight: jax.Array | float = 1 - settings.decay
    if settings.averaging != "ema":
        new["count"] = stats["count"] + (size > 0).astype(stats["count"].dtype)
        updates = jnp.maximum(new["count"], 1).astype(dtype)
        cumulative = settings.averaging == "cumulative"
        weight = 1 / updates if cumulative else _debiased_weight(settings.decay, updates)
    weight = jnp.where(size > 0, jnp.asarray(weight, dtype), 0)
    for key, value in (("mean", mean), ("var", var)):
        old = stats[key].astype(dtype)
        if settings.averaging != "ema":
            # By the formula, initial values of NaN or infinity would stay.
            old = jnp.where((stats["count"] == 0) & (size > 0), 0, old)
        moved = (1 - weight) * old + weight * value.astype(dtype)
        new[key] = divided_like(moved.astype(precision(stats[key].dtype)), stats[key])
    return new


def _debiased_weight(decay: float | jax.Array, updates: jax.Array) -> jax.Array:
    """Returns (1 - decay)/(1 - decay^updates), without the cancellation of a decay close to one."""
    if isinstance(decay, jax.Array):
        log = jnp.log(decay.astype(updates.dtype))
    else:
        log = jnp.asarray(math.log(decay) if decay else -math.inf, updates.dtype)
    return jnp.expm1(log) / jnp.expm1(log * updates)
