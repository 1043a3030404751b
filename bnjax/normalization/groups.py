"""The batch: all examples, those of one device, or groups of k of them ("ghost batches")."""

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization.errors import Refusal
from bnjax.normalization.meshes import (
    as_index_groups,
    check_axis_index_groups,
    check_mapped,
    explicit_parts,
    mapped_names,
    shards_in_sight,
    undivided,
)
from bnjax.normalization.moments import Moments, batch_size, pool
from bnjax.normalization.settings import Settings
from bnjax.normalization.versions import typed_axes, varying_axes

Normalize = Callable[[jax.Array, jax.Array | None], tuple[jax.Array, Moments]]


class Groups(NamedTuple):
    """The groups that the examples form.

    Attributes:
        size: examples in a group, within one device; None if all of them are one group.
        axis_name: mapped axes whose devices share a group.
        axis_index_groups: groups of devices along `axis_name` that share one each.
        pooled_over: mapped axes over which the groups' moments are averaged for the statistics.
        shards: parts of the one group that devices hold, where `jit` divides it.
    """

    size: int | None
    axis_name: str | tuple[str, ...] | None
    axis_index_groups: tuple[tuple[int, ...], ...] | None
    pooled_over: str | tuple[str, ...] | None
    shards: int = 1


def choose_groups(x: jax.Array, axes: tuple[int, ...], settings: Settings) -> Groups:
    """Returns the groups of the examples that a device holds along the first of `axes`.

    Raises:
        ValueError: for an unknown choice, one that would depend on the number of devices or that
            `shard_map` does not know, or a group of less than two values per feature; or if no
            axis holds the examples.
        NameError: as `check_mapped`.
    """
    if not axes:
        raise ValueError(
            f"axis={settings.axis} names every axis of x of shape {x.shape}: one axis must hold "
            "the examples."
        )
    groups = _groups(x.shape[axes[0]], settings)
    _check_values(x, axes, settings.axis, groups)
    _check_mapped_axes(x, groups)
    return groups


def _groups(examples: int, settings: Settings) -> Groups:
    batch, given, name = settings.batch, settings.axis_index_groups, settings.axis_name
    check_axis_index_groups(given, name)
    index_groups = None if given is None else as_index_groups(given)
    axis_name = name if name is None or isinstance(name, str) else tuple(name)
    if batch != "all" and index_groups is not None:
        raise ValueError(f"batch={batch!r} and axis_index_groups both choose the batch: give one.")
    check_mapped(name)
    if batch == "all":
        shards = shards_in_sight(examples) if axis_name is None else 1
        return Groups(None, axis_name, index_groups, None, shards)
    if batch == "device":
        if axis_name is None:
            raise ValueError(
                "batch='device' needs axis_name, the mapped axis of the devices; under jit, where "
                "none is visible, give the examples that a device holds: batch=k."
            )
        return Groups(None, None, None, axis_name)
    batch = operator.index(batch)
    if not isinstance(examples, int):
        raise ValueError(
            f"batch={batch} needs a known number of examples, got {examples}: export with "
            "batch='all', or with a fixed batch size."
        )
    if axis_name is None:
        return Groups(batch if batch < examples else None, None, None, None)
    devices = lax.axis_size(axis_name)
    if batch >= examples * devices:
        return Groups(None, axis_name, None, None)
    if examples % batch == 0:
        return Groups(batch if batch < examples else None, None, None, axis_name)
    span, rest = divmod(batch, examples)
    if rest or devices % span:
        raise ValueError(
            f"batch={batch} does not fit {devices} devices of {examples} examples: it must divide "
            "a device's examples, or be those of a number of devices that divides theirs."
        )
    neighbours = tuple(tuple(range(i, i + span)) for i in range(0, devices, span))
    return Groups(None, axis_name, neighbours, axis_name)


