"""Types of arrays: in which one moments are computed, and which an output may have."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Returns the type that statistics of `dtype` are kept in.

    Not `jnp.promote_types`, which refuses bfloat16 with float32 under strict promotion.
    """
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def canonical(dtype: DTypeLike) -> jnp.dtype:
    """Returns the type that JAX has for arrays of `dtype`: NumPy's float64 may be float32."""
    return jnp.dtype(jax.dtypes.canonicalize_dtype(dtype))


def precision(dtype: DTypeLike) -> jnp.dtype:
    """Returns the type that moments of `dtype` are computed in: at least float32."""
    return canonical(at_least_float32(dtype))


def widest(*arrays: jax.Array) -> jnp.dtype:
    """Returns the widest `precision` of real arrays."""
    return max((precision(array.dtype) for array in arrays), key=lambda dtype: dtype.itemsize)


def check_dtype(dtype: DTypeLike) -> None:
    """Raises ValueError unless the output's type is floating."""
    dtype = as_type(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating, got {dtype}: means, scales and outputs are.")


def as_type(dtype: DTypeLike, name: str = "dtype") -> jnp.dtype:
    """Returns the type of such a name; ValueError for what is none, such as an array."""
    try:
        if hasattr(dtype, "astype") and not isinstance(dtype, type):
            raise TypeError  # an array, whose own type would be taken
        return jnp.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be floating, got {dtype!r}, which is no type.") from error
