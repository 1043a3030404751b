"""The arrays of one layer of another framework: read, compared and checked for `converters`."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bnjax.normalization.dtypes import precision

Arrays = Mapping[str, Any]

_NO_STATISTICS = (
    " A layer without running statistics needs new ones, from population_stats: give those."
)


def check_keys(
    name: str, found: Arrays, required: set[str], optional: set[str], flags: str
) -> None:
    """Raises ValueError unless all required arrays are there, and no unknown ones."""
    missing, unknown = sorted(required - {*found}), sorted({*found} - required - optional)
    if missing or unknown:
        raise ValueError(
            f"{name} lacks {missing} and has unknown {unknown}: give the arrays of one layer, "
            f"named {sorted(required | optional)}"
            + (f", and set {flags} as in the layer." if flags else ".")
            + _NO_STATISTICS * any("var" in key for key in missing)
        )


def flat(name: str, tree: Mapping[str, Arrays]) -> dict[str, Any]:
    """Returns `{"a": {"b": x}}` as `{"a/b": x}`."""
    found: dict[str, Any] = {}
    for key, inner in tree.items():
        if not isinstance(inner, Mapping):
            raise ValueError(f"{name}[{key!r}] must be a mapping of arrays, got {type(inner)}.")
        found |= {f"{key}/{leaf}": value for leaf, value in inner.items()}
    return found


def read(found: Arrays, names: Mapping[str, str], notes: list[str]) -> dict[str, jax.Array]:
    """Returns the arrays of one layer by our names; `names` has these by the source's."""
    arrays = {key: read_array(key, found[key]) for key in names}
    shapes = {key: array.shape for key, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"arrays of one layer must have one shape, got {shapes}.")
    rounded, widened = [], []
    for key, array in arrays.items():
        if names[key] == "var" and bool((array < 0).any()):
            raise ValueError(
                f"{key} is negative, {array.min()} at least: no variance. Take another checkpoint, "
                "or make new statistics with population_stats."
            )
        if str(getattr(found[key], "dtype", "")).endswith("float64") and array.dtype.itemsize < 8:
            rounded.append(key)
        if names[key] in ("mean", "var") and array.dtype != precision(array.dtype):
            arrays[key] = array.astype(precision(array.dtype))
            widened.append(f"{key} ({array.dtype})")
    if rounded:
        notes.append(f"rounded from float64 to float32, without jax_enable_x64: {rounded}.")
    if widened:
        notes.append(
            f"float32 now, to go on averaging: {widened}. float16 holds no variance above 65504, "
            "and none below 6e-8; bfloat16 two to three digits."
        )
    return {names[key]: array for key, array in arrays.items()}


def read_array(name: str, value: Any) -> jax.Array:
    """Returns a copy: torch and Keras change theirs in place."""
    try:
        array = jnp.array(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} cannot be read as an array ({error}). Of a torch tensor, give "
            "tensor.detach().cpu(), and .float() of a bfloat16 one."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, got {array.dtype}.")
    if not bool(jnp.isfinite(array).all()):
        overflow = "" if array.dtype != jnp.float16 else " float16 overflows above 65504."
        raise ValueError(
            f"{name} has values that are NaN or infinite.{overflow} Take another checkpoint, or "
            "make new statistics with population_stats."
        )
    return array


def read_count(name: str, value: Any) -> int:
    """Returns a number of updates; raises ValueError unless it is one."""
    try:
        count = operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} must be one integer, got {value!r}.") from error
    if not 0 <= count < 2**31:
        raise ValueError(f"{name} must be in [0, 2^31), got {count}.")
    return count


def check_rank(arrays: dict[str, jax.Array], shape: str) -> None:
    """Raises ValueError unless the features have one axis."""
    if arrays["mean"].ndim != 1:
        raise ValueError(f"arrays have shape {arrays['mean'].shape}, but {shape}.")


def squeeze(name: str, array: jax.Array, axis: Sequence[int] | None) -> jax.Array:
    """Returns the features alone, without the axes averaged over: by default, all of size 1."""
    if axis is None:
        if array.size != max(array.shape, default=0):
            raise ValueError(
                f"{name} has shape {array.shape}, with several axes of features: give `axis`, the "
                "axes averaged over."
            )
        return array.reshape(-1)
    if any(not -array.ndim <= a < array.ndim or array.shape[a] != 1 for a in axis):
        raise ValueError(f"axis={axis} must name axes of size 1, {name} has shape {array.shape}.")
    return array.squeeze(tuple(axis))


def check_debiasing(
    ema: str, average: jax.Array, hidden: jax.Array, decay: float, count: int
) -> None:
    """Raises ValueError unless hidden = average (1 - decay^count), as far as rounding tells.

    Haiku rounds the decay to the type of the state, and takes its power there.
    """
    factor = 1 - decay**count
    if average.shape != hidden.shape:
        raise ValueError(f"{ema} has average {average.shape} and hidden {hidden.shape}.")
    if factor == 0:
        return
    tolerance = (8 + count * decay**count) * float(jnp.finfo(hidden.dtype).eps) / factor
    error = jnp.abs(hidden.astype(average.dtype) - factor * average)
    if bool((error > tolerance * jnp.abs(hidden.astype(average.dtype))).any()):
        raise ValueError(
            f"decay_rate={decay} does not fit {ema}, whose hidden is not its average times "
            f"1 - decay_rate^{count}: give the decay_rate it was trained with; that of "
            "`settings` may be changed afterwards."
        )
