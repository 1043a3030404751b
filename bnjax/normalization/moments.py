"""Mean, variance and size of "the batch": the only variance formula of the project."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization.axes import check_integer, sorted_axes
from bnjax.normalization.dtypes import precision
from bnjax.normalization.fast.sums import first_rows, pair_of_sums, slices_of
from bnjax.normalization.meshes import check_axis_index_groups, check_mapped, mapped_names
from bnjax.normalization.versions import as_varying, gather_invariant, typed_axes, varying_axes


class Moments(NamedTuple):
    """The moments of each feature over a batch.

    Attributes:
        mean: at least float32, shape of the features.
        var: biased variance (divided by the count), same dtype and shape.
        size: number of values behind each mean; a scalar, or one per feature under a mask.

    Example:
        >>> Moments(mean=jnp.zeros(2), var=jnp.ones(2), size=jnp.array(60)).mean.shape
        (2,)
    """

    mean: jax.Array
    var: jax.Array
    size: jax.Array


def batch_moments(
    x: jax.Array,
    axes: int | Sequence[int],
    *,
    mask: jax.Array | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    shards: int = 1,
) -> Moments:
    """Returns the moments of `x` over `axes`, pooled by count over masks and devices.

    One pass, and exact at any offset: both are summed around the mean of a sample, a slice of
    1/8 to 1/2 of each image; of bfloat16, whose results need fewer digits, a row of it. By
    Cauchy-Schwarz the mean of 1/k of all values is within sqrt(k) standard deviations of that of
    all, so that what cancels in E[(x-c)^2] - E[x-c]^2 is at most k variances. (Without images to
    slice, or under a mask, the sample is all.) Devices exchange their moments once, by one small
    all-gather.

    Args:
        x: floating, any shape; narrower types are summed in float32.
        axes: the axis or axes to average over, of which the first holds the examples.
        mask: bool, of the shape of `x`; what is False does not count, NaN included.
        axis_name: mapped axis or axes (`pmap`, `shard_map`, `vmap`) that share the batch.
        axis_index_groups: groups of devices along `axis_name` that share a batch each.
        shards: into how many equal parts `jit` divides the examples over the mesh in sight. Their
            moments are then merged like those of devices, by one collective; the compiler, which
            divides sum by sum, would need two in float32. Not together with `axis_name`.

    Raises:
        ValueError: an `x` that is not floating; an axis that it does not have, or that is given
            twice; a mask of another shape or type; groups of devices without their axis; shards
            that do not divide the examples.

    Example:
        >>> images = jnp.arange(24.0).reshape(2, 2, 2, 3)
        >>> mean, var, size = batch_moments(images, axes=(0, 1, 2))
        >>> mean.tolist(), var.tolist(), int(size)
        ([10.5, 11.5, 12.5], [47.25, 47.25, 47.25], 8)
    """
    _check(x, mask)
    axes = sorted_axes(x.ndim, axes, "axes")
    check_axis_index_groups(axis_index_groups, axis_name)
    _check_shards(shards, x.shape[axes[0]], axis_name)
    if shards > 1:
        return _merge(_parts_of_shards(x, axes, mask, shards))
    local = _local_part(x, axes, mask)
    if axis_name is None:
        return Moments(local.shift + local.rest, local.var, local.size)
    return _merge(_parts_of_devices(local, axis_name, axis_index_groups))


def _check(x: jax.Array, mask: jax.Array | None) -> None:
    """Raises ValueError unless these can be arguments of `batch_moments`."""
    dtype = getattr(x, "dtype", type(x).__name__)
    if not hasattr(x, "astype") or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"x must be a real, floating array, got {dtype}: convert it first, for example by "
            "jnp.asarray(x, jnp.float32)."
        )
    if mask is None:
        return
    dtype, shape = getattr(mask, "dtype", type(mask).__name__), getattr(mask, "shape", "")
    if dtype != jnp.bool_ or shape != x.shape:
        raise ValueError(
            f"mask must be bool, of the shape of x {x.shape}, got {dtype} {shape}: "
            "use jnp.broadcast_to(mask.astype(bool), x.shape)."
        )


def _check_shards(shards: int, examples: int, axis_name: str | Sequence[str] | None) -> None:
    """Raises ValueError unless so many equal parts can be made where no mapped axis divides."""
    check_integer("shards", shards, 1)
    if shards > 1 and (axis_name is not None or examples % shards):
        raise ValueError(
            f"shards={shards} must divide the {examples} examples, and be 1 with axis_name."
        )


class _Part(NamedTuple):
    """Moments with the mean in two floats, shift + rest: at an offset one would cost its digits."""

    shift: jax.Array
    rest: jax.Array
    var: jax.Array
    size: jax.Array


def merge(parts: Moments) -> Moments:
    """Returns the moments of the union of disjoint parts (Chan et al. 1979), stacked in front."""
    return _merge(_Part(parts.mean, jnp.zeros_like(parts.mean), parts.var, parts.size))


def _merge(parts: _Part) -> Moments:
    size = parts.size.sum(0)
    weight = parts.size / jnp.maximum(size, 1)[None]
    weight = weight.reshape(weight.shape + (1,) * (parts.var.ndim - weight.ndim))
    base = (weight * parts.shift).sum(0)
    mean = (parts.shift - base[None]) + parts.rest  # small numbers: weighting costs no digits
    rest = (weight * mean).sum(0)
    var = (weight * (parts.var + jnp.square(mean - rest[None]))).sum(0)
    return Moments(base + rest, var, size)


def pool(groups: Moments, axis_name: str | Sequence[str] | None = None) -> Moments:
    """Returns the mean moments of groups, each normalized by its own, stacked in front.

    The variance is that within the groups; what their means differ by is left out. The size is
    the mean size, so that var * size / (size - 1) is the unbiased pooled variance.

    Args:
        groups: of equal number on each device.
        axis_name: mapped axes, over whose devices the mean goes as well; one all-reduce.
    """
    masked = groups.size.ndim > 1
    size = groups.size.reshape(groups.size.shape + (1,) * (groups.mean.ndim - groups.size.ndim))
    size += jnp.zeros_like(groups.mean)  # divided over an explicit mesh as the means are
    nonempty = (size > 0).astype(size.dtype)
    rows = (size * groups.mean, size * groups.var, size, nonempty)
    packed = jnp.stack([row.sum(0) for row in rows])
    if axis_name is not None:
        packed = sum_over_devices(packed, axis_name)
    mean, var, total, number = packed
    divisor = jnp.maximum(total, 1)
    mean_size = total / jnp.maximum(number, 1) if masked else groups.size.mean()
    return Moments(mean / divisor, var / divisor, mean_size)


def _local_part(x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None) -> _Part:
    dtype = precision(x.dtype)
    if mask is None:
        size = jnp.asarray(batch_size(x.shape, axes), dtype)
    else:
        size = mask.sum(axes, dtype=dtype)
        x = jnp.where(mask, x, 0)  # first of all: a masked NaN would poison every gradient
    divisor = jnp.maximum(size, 1)

    def about(shift: jax.Array, x: jax.Array, *mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        centred = x.astype(dtype) - jnp.expand_dims(shift, axes)
        if mask:
            centred = jnp.where(mask[0], centred, 0)
        return centred, jnp.square(centred)

    # The number that both sums are taken around: near enough to the mean that nothing cancels, and
    # known before the pass over all of `x`. See `batch_moments` for how near that is.
    if mask is None:
        sample = first_rows(x, axes) if jnp.finfo(x.dtype).nmant < 8 else slices_of(x, axes)[0]
        shift = sample.sum(axes, dtype=dtype) / batch_size(sample.shape, axes)
    else:
        shift = x.sum(axes, dtype=dtype) / divisor
    shift = lax.stop_gradient(shift)  # the moments are the same about any number
    arrays = (x,) if mask is None else (x, mask)
    rest, square = pair_of_sums(lambda *arrays: about(shift, *arrays), arrays, axes)
    rest /= divisor
    var = square / divisor - jnp.square(rest)
    # Not `maximum`, which halves the derivatives where all values are equal.
    return _Part(shift, rest, jnp.where(var < 0, 0, var), size)


def _parts_of_shards(
    x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None, shards: int
) -> _Part:
    """Returns the moments of equal parts of the examples, in front, on every device."""

    def local(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return _pack(_local_part(x, axes, mask))

    def split(a: jax.Array) -> jax.Array:
        return a.reshape(*a.shape[: axes[0]], shards, -1, *a.shape[axes[0] + 1 :])

    arrays = (x,) if mask is None else (x, mask)
    packed = jax.vmap(local, in_axes=axes[0])(*map(split, arrays))
    # Whole on every device: this is where the compiler puts its one collective.
    packed = lax.with_sharding_constraint(packed, jax.sharding.PartitionSpec())
    return _unpack(packed, batch_size(x.shape, axes) // shards)


def _parts_of_devices(
    local: _Part,
    axis_name: str | Sequence[str],
    axis_index_groups: Sequence[Sequence[int]] | None,
) -> _Part:
    """Returns every device's moments, on a leading axis, by one collective."""
    packed = from_all_devices(_pack(local), axis_name, axis_index_groups)
    return _unpack(packed, local.size)


