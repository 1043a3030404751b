"""Algorithm 1 itself: subtract the mean, divide by the deviation, scale, shift, activate.

This is the definition. JAX can differentiate it (`impl="autodiff"`); `fast/fused.py` gives the
same values a backward pass in closed form.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bnjax.normalization.dtypes import precision
from bnjax.normalization.groups import Groups
from bnjax.normalization.moments import Moments, batch_moments
from bnjax.normalization.settings import Activation


class Transform(NamedTuple):
    """The transform of one group of examples; static, hence hashable.

    Attributes:
        axes: the axes that moments average over.
        groups: which devices share the group.
        epsilon: added to the variance.
        activation: applied last.
        dtype: the output's.
    """

    axes: tuple[int, ...]
    groups: Groups
    epsilon: float
    activation: Activation | None
    dtype: DTypeLike

    def moments(self, x: jax.Array, mask: jax.Array | None) -> Moments:
        """Returns the moments of `x` over the group, on all of its devices."""
        return batch_moments(
            x,
            self.axes,
            mask=mask,
            axis_name=self.groups.axis_name,
            axis_index_groups=self.groups.axis_index_groups,
            shards=self.groups.shards,
        )


def widened(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns `x` in float64 (complex128) if `y` has such a type: it shall have its digits, too."""
    if jnp.finfo(dtype).bits <= jnp.finfo(precision(x.dtype)).bits:
        return x
    return x.astype(jnp.complex128 if jnp.iscomplexobj(x) else jnp.float64)


def definition(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transform: Transform,
) -> tuple[jax.Array, Moments, jax.Array]:
    """Returns `y`, the moments and their `reciprocal_deviation`, all of them differentiable."""
    moments = transform.moments(x, mask)
    x = finite_where_masked(x, mask, moments.mean, transform.axes)
    rstd = reciprocal_deviation(moments, mask, transform.epsilon)
    z = affine(x, moments.mean, rstd, scale, bias, transform.axes)
    return activate(z, transform.activation).astype(transform.dtype), moments, rstd


def normalize_autodiff(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    mask: jax.Array | None,
    transform: Transform,
) -> tuple[jax.Array, Moments]:
    """Returns the definition's `y` and moments; JAX differentiates it, forward or reverse."""
    # Converted once: autodiff then adds the gradients of all its uses before it rounds.
    x = x.astype(precision(x.dtype))
    y, moments, _ = definition(x, scale, bias, mask, transform)
    return y, jax.tree.map(lax.stop_gradient, moments)


def reciprocal_deviation(moments: Moments, mask: jax.Array | None, epsilon: float) -> jax.Array:
    """Returns 1/sqrt(var + epsilon); zero where a mask leaves no value, so that `y` is `bias`."""
    rstd = lax.rsqrt(moments.var + epsilon)
    return rstd if mask is None else jnp.where(moments.size > 0, rstd, 0)


def affine(
    x: jax.Array,
    mean: jax.Array,
    rstd: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    axes: tuple[int, ...],
) -> jax.Array:
    """Returns (x - mean) * rstd * scale + bias, at the precision of `mean`.

    The mean is subtracted before anything is multiplied: x * a - mean * a would cancel.
    """
    factor = rstd if scale is None else rstd * scale.astype(rstd.dtype)
    y = (x.astype(mean.dtype) - jnp.expand_dims(mean, axes)) * jnp.expand_dims(factor, axes)
    return y if bias is None else y + jnp.expand_dims(bias.astype(y.dtype), axes)


def activate(z: jax.Array, activation: Activation | None) -> jax.Array:
    """Returns `z` itself, or its activation."""
    if activation is None:
        return z
    return jax.nn.relu(z) if activation == "relu" else jax.nn.sigmoid(z)


def finite_where_masked(
    x: jax.Array, mask: jax.Array | None, mean: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """Replaces NaN and infinity in masked places by the mean, so that they reach no gradient.

    The result has the precision of the mean: rounded to that of `x`, it would not be the mean.
    """
    if mask is None:
        return x
    return jnp.where(mask | jnp.isfinite(x), x.astype(mean.dtype), jnp.expand_dims(mean, axes))
