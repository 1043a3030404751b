"""Arrays, checked while tracing: every error names the value and the remedy."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bnjax.normalization.axes import integers, sorted_axes
from bnjax.normalization.dtypes import check_dtype
from bnjax.normalization.errors import Refusal
from bnjax.normalization.moments import Moments
from bnjax.normalization.settings import Settings, check_epsilon

Params = dict[str, jax.Array]
"""`scale` and `bias`, each of the features' shape; either may be absent."""

Stats = dict[str, jax.Array]
"""`mean` and `var` of the features' shape, and `count`, each feature's updates so far, where
averaging needs it. `mean` and `var` are ready for use at any time, debiased ones included."""


def split_axes(x: jax.Array, axis: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axes to average over, and the features' shape."""
    features = sorted_axes(x.ndim, axis)
    axes = tuple(a for a in range(x.ndim) if a not in features)
    return axes, tuple(x.shape[a] for a in features)


def check_input(
    x: jax.Array, params: Params, settings: Settings, *statistics: Stats, real: bool = True
) -> tuple[int, ...]:
    """Returns the axes to average over, if all that a call is given fits together.

    Raises:
        ValueError: unless the parameters and all statistics are those of the features of `x`, and
            the settings possible for it. `real` says which arithmetic shall take it.
    """
    if real:
        check_real(x)
    elif settings.activation is not None:
        raise ValueError(f"activation must be None for complex x, got {settings.activation!r}.")
    axes, features = split_axes(x, settings.axis)
    check_features("params", params, features, allowed={"scale", "bias"}, real=real)
    for stats in statistics:
        check_stats(stats, features, real=real)
    check_epsilon(settings.epsilon, x.dtype)
    dtype = settings.dtype
    if dtype is not None and (real or not jnp.issubdtype(dtype, jnp.complexfloating)):
        check_dtype(dtype)
    return axes


def check_real(x: jax.Array) -> None:
    """Raises ValueError unless `x` is a floating array of examples and features."""
    check_array("x", x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(
            f"x must be real, got {x.dtype}: normalize x.real and x.imag, each with features of "
            "its own, for example stacked on an axis before the features."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be floating, got {x.dtype}: convert it first, for example x.astype(float32)."
        )
    if x.ndim < 2:
        raise ValueError(
            f"x must have an axis of examples and one of features, got shape {x.shape}: "
            "add the missing axis, for example x[None]."
        )


def check_array(name: str, value: Any) -> None:
    """Raises ValueError unless it is an array of JAX or NumPy."""
    if not (hasattr(value, "dtype") and hasattr(value, "astype")):
        raise ValueError(
            f"{name} must be an array, got {type(value).__name__}: use jnp.asarray({name})."
        )


def check_floating(name: str, value: Any, *, real: bool = True) -> None:
    """Raises ValueError unless it is an array of floating numbers; or, if not `real`, complex."""
    check_array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        raise ValueError(
            f"{name} must be floating, got {value.dtype}: convert it, for example by "
            ".astype(float32)."
        )
    if real:
        check_no_imaginary_part(name, value)


def check_no_imaginary_part(name: str, value: Any) -> None:
    """Raises ValueError for complex numbers, of which the real part alone would be taken."""
    if jnp.iscomplexobj(value):
        raise ValueError(
            f"{name} must be real, got {value.dtype}: complex numbers are for the layers of "
            "bnjax.linen and bnjax.nnx."
        )


def check_shape(shape: int | Sequence[int], name: str = "shape") -> None:
    """Raises ValueError unless it is a number of features, or their shape."""
    try:
        sizes = integers(shape)
    except TypeError as error:
        raise ValueError(f"{name} must be an integer or several, got {shape!r}.") from error
    if any(size < 0 for size in sizes):
        raise ValueError(f"{name} must not be negative, got {shape!r}.")


def check_stats(stats: Stats, features: tuple[int, ...], *, real: bool) -> None:
    """Raises ValueError unless these are statistics of such features, complex if not `real`."""
    check_features("stats", stats, features, allowed={"mean", "var", "count"}, real=real)
    if not {"mean", "var"} <= set(stats):
        raise ValueError(f"stats has the keys {sorted(stats)}: make it with init_stats.")
    for key in ("mean", "var"):
        check_floating(f"stats[{key!r}]", stats[key], real=real)


def check_moments(stats: Stats, moments: Moments) -> None:
    """Raises ValueError unless these are statistics and moments, of the same features."""
    if not isinstance(moments, Moments):
        raise ValueError(
            f"moments must be Moments, got {type(moments).__name__}: take those that batch_moments "
            "or batch_transform returns."
        )
    for name, value in moments._asdict().items():
        check_array(f"moments.{name}", value)
    if not isinstance(stats, Mapping) or not {"mean", "var"} <= set(stats):
        raise ValueError(f"stats must be a dict with mean and var, got {stats!r}.")
    for key in stats:
        check_array(f"stats[{key!r}]", stats[key])
    for key in ("mean", "var"):
        old, new = stats[key], getattr(moments, key)
        check_floating(f"stats[{key!r}]", old)
        check_floating(f"moments.{key}", new)
        if new.shape != old.shape:
            raise ValueError(
                f"moments.{key} has shape {new.shape}, but stats[{key!r}] has {old.shape}: they "
                "must be of the same features."
            )


def check_features(
    name: str,
    tree: dict[str, jax.Array],
    features: tuple[int, ...],
    *,
    allowed: set[str],
    real: bool = True,
) -> None:
    """Raises ValueError unless the tree has these keys alone, of the features' shape.

    If `real`, it has no complex numbers.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(
            f"{name} must be a dict of arrays, got {type(tree).__name__}: make it with init_{name}."
        )
    if not set(tree) <= allowed:
        raise ValueError(
            f"{name} has the keys {sorted(tree)}, expected {sorted(allowed)}: "
            f"make it with init_{name}."
        )
    for key in tree:
        check_array(f"{name}[{key!r}]", tree[key])
        if real:
            check_no_imaginary_part(f"{name}[{key!r}]", tree[key])
        if jnp.shape(tree[key]) != features:
            raise Refusal(
                f"{name}[{key!r}] has shape {jnp.shape(tree[key])}, but x has features of "
                f"shape {features}:",
                f"make it with init_{name}({features}), or set `axis`.",
                in_layers="set axis (for NCHW, axis=1), or initialize the layer for such features "
                "(in NNX, by num_features).",
            )


def check_count(stats: Stats, averaging: str) -> None:
    """Raises ValueError if averaging needs a count that is not there."""
    if averaging != "ema" and "count" not in stats:
        raise Refusal(
            f"averaging={averaging!r} needs stats['count']:",
            f"make the statistics with init_stats(..., averaging={averaging!r}).",
            in_layers="initialize the layer with this averaging, or add the updates so far of "
            "each feature.",
        )


def full_mask(mask: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """Returns the mask in the shape of `x`."""
    if mask is None:
        return None
    check_array("mask", mask)
    if mask.dtype != jnp.bool_:
        raise ValueError(f"mask must be bool, got {mask.dtype}: use mask.astype(bool).")
    fits = mask.ndim == x.ndim and all(
        m in (1, n) for m, n in zip(mask.shape, x.shape, strict=True)
    )
    if not fits:  # one of lower rank could mean examples or features
        raise ValueError(
            f"mask of shape {mask.shape} does not fit x of shape {x.shape}: it needs the same "
            "rank and sizes, or ones; for one flag per example, reshape it to (examples, 1, ...)."
        )
    return jnp.broadcast_to(mask, x.shape)


def broadcast_mask(mask: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """Returns the mask in the shape of `x`, by NumPy's rules; integers count as zeros and ones."""
    if mask is None:
        return None
    check_array("mask", mask)
    if jnp.issubdtype(mask.dtype, jnp.integer):
        mask = mask.astype(bool)
    try:
        return jnp.broadcast_to(mask, x.shape)
    except ValueError as error:
        raise ValueError(
            f"mask of shape {mask.shape} does not broadcast to x of shape {x.shape}: for one flag "
            "per example, reshape it to (examples, 1, ...)."
        ) from error
