"""The mesh of the examples: how many devices divide them, by `jit` or by an explicit type.

And which of its axes are mapped.
"""

import math
from collections.abc import Sequence

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bnjax.normalization.axes import integers


def shards_in_sight(examples: int) -> int:
    """Returns the number of parts that `jit` may make of the examples, by `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.axis_types) != {AxisType.Auto}:
        return 1
    return mesh.size if examples % mesh.size == 0 else 1


def explicit_parts(x: jax.Array, axis: int) -> int:
    """Returns the number of parts that the type of `x` makes of the axis; 1 if it names none."""
    sharding = jax.typeof(x).sharding
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    if not isinstance(names, str | tuple):
        return 1
    names = (names,) if isinstance(names, str) else names
    return math.prod(sharding.mesh.shape[name] for name in names)


def undivided(x: jax.Array, axis: int) -> jax.Array:
    """Returns `x` with the axis whole on every device of its explicit mesh."""
    sharding = jax.typeof(x).sharding
    spec = (None if i == axis else names for i, names in enumerate(sharding.spec))
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def divided_like(x: jax.Array, other: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Returns `x`, divided over its explicit mesh as the type of `other` says."""
    own = jax.typeof(x).sharding
    is_type = isinstance(other, jax.ShapeDtypeStruct)
    like = other.sharding if is_type else jax.typeof(other).sharding
    if not isinstance(like, NamedSharding) or own.spec == like.spec:
        return x
    mesh = like.mesh if own.mesh.empty else own.mesh
    return jax.sharding.reshard(x, NamedSharding(mesh, like.spec))


def mapped_names(axis_name: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names of mapped axes, which may be given as one, several or none.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(axis_name, str):
        return (axis_name,)
    if axis_name is not None and not isinstance(axis_name, Sequence):
        raise ValueError(f"axis_name must be a name or several, got {axis_name!r}.")
    return tuple(axis_name or ())


def as_index_groups(groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Returns groups of devices as tuples, which are hashable; ValueError for anything else."""
    try:
        return tuple(map(integers, map(tuple, groups)))
    except TypeError as error:
        raise ValueError(
            f"axis_index_groups must be groups of numbers of devices, got {groups!r}: for example "
            "[[0, 1], [2, 3]]."
        ) from error


def check_axis_index_groups(
    groups: Sequence[Sequence[int]] | None, axis_name: str | Sequence[str] | None
) -> None:
    """Raises ValueError unless the groups divide an axis that is named, equally."""
    if groups is None:
        return
    sizes = set(map(len, as_index_groups(groups)))
    if axis_name is None:
        raise ValueError(f"axis_index_groups={groups} needs axis_name: the axis they divide.")
    if len(sizes) != 1:
        raise ValueError(f"axis_index_groups must be of one size, got {groups}.")


def is_mapped(name: str) -> bool:
    """Whether `shard_map`, `pmap` or `vmap` maps an axis of this name here."""
    try:
        lax.axis_size(name)
    except NameError:
        return False
    return True


def check_mapped(axis_name: str | Sequence[str] | None) -> None:
    """Raises NameError, as JAX does, for an axis that nothing maps here."""
    for name in mapped_names(axis_name):
        if not is_mapped(name):
            raise NameError(
                f"axis_name={name!r} is not mapped here: call under shard_map, pmap or vmap with "
                "this axis; under jit alone, where the batch is whole on any devices, give None."
            )