def _pack(part: _Part) -> jax.Array:
    """Returns one array `[3 or 4, ...]`: the size comes along where it differs by feature."""
    return jnp.stack(part if part.size.ndim else part[:3])


def _unpack(packed: jax.Array, size: jax.Array | int) -> _Part:
    """Returns parts from their packed arrays; each has `size`, if that is not among them."""
    shift, rest, var, *sizes = (packed[:, i] for i in range(packed.shape[1]))
    size = sizes[0] if sizes else jnp.full(packed.shape[:1], size, packed.dtype)
    return _Part(shift, rest, var, size)


def from_all_devices(
    values: jax.Array,
    axis_name: str | Sequence[str],
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> jax.Array:
    """Returns the arrays of all devices that share a batch, on a leading axis."""
    check_mapped(axis_name)
    names = mapped_names(axis_name)
    steps = [names]
    if axis_index_groups is None and len(names) > 1:  # `vmap` gathers over one axis at a time
        manual = jax.sharding.get_abstract_mesh().manual_axes
        together = tuple(name for name in names if name in manual)
        steps = [(name,) for name in names if name not in manual] + [together] * bool(together)
    shape = values.shape
    values = as_varying(values, typed_axes(names))  # equal ones count, too: each is a device's
    for step in steps:
        if axis_index_groups is None and varying_axes(values):
            values = gather_invariant(values, step)  # every device has them all: the types say so
        else:
            values = lax.all_gather(values, step, axis_index_groups=axis_index_groups)
    return values.reshape(-1, *shape)


def sum_over_devices(
    values: jax.Array,
    axis_name: str | Sequence[str],
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> jax.Array:
    """Returns the sums over all devices that share a batch."""
    names = mapped_names(axis_name)
    values = as_varying(values, typed_axes(names))  # `psum` takes no axis that is not typed alike
    return lax.psum(values, names, axis_index_groups=axis_index_groups)


def unbiased(var: jax.Array, size: jax.Array) -> jax.Array:
    """Returns `var` times m/(m-1) for m values; `var` itself where there is one, or none."""
    return var * (size / jnp.where(size > 1, size - 1, 1))


def batch_size(
    shape: Sequence[int],
    axes: Sequence[int],
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> int:
    """Returns the number of values behind each mean, over all devices of a group."""
    size = 1
    for axis in axes:
        size *= shape[axis]
    if axis_name is None:
        return size
    devices = len(axis_index_groups[0]) if axis_index_groups else lax.axis_size(axis_name)
    return size * devices
