"""The covariance of a batch, from which whitening follows."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from bnjax.normalization.arguments import check_array, check_real, split_axes
from bnjax.normalization.axes import check_integer
from bnjax.normalization.dtypes import precision
from bnjax.normalization.meshes import (
    check_axis_index_groups,
    check_mapped,
    explicit_parts,
    undivided,
)
from bnjax.normalization.moments import batch_moments, batch_size, sum_over_devices

# Accelerators round the factors of a product to bfloat16 or so, unless told not to.
einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Covariance(NamedTuple):
    """The mean and the covariance of a batch.

    Attributes:
        mean: `[features]`, at least float32.
        cov: biased covariance (divided by the count), `[groups, c, c]` with c = features / groups.
        size: number of vectors behind them; a scalar.
    """

    mean: jax.Array
    cov: jax.Array
    size: jax.Array


def batch_covariance(
    x: jax.Array,
    *,
    axis: int = -1,
    groups: int = 1,
    mask: jax.Array | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Covariance:
    """Returns mean and covariance of `x`, differentiable, pooled by count over masks and devices.

    Two passes, at least in float32: as accurate at any offset as x - mean is. Arguments and errors
    are those of `whitening_transform`.
    """
    group_width(feature_count(x, axis), groups)
    batch_vectors(x, axis, axis_name, axis_index_groups)
    return covariance_and_centred(x, axis, groups, mask, axis_name, axis_index_groups)[0]


def covariance_and_centred(
    x: jax.Array,
    axis: int,
    groups: int,
    mask: jax.Array | None,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
) -> tuple[Covariance, jax.Array]:
    """Returns the covariance, and x - mean as `[vectors, groups, c]`."""
    keep = _row_mask(mask, x, axis)
    rows = rows_of(x, axis, groups).astype(precision(x.dtype))
    counted = None if keep is None else jnp.broadcast_to(keep, rows.shape)
    if keep is not None:  # first of all: a masked NaN would poison every gradient
        usable = keep | jnp.isfinite(rows)
        rows = jnp.where(usable, rows, 0)
    mean, _, size = batch_moments(
        rows, (0,), mask=counted, axis_name=axis_name, axis_index_groups=axis_index_groups
    )
    size = jnp.ravel(size)[0]  # the same for all features

    centred = rows - mean[None]
    if keep is not None:
        centred = jnp.where(usable & (size > 0), centred, 0)  # of nothing there is no matrix
    used = centred if keep is None else jnp.where(keep, centred, 0)
    blocks = used.reshape(-1, groups, rows.shape[1] // groups)
    sums = [used.sum(0), _sum_of_products(blocks)]
    if axis_name is not None:
        sums = [sum_over_devices(each, axis_name, axis_index_groups) for each in sums]
    rest, second = (total / jnp.maximum(size, 1) for total in sums)

    # What rounding left of the mean: small, but W may magnify it by 1/sqrt(epsilon).
    parts = rest.reshape(groups, -1)
    cov = second - parts[:, :, None] * parts[:, None, :]
    centred = (centred - rest[None]).reshape(blocks.shape)
    return Covariance(mean + rest, cov, size), centred


def _sum_of_products(blocks: jax.Array) -> jax.Array:
    """Returns the sums over vectors `[vectors, groups, c]` of their outer products."""
    sharding = jax.typeof(blocks).sharding
    of_groups = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[1], None, None))
    return einsum("ngi,ngj->gij", blocks, blocks, out_sharding=of_groups)


def rows_of(x: jax.Array, axis: int, groups: int = 1) -> jax.Array:
    """Returns `x` as `[vectors, features]`.

    An explicit mesh may divide the examples, and the features between groups; what else it divides
    becomes whole.
    """
    x = jnp.moveaxis(x, axis, -1)
    for a in range(1, x.ndim):
        parts = explicit_parts(x, a)
        if parts > 1 and (a < x.ndim - 1 or groups % parts):
            x = undivided(x, a)
    return x.reshape(-1, x.shape[-1])


def feature_count(x: jax.Array, axis: int) -> int:
    """Returns the number of features; raises ValueError unless `axis` is one that `x` has."""
    if isinstance(axis, Sequence):
        raise ValueError(
            f"axis must be one axis, got {axis}: reshape x, so that what shall be whitened "
            "together lies along one."
        )
    check_real(x)
    _, (features,) = split_axes(x, axis)
    if not features:
        raise ValueError(
            f"x must have one feature or more, got shape {x.shape} with axis={axis}: leave out "
            "empty layers."
        )
    return features


def batch_vectors(
    x: jax.Array,
    axis: int,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
) -> int:
    """Returns the number of vectors in the batch; raises ValueError if it is less than two."""
    check_axis_index_groups(axis_index_groups, axis_name)
    check_mapped(axis_name)
    vectors = batch_size(x.shape, split_axes(x, axis)[0], axis_name, axis_index_groups)
    if vectors < 2:
        raise ValueError(
            f"x of shape {x.shape} with feature axis {axis} leaves {vectors} vector for the "
            "covariance: it is zero and the output would be `bias`, whatever x. Train on a larger "
            "batch, or use whiten_population."
        )
    return vectors


def _row_mask(mask: jax.Array | None, x: jax.Array, axis: int) -> jax.Array | None:
    """Returns the mask as `[vectors, 1]`."""
    if mask is None:
        return None
    check_array("mask", mask)
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask must be bool, got {mask.dtype}: use mask.astype(bool).")
    one_a_vector = [1 if a == axis % x.ndim else n for a, n in enumerate(x.shape)]
    if mask.ndim != x.ndim or any(
        m not in (1, n) for m, n in zip(mask.shape, one_a_vector, strict=True)
    ):
        raise ValueError(
            f"mask of shape {mask.shape} does not fit x of shape {x.shape} with feature axis "
            f"{axis}: it needs the same rank, size one along the features (a covariance takes "
            f"whole vectors), and sizes of {tuple(one_a_vector)} or ones."
        )
    return rows_of(jnp.broadcast_to(mask, one_a_vector), axis)


def group_width(features: int, groups: int) -> int:
    """Returns the features of a group; raises ValueError unless the groups divide them."""
    check_integer("groups", groups, 1)
    if features % groups:
        raise ValueError(
            f"groups must divide the features, got groups={groups} for {features} features."
        )
    return features // groups
