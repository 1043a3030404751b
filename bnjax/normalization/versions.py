"""The differences between JAX 0.7 and today: how `shard_map` types what varies over devices."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from jax import lax

_JAX = jax.__version_info__[:2]


def varying_axes(value: jax.Array) -> frozenset[str]:
    """Returns the mesh axes over which `shard_map` types the value as varying; none elsewhere."""
    kind = jax.typeof(value)
    return kind.manual_axis_type.varying if _JAX >= (0, 10) else kind.vma


def typed_axes(names: Collection[str]) -> frozenset[str]:
    """Returns those of the mapped axes that `shard_map` has types for: none without check_vma."""
    return frozenset[str]().union(*(varying_axes(lax.axis_index(name)) for name in names))


def as_varying(value: jax.Array, names: Collection[str]) -> jax.Array:
    """Returns the value, typed as varying over these mesh axes besides its own."""
    missing = tuple(sorted(set(names) - varying_axes(value)))
    if not missing:
        return value
    if _JAX >= (0, 8):
        return lax.pcast(value, missing, to="varying")
    return lax.pvary(value, missing)  # type: ignore[attr-defined, unused-ignore]


def gather_invariant(values: jax.Array, names: str | tuple[str, ...]) -> jax.Array:
    """Returns the arrays of all devices, in front, typed as the same on each; one collective."""
    if _JAX >= (0, 10):
        return lax.all_gather(values, names, to="invarying")
    if hasattr(lax, "all_gather_invariant"):  # 0.7
        return lax.all_gather_invariant(values, names)
    rows = jnp.zeros((lax.axis_size(names), *values.shape), values.dtype)
    return lax.psum(rows.at[lax.axis_index(names)].set(values), names)  # each fills its own row
