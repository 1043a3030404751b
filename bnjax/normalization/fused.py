"""Normalization by the batch's moments, with the backward pass in closed form.

Autodiff through the moments keeps several float32 copies of the activations. The closed form
(Ioffe & Szegedy 2015, section 3, chain rule collected) needs only `x` itself and two numbers per
feature, and one sum over devices.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization.moments import Moments, batch_moments, precision


class Batch(NamedTuple):
    """What "the batch" is; static, hence hashable.

    Attributes:
        axes: the axes that moments average over.
        axis_name: mapped axes that share the batch.
        axis_index_groups: groups of devices that share a batch each.
    """

    axes: tuple[int, ...]
    axis_name: str | tuple[str, ...] | None
    axis_index_groups: tuple[tuple[int, ...], ...] | None

    @property
    def names(self) -> tuple[str, ...]:
        """The mapped axes, none, one or several."""
        if self.axis_name is None:
            return ()
        return (self.axis_name,) if isinstance(self.axis_name, str) else self.axis_name

    def moments(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Moments of `x` over this batch."""
        return batch_moments(
            x,
            self.axes,
            mask=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )


def affine(
    x: jax.Array,
    mean: jax.Array,
    rstd: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    axes: tuple[int, ...],
) -> jax.Array:
    """(x - mean) * rstd * scale + bias, at the precision of `mean`.

    The mean is subtracted before anything is multiplied: x * a - mean * a would cancel.
    """
    factor = rstd if scale is None else rstd * scale.astype(rstd.dtype)
    y = (x.astype(mean.dtype) - jnp.expand_dims(mean, axes)) * jnp.expand_dims(factor, axes)
    return y if bias is None else y + jnp.expand_dims(bias.astype(y.dtype), axes)


def finite_where_masked(
    x: jax.Array, mask: jax.Array | None, mean: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """Replaces NaN and infinity in masked places by the mean, so that they reach no gradient.

    At the precision of the mean: rounded to that of `x`, it would not be the mean.
    """
    if mask is None:
        return x
    return jnp.where(mask | jnp.isfinite(x), x.astype(mean.dtype), jnp.expand_dims(mean, axes))


def normalize_autodiff(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    batch: Batch,
    epsilon: float,
    dtype: DTypeLike,
) -> tuple[jax.Array, Moments]:
    """The definition, differentiated by JAX: any order, forward or reverse."""
    y, moments, _ = _definition(x, scale, bias, mask, batch, epsilon, dtype)
    return y, jax.tree.map(lax.stop_gradient, moments)


def _definition(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    batch: Batch,
    epsilon: float,
    dtype: DTypeLike,
) -> tuple[jax.Array, Moments, jax.Array]:
    """`y`, the moments and 1/sqrt(var + epsilon), all of them differentiable."""
    # Converted once: autodiff then adds the gradients of all its uses before it rounds.
    x = x.astype(precision(x.dtype))
    moments = batch.moments(x, mask)
    x = finite_where_masked(x, mask, moments.mean, batch.axes)
    rstd = lax.rsqrt(moments.var + epsilon)
    y = affine(x, moments.mean, rstd, scale, bias, batch.axes)
    return y.astype(dtype), moments, rstd


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def normalize_fused(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    batch: Batch,
    epsilon: float,
    dtype: DTypeLike,
) -> tuple[jax.Array, Moments]:
    """The same values; reverse mode by the closed form."""
    return normalize_autodiff(x, scale, bias, mask, batch, epsilon, dtype)


Sums = dict[str, jax.Array]


class _Residuals(NamedTuple):
    x: jax.Array
    scale: jax.Array | None
    bias: jax.Array | None
    mask: jax.Array | None
    mean: jax.Array
    rstd: jax.Array
    size: jax.Array


def _forward(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    batch: Batch,
    epsilon: float,
    dtype: DTypeLike,
) -> tuple[tuple[jax.Array, Moments], _Residuals]:
    y, moments, rstd = _definition(x, scale, bias, mask, batch, epsilon, dtype)
    # The residuals keep their gradient: second derivatives pass through them.
    residuals = _Residuals(x, scale, bias, mask, moments.mean, rstd, moments.size)
    return (y, jax.tree.map(lax.stop_gradient, moments)), residuals


def _backward(
    batch: Batch,
    epsilon: float,
    dtype: DTypeLike,
    residuals: _Residuals,
    cotangents: tuple[jax.Array, Moments],
) -> tuple[jax.Array, jax.Array | None, jax.Array | None, None]:
    """Dx = scale rstd (dy - (sum dy + xhat sum dy xhat) / m), the sums being dbias and dscale.

    Statistics carry no gradient: the moments' cotangents are dropped.
    """
    x, scale, bias, mask, mean, rstd, size = residuals
    axes = batch.axes
    dy = cotangents[0].astype(mean.dtype)
    xhat = affine(finite_where_masked(x, mask, mean, axes), mean, rstd, None, None, axes)

    sums = {"bias": dy.sum(axes), "scale": (dy * xhat).sum(axes)}
    if mask is not None:
        dy = jnp.where(mask | jnp.isfinite(x), dy, 0)  # elsewhere y is `bias`, whatever x
        sums["mean"] = dy.sum(axes)
    shared = _across(sums, batch)
    mean_sum = shared["bias" if mask is None else "mean"]
    correction = jnp.expand_dims(mean_sum, axes) + xhat * jnp.expand_dims(shared["scale"], axes)
    correction /= jnp.expand_dims(jnp.broadcast_to(jnp.maximum(size, 1), mean.shape), axes)
    if mask is not None:
        correction = jnp.where(mask, correction, 0)
    factor = rstd if scale is None else rstd * scale.astype(rstd.dtype)
    dx = (dy - correction) * jnp.expand_dims(factor, axes)

    def gradient(key: str, parameter: jax.Array | None) -> jax.Array | None:
        if parameter is None:
            return None
        missing = _missing_axes(parameter, sums[key])
        if batch.axis_index_groups is None and missing.issuperset(batch.names):
            total = _sum_over(missing.difference(batch.names), shared[key])
        else:
            total = _sum_over(missing, sums[key])
        return total.astype(parameter.dtype)

    dx = _sum_over(_missing_axes(x, dx), dx)
    return dx.astype(x.dtype), gradient("scale", scale), gradient("bias", bias), None


def _across(values: Sums, batch: Batch) -> Sums:
    if batch.axis_name is None:
        return values
    return lax.psum(values, batch.axis_name, axis_index_groups=batch.axis_index_groups)


def _missing_axes(primal: jax.Array, cotangent: jax.Array) -> frozenset[str]:
    """Mesh axes over which `shard_map` types the cotangent as varying, but not the primal.

    The types must agree, hence the cotangent is summed over them. Elsewhere (`pmap`, `vmap`) there
    are none: each device returns its own share and the caller sums, as for every parameter.
    """
    return _varying(cotangent) - _varying(primal)


def _varying(value: jax.Array) -> frozenset[str]:
    return jax.typeof(value).manual_axis_type.varying


def _sum_over(names: frozenset[str], value: jax.Array) -> jax.Array:
    return lax.psum(value, tuple(sorted(names))) if names else value


normalize_fused.defvjp(_forward, _backward)