def _check_values(
    x: jax.Array, axes: tuple[int, ...], axis: int | Sequence[int], groups: Groups
) -> None:
    """Raises ValueError if a group leaves no value, or one, per feature.

    Sizes that are symbols (`jax.export.symbolic_shape`) stay open: nothing is known about them.
    """
    values = batch_size(x.shape, axes, groups.axis_name, groups.axis_index_groups)
    where = ""
    if groups.size is not None:
        examples = x.shape[axes[0]]
        smallest = examples % groups.size or groups.size
        values = values // examples * smallest
        where = f" in the group of {smallest} that batch={groups.size} makes"
    if not isinstance(values, int):
        return
    if values == 0:
        raise ValueError(
            f"x of shape {x.shape} with feature axis {axis} has no values to normalize by: leave "
            "out empty batches."
        )
    if values < 2:
        raise Refusal(
            f"x of shape {x.shape} with feature axis {axis} leaves one value per feature{where}: "
            "its variance is zero and the output would be `bias`, whatever x. Train on a larger "
            "batch, or",
            "use normalize_population.",
            in_layers="normalize by the statistics: use_running_average=True (in NNX, by eval()).",
        )


def _check_mapped_axes(x: jax.Array, groups: Groups) -> None:
    """Raises ValueError where JAX's types of what varies know no sum over such devices."""
    names = groups.axis_name or groups.pooled_over
    named = set(mapped_names(names))
    if not varying_axes(x) | typed_axes(named):
        return
    if groups.axis_index_groups is not None:
        raise ValueError(
            f"groups of devices {groups.axis_index_groups} along {groups.axis_name!r} (from "
            "axis_index_groups, or batch=k of several devices) are unknown to shard_map with "
            "check_vma=True: use check_vma=False or pmap."
        )
    of_vmap = named - set(jax.sharding.get_abstract_mesh().manual_axes)
    if of_vmap:
        raise ValueError(
            f"axis_name={names!r} has {sorted(of_vmap)} from vmap, which shard_map with "
            "check_vma=True does not know: use check_vma=False."
        )


def normalize_groups(
    normalize: Normalize, x: jax.Array, mask: jax.Array | None, groups: Groups, axis: int
) -> tuple[jax.Array, Moments]:
    """Normalizes each group of examples, counted along `axis`, by its own moments.

    The last `examples % size` examples are a smaller group of their own.

    Returns:
        `y`, and the mean moments of all groups, on all devices that `pooled_over` names.
    """
    if groups.size is not None:
        y, moments = _normalize_each(normalize, x, mask, groups.size, axis)
    else:
        y, moments = normalize(x, mask)
        if groups.pooled_over is None:
            return y, moments
        moments = jax.tree.map(lambda leaf: leaf[None], moments)
    return y, pool(moments, groups.pooled_over)


def _normalize_each(
    normalize: Normalize, x: jax.Array, mask: jax.Array | None, size: int, axis: int
) -> tuple[jax.Array, Moments]:
    """Returns `y` and the groups' moments, stacked: `vmap` over the groups, then what is left."""
    whole = x.shape[axis] - x.shape[axis] % size
    parts = explicit_parts(x, axis)
    if parts > 1 and (whole < x.shape[axis] or whole // size % parts):
        # Explicit types know no group that lies on several devices: these get all examples.
        whole_mask = None if mask is None else undivided(mask, axis)
        y, moments = _normalize_each(normalize, undivided(x, axis), whole_mask, size, axis)
        return jax.sharding.reshard(y, jax.typeof(x).sharding), moments
    arrays = [x] if mask is None else [x, mask]

    def one(x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, Moments]:
        return normalize(x, mask)

    left_over = x.shape[axis] - whole

    def padded(a: jax.Array, length: int) -> jax.Array:
        padding = [(0, length - n if i == axis else 0) for i, n in enumerate(a.shape)]
        return jnp.pad(a, padding)

    def split(a: jax.Array) -> jax.Array:
        if left_over:  # cut after the reshape: before, XLA of JAX 0.7 mixes up devices
            a = padded(a, whole + size)
        a = a.reshape(*a.shape[:axis], -1, size, *a.shape[axis + 1 :])
        return lax.slice_in_dim(a, 0, whole // size, axis=axis)

    y, moments = jax.vmap(one, in_axes=axis, out_axes=(axis, 0))(*map(split, arrays))
    if left_over:
        rest = [lax.slice_in_dim(a, whole, a.shape[axis], axis=axis) for a in arrays]
        y_rest, moments_rest = one(*rest)
        y = jnp.concatenate([y, jnp.expand_dims(padded(y_rest, size), axis)], axis)
        moments = jax.tree.map(
            lambda many, last: jnp.concatenate([many, last[None]]), moments, moments_rest
        )
    y = y.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    y = lax.slice_in_dim(y, 0, x.shape[axis], axis=axis)
    return y, moments
