"""Batch normalization of complex numbers: a complex mean, and one real variance E|x - mean|^2.

This is Flax's definition. Real and imaginary parts are not features of their own: they share a
variance. The functions are those of `batch_norm` by name; `x` has gone through `as_complex`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization import batch_norm
from bnjax.normalization.arguments import Params, Stats, full_mask
from bnjax.normalization.dtypes import canonical
from bnjax.normalization.groups import choose_groups, normalize_groups
from bnjax.normalization.moments import Moments
from bnjax.normalization.settings import Settings
from bnjax.normalization.transform import (
    Transform,
    affine,
    finite_where_masked,
    reciprocal_deviation,
    widened,
)


def as_complex(x: jax.Array) -> jax.Array:
    """Returns `x` as complex64, or as complex128 if it is that wide."""
    wide = x.dtype in (jnp.float64, jnp.complex128)
    return x.astype(canonical(jnp.complex128 if wide else jnp.complex64))


def transform_batch(
    x: jax.Array,
    params: Params,
    mask: jax.Array | None,
    settings: Settings,
    axes: tuple[int, ...],
) -> tuple[jax.Array, Moments]:
    """Returns `y` and the moments, differentiated by JAX whatever `impl`; no activation."""
    mask = full_mask(mask, x)
    groups = choose_groups(x, axes, settings)
    dtype = settings.output_dtype(x)
    x = widened(x, dtype)
    transform = Transform(axes, groups, settings.epsilon, None, dtype)

    def normalize(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, Moments]:
        parts = jnp.stack([x.real, x.imag], -1)
        masks = None if mask is None else jnp.broadcast_to(mask[..., None], parts.shape)
        moments = transform.moments(parts, masks)
        joined = _joined(moments)
        x = finite_where_masked(x, mask, joined.mean, axes)
        rstd = reciprocal_deviation(joined, mask, settings.epsilon)
        y = _affine(x, joined.mean, rstd, params, settings, axes)
        return y, jax.tree.map(lax.stop_gradient, moments)

    y, moments = normalize_groups(normalize, x, mask, groups, axes[0])
    return y, _joined(moments)


def transform_population(
    x: jax.Array, params: Params, stats: Stats, settings: Settings, axes: tuple[int, ...]
) -> jax.Array:
    """Returns `y`, where `x`, a parameter or the mean is complex."""
    x = widened(x, settings.output_dtype(x))
    mean = stats["mean"].astype(x.dtype)
    rstd = lax.rsqrt(stats["var"].real.astype(x.real.dtype) + settings.epsilon)
    return _affine(x, mean, rstd, params, settings, axes)


def move_stats(stats: Stats, moments: Moments, settings: Settings) -> Stats:
    """Returns the moved statistics; the mean becomes complex."""

    def part(mean: jax.Array, batch_mean: jax.Array) -> Stats:
        return batch_norm.move_stats(
            stats | {"mean": mean}, moments._replace(mean=batch_mean), settings
        )

    new = part(stats["mean"].real, moments.mean.real)
    imaginary = part(stats["mean"].imag, moments.mean.imag)
    return new | {"mean": lax.complex(new["mean"], imaginary["mean"])}


def _affine(
    x: jax.Array,
    mean: jax.Array,
    rstd: jax.Array,
    params: Params,
    settings: Settings,
    axes: tuple[int, ...],
) -> jax.Array:
    rstd = rstd.astype(x.dtype)  # complex, as scale and bias may be
    y = affine(x, mean, rstd, params.get("scale"), params.get("bias"), axes)
    dtype = settings.output_dtype(x)
    return (y if jnp.issubdtype(dtype, jnp.complexfloating) else y.real).astype(dtype)


def _joined(parts: Moments) -> Moments:
    """Returns moments of complex numbers, from those of both parts on a last axis."""
    size = parts.size[..., 0] if parts.size.ndim else parts.size
    mean = lax.complex(parts.mean[..., 0], parts.mean[..., 1])
    return Moments(mean, parts.var.sum(-1), size)
