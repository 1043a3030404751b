"""Population normalization as y = a x + b, alone or folded into the linear layer before it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization.arguments import Params, Stats, check_array, check_floating
from bnjax.normalization.dtypes import canonical, widest
from bnjax.normalization.settings import check_epsilon


def as_affine(
    params: Params, stats: Stats, *, epsilon: float = 1e-5
) -> tuple[jax.Array, jax.Array]:
    """Returns population normalization (Algorithm 2, line 11) as one multiply-add.

    In exact arithmetic `multiplier * x + addend` is `normalize_population`. In floating point it
    cancels: both terms are mean/std large where their sum is of order one, so each rounding, a
    relative u, costs u * |mean|/std in units of the output; in float32 at mean/std = 1e4, 1e-3.
    `normalize_population` subtracts the mean first, which costs u * |x - mean|/std, and is
    therefore the one to call. The multiply-add pays where `x` is itself rounded to a relative u,
    as the output of a convolution is: then it loses no more than is lost already.

    Args:
        params: `scale` and `bias` of the features' shape; either may be absent.
        stats: `mean` and `var` of the features' shape.
        epsilon: added to the variance; > 0.

    Returns:
        `(multiplier, addend)`, of the features' shape, float32 or wider if an argument is.

    Raises:
        ValueError: for a bad argument.

    Example:
        >>> params = {"scale": jnp.array([3.0]), "bias": jnp.array([1.0])}
        >>> stats = {"mean": jnp.array([2.0]), "var": jnp.array([4.0])}
        >>> multiplier, addend = as_affine(params, stats)
        >>> print(multiplier, addend)
        [1.5] [-2.]
    """
    _check(params, stats, epsilon)
    dtype = widest(*params.values(), stats["mean"], stats["var"])
    multiplier = lax.rsqrt(stats["var"].astype(dtype) + epsilon)
    if "scale" in params:
        multiplier = multiplier * params["scale"].astype(dtype)
    return multiplier, _addend(jnp.zeros_like(multiplier), multiplier, params, stats)


def fold(
    kernel: jax.Array,
    bias: jax.Array | None,
    params: Params,
    stats: Stats,
    *,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array]:
    """Folds population normalization into the convolution or dense layer whose output it sees.

    Args:
        kernel: floating, real, `[..., *features]`: the features are the last axes, those that are
            normalized. So it is in Flax and Haiku, `[inputs, features]` of a dense layer and
            `[height, width, inputs, features]` of a convolution, of a grouped or depthwise one
            too (`inputs` per group). Transposed kernels and torch's have to be transposed first.
        bias: `[..., *features]`, or None.
        params: `scale` and `bias` of the normalization; either may be absent.
        stats: `mean` and `var` of the features' shape.
        epsilon: added to the variance; > 0.

    Returns:
        `(kernel, bias)` of a layer whose output is normalized. The kernel keeps its dtype: a
        bfloat16 one is rounded once more, convert it first if that matters. The bias is float32,
        or wider if an argument is, since it holds -mean/std.

    Raises:
        ValueError: for a bad argument.

    Example:
        >>> x, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[1.0], [3.0]])
        >>> params = {"scale": jnp.array([3.0]), "bias": jnp.array([1.0])}
        >>> stats = {"mean": jnp.array([2.0]), "var": jnp.array([4.0])}
        >>> folded, bias = fold(kernel, None, params, stats)
        >>> print(x @ folded + bias[None])  # 3 (7 - 2) / 2 + 1
        [[8.5]]
    """
    _check(params, stats, epsilon)
    features = stats["mean"].shape
    for name, array in (("kernel", kernel), ("bias", bias)):
        if array is None:
            continue
        check_array(name, array)
        if jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"{name} must be floating, got {array.dtype}: dequantize it first.")
        check_floating(name, array)
        if array.shape[array.ndim - len(features) :] != features:
            raise ValueError(
                f"{name} has shape {array.shape}, but the statistics are of features of shape "
                f"{features}, which must be its last axes: transpose it, or fold another layer."
            )
    multiplier, addend = as_affine(params, stats, epsilon=epsilon)
    if bias is not None:
        addend = _addend(bias, multiplier, params, stats)
    wide = kernel.astype(widest(kernel, multiplier))
    return (wide * _like(multiplier, wide)).astype(canonical(kernel.dtype)), addend


def _addend(bias: jax.Array, multiplier: jax.Array, params: Params, stats: Stats) -> jax.Array:
    """Returns (bias - mean) * multiplier + beta, subtracting what may be large and close first."""
    bias = bias.astype(widest(bias, multiplier))
    addend = (bias - _like(stats["mean"], bias)) * _like(multiplier, bias)
    return addend + _like(params["bias"], addend) if "bias" in params else addend


def _like(values: jax.Array, array: jax.Array) -> jax.Array:
    """Returns `values` with the rank and dtype of `array`, whose last axes they belong to."""
    missing = tuple(range(array.ndim - values.ndim))
    return jnp.expand_dims(values, missing).astype(array.dtype)


def _check(params: Params, stats: Stats, epsilon: float) -> None:
    check_epsilon(epsilon)
    for name, tree in (("params", params), ("stats", stats)):
        if not isinstance(tree, Mapping):
            raise ValueError(
                f"{name} must be a dict of arrays, got {type(tree).__name__}: see init_{name}."
            )
    if not {"mean", "var"} <= set(stats):
        raise ValueError(f"stats must have mean and var, got {sorted(stats)}: see init_stats.")
    if not set(params) <= {"scale", "bias"}:
        raise ValueError(f"params may have scale and bias, got {sorted(params)}: see init_params.")
    check_floating("stats['mean']", stats["mean"])
    features = jnp.shape(stats["mean"])
    named = {f"params[{key!r}]": value for key, value in params.items()}
    for name, array in (named | {"stats['var']": stats["var"]}).items():
        check_floating(name, array)
        if jnp.shape(array) != features:
            raise ValueError(
                f"{name} has shape {jnp.shape(array)}, but stats['mean'] has {features}: they "
                "must be those of one normalization."
            )
