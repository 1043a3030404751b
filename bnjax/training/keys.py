"""Typed PRNG keys as arrays of their data, which NumPy, disks and networks know."""

from typing import Any

import jax


def is_key(leaf: Any) -> bool:
    """Whether a leaf, an array or a scalar, is a typed PRNG key."""
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def key_impl(leaf: Any) -> str | None:
    """Returns the name of a key's implementation; None for another array."""
    return str(jax.random.key_impl(leaf)) if is_key(leaf) else None


def to_array(leaf: Any) -> Any:
    """Returns a key's data; another array as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def from_array(array: Any, impl: str | None) -> Any:
    """Returns the key of this data, or the array if `impl` is None: the inverse of `to_array`."""
    return array if impl is None else jax.random.wrap_key_data(array, impl=impl)


def array_form(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of `to_array(leaf)`; the leaf may be a `jax.ShapeDtypeStruct`."""
    form = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jax.eval_shape(jax.random.key_data, form) if is_key(leaf) else form
