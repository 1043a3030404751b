"""Batch normalization of complex numbers: a complex mean, and one real variance E|x - mean|^2.

Flax's definition. Real and imaginary parts are not features of their own: they share a variance.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization import batch_norm
from bnjax.normalization.arguments import (
    Averaging,
    Impl,
    Params,
    RunningVar,
    Stats,
    check_choice,
    check_epsilon,
    check_features,
    check_mapped_axes,
    check_stats,
    check_values,
    feature_axes,
    full_mask,
)
from bnjax.normalization.groups import BatchChoice, choose_groups, normalize_groups
from bnjax.normalization.moments import Moments
from bnjax.normalization.transform import Activation, Transform, affine, finite_where_masked


def batch_transform(
    x: jax.Array,
    params: Params,
    *,
    axis: int | Sequence[int],
    epsilon: float,
    activation: Activation | None,
    batch: BatchChoice,
    mask: jax.Array | None,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
    impl: Impl,
    dtype: DTypeLike,
) -> tuple[jax.Array, Moments]:
    """`batch_norm.batch_transform`, differentiated by JAX whatever `impl`; no activation."""
    x, axes = _as_complex(x, params, axis, epsilon, activation)
    check_choice("impl", impl, Impl)
    mask = full_mask(mask, x)
    name = axis_name if axis_name is None or isinstance(axis_name, str) else tuple(axis_name)
    groups = choose_groups(batch, x.shape[axes[0]], name, axis_index_groups)
    check_values(x, axes, axis, groups)
    check_mapped_axes(x, groups)
    transform = Transform(axes, groups, epsilon, None, dtype)

    def normalize(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, Moments]:
        parts = jnp.stack([x.real, x.imag], -1)
        masks = None if mask is None else jnp.broadcast_to(mask[..., None], parts.shape)
        moments = transform.moments(parts, masks)
        mean, var, _ = _joined(moments)
        x = finite_where_masked(x, mask, mean, axes)
        y = _affine(x, mean, var, params, axes, epsilon, dtype)
        return y, jax.tree.map(lax.stop_gradient, moments)

    y, moments = normalize_groups(normalize, x, mask, groups, axes[0])
    return y, _joined(moments)


def normalize_population(
    x: jax.Array,
    params: Params,
    stats: Stats,
    *,
    axis: int | Sequence[int],
    epsilon: float,
    activation: Activation | None,
    dtype: DTypeLike,
) -> jax.Array:
    """`batch_norm.normalize_population`, where `x`, a parameter or the mean is complex."""
    x, axes = _as_complex(x, params, axis, epsilon, activation)
    check_stats(stats, tuple(n for a, n in enumerate(x.shape) if a not in axes))
    mean = stats["mean"].astype(x.dtype)
    var = stats["var"].real.astype(x.real.dtype)
    return _affine(x, mean, var, params, axes, epsilon, dtype)


def update_stats(
    stats: Stats,
    moments: Moments,
    *,
    decay: float | jax.Array,
    averaging: Averaging,
    running_var: RunningVar,
) -> Stats:
    """`batch_norm.update_stats`; the mean becomes complex."""

    def part(mean: jax.Array, batch_mean: jax.Array) -> Stats:
        return batch_norm.update_stats(
            stats | {"mean": mean},
            moments._replace(mean=batch_mean),
            decay=decay,
            averaging=averaging,
            running_var=running_var,
        )

    new = part(stats["mean"].real, moments.mean.real)
    imaginary = part(stats["mean"].imag, moments.mean.imag)
    return new | {"mean": lax.complex(new["mean"], imaginary["mean"])}


def _as_complex(
    x: jax.Array,
    params: Params,
    axis: int | Sequence[int],
    epsilon: float,
    activation: Activation | None,
) -> tuple[jax.Array, tuple[int, ...]]:
    """`x`, complex, and the axes to average over."""
    features = feature_axes(x.ndim, axis)
    shape = tuple(x.shape[a] for a in features)
    check_features("params", params, shape, allowed={"scale", "bias"})
    if activation is not None:
        raise ValueError(f"activation must be None for complex x, got {activation!r}.")
    x = x.astype(jnp.complex128 if x.dtype in (jnp.float64, jnp.complex128) else jnp.complex64)
    check_epsilon(epsilon, x.real.dtype)
    return x, tuple(a for a in range(x.ndim) if a not in features)


def _affine(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    params: Params,
    axes: tuple[int, ...],
    epsilon: float,
    dtype: DTypeLike,
) -> jax.Array:
    rstd = lax.rsqrt(var + epsilon).astype(x.dtype)  # complex, as scale and bias may be
    y = affine(x, mean, rstd, params.get("scale"), params.get("bias"), axes)
    return (y if jnp.issubdtype(dtype, jnp.complexfloating) else y.real).astype(dtype)


def _joined(parts: Moments) -> Moments:
    """Moments of complex numbers, from those of real and imaginary parts on a last axis."""
    size = parts.size[..., 0] if parts.size.ndim else parts.size
    mean = lax.complex(parts.mean[..., 0], parts.mean[..., 1])
    return Moments(mean, parts.var.sum(-1), size)
