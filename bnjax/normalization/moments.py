"""Mean, variance and size of "the batch": the only variance formula of the project."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


class Moments(NamedTuple):
    """What a batch says about each feature.

    Attributes:
        mean: at least float32, shape of the features.
        var: biased variance (divided by the count), same dtype and shape.
        size: number of values behind each mean; a scalar, or one per feature under a mask.
    """

    mean: jax.Array
    var: jax.Array
    size: jax.Array


def batch_moments(
    x: jax.Array,
    axes: Sequence[int],
    *,
    mask: jax.Array | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments:
    """Moments of `x` over `axes` (non-negative), pooled by count over masks and devices.

    Two passes: the second one sums differences to the mean of the first, and corrects that mean
    by what is left of it. The rounding of the first pass, which grows with the batch and with
    mean/std, therefore cancels.

    Args:
        x: floating, any shape; narrower types are summed in float32.
        axes: the axes to average over.
        mask: bool, of the shape of `x`; what is False does not count, NaN included.
        axis_name: mapped axis or axes (`pmap`, `shard_map`, `vmap`) that share the batch.
        axis_index_groups: groups of devices along `axis_name` that share a batch each.
    """
    axes = tuple(axes)
    x = x.astype(precision(x.dtype))
    if mask is not None:
        x = jnp.where(mask, x, 0)  # first of all: a masked NaN would poison every gradient

    def total(values: jax.Array) -> jax.Array:
        if mask is not None:
            values = jnp.where(mask, values, 0)
        return across(values.sum(axes))

    def across(values: jax.Array) -> jax.Array:
        if axis_name is None:
            return values
        return lax.psum(values, axis_name, axis_index_groups=axis_index_groups)

    if mask is None:
        size = jnp.asarray(batch_size(x.shape, axes, axis_name, axis_index_groups), x.dtype)
    else:
        size = across(mask.sum(axes, dtype=x.dtype))
    divisor = jnp.maximum(size, 1)

    first = total(x) / divisor
    centred = x - jnp.expand_dims(first, axes)
    rest = total(centred) / divisor
    var = total(jnp.square(centred)) / divisor - jnp.square(rest)
    return Moments(first + rest, jnp.maximum(var, 0), size)


def precision(dtype: DTypeLike) -> jnp.dtype:
    """What moments of `dtype` are computed in: itself, or float32 if it is narrower.

    Not `jnp.promote_types`, which refuses bfloat16 with float32 under strict promotion.
    """
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def batch_size(
    shape: Sequence[int],
    axes: Sequence[int],
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> int:
    """Number of values behind each mean, known while tracing, over all devices of a group."""
    size = 1
    for axis in axes:
        size *= shape[axis]
    if axis_name is None:
        return size
    devices = len(axis_index_groups[0]) if axis_index_groups else lax.axis_size(axis_name)
    return size * devices
