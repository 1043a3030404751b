"""Arguments, checked while tracing: every error names the value and the remedy."""

import operator
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bnjax.normalization.groups import Groups
from bnjax.normalization.moments import Moments, batch_size, precision
from bnjax.normalization.transform import Activation
from bnjax.normalization.versions import varying_axes

Params = dict[str, jax.Array]
"""`scale` and `bias`, each of the features' shape; either may be absent."""

Stats = dict[str, jax.Array]
"""`mean` and `var` of the features' shape, and `count`, each feature's updates so far, where
averaging needs it. `mean` and `var` are ready for use at any time, debiased ones included."""

Averaging = Literal["ema", "ema_debiased", "cumulative"]
RunningVar = Literal["unbiased", "biased"]
Impl = Literal["fused", "autodiff"]


def feature_axes(ndim: int, axis: int | Sequence[int]) -> tuple[int, ...]:
    """`axis` as sorted non-negative numbers.

    Raises:
        ValueError: if one is no integer, out of range or given twice.
    """
    try:
        given = _indices(axis)
    except TypeError as error:
        raise ValueError(f"axis must be an integer or several, got {axis!r}.") from error
    if not given or any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"axis={axis} does not name axes of x, which has rank {ndim}.")
    axes = tuple(sorted(a % ndim for a in given))
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis={axis} names an axis twice, for x of rank {ndim}.")
    return axes


def split_axes(x: jax.Array, axis: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes to average over, and the features' shape."""
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
    features = feature_axes(x.ndim, axis)
    axes = tuple(a for a in range(x.ndim) if a not in features)
    return axes, tuple(x.shape[a] for a in features)


def check_array(name: str, value: Any) -> None:
    """Raises ValueError unless it is an array of JAX or NumPy."""
    if not (hasattr(value, "dtype") and hasattr(value, "astype")):
        raise ValueError(
            f"{name} must be an array, got {type(value).__name__}: use jnp.asarray({name})."
        )


def _indices(given: int | Sequence[int]) -> tuple[int, ...]:
    """Integers, one or several; TypeError for anything else, booleans among it."""
    several = tuple(given) if isinstance(given, Sequence) else (given,)
    if any(isinstance(one, bool) for one in several):
        raise TypeError
    return tuple(map(operator.index, several))


def check_shape(shape: int | Sequence[int]) -> None:
    """Raises ValueError unless it is a number of features, or their shape."""
    try:
        sizes = _indices(shape)
    except TypeError as error:
        raise ValueError(f"shape must be an integer or several, got {shape!r}.") from error
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape must not be negative, got {shape!r}.")


def check_values(
    x: jax.Array, axes: tuple[int, ...], axis: int | Sequence[int], groups: Groups
) -> None:
    """Raises ValueError if a group leaves no value, or one, per feature.

    Sizes that are symbols (`jax.export.symbolic_shape`) stay open: nothing is known of them.
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
        raise ValueError(
            f"x of shape {x.shape} with feature axis {axis} leaves one value per feature{where}: "
            "its variance is zero and the output would be `bias`, whatever x. Train on a larger "
            "batch, or use normalize_population."
        )


def check_mapped_axes(x: jax.Array, groups: Groups) -> None:
    """Raises ValueError where JAX's types of what varies know no sum over such devices."""
    if not varying_axes(x):
        return
    if groups.axis_index_groups is not None:
        raise ValueError(
            f"groups of devices {groups.axis_index_groups} along {groups.axis_name!r} (from "
            "axis_index_groups, or batch=k of several devices) are unknown to shard_map with "
            "check_vma=True: use check_vma=False or pmap."
        )
    names = groups.axis_name or groups.pooled_over or ()
    of_vmap = {names} if isinstance(names, str) else set(names)
    of_vmap -= set(jax.sharding.get_abstract_mesh().manual_axes)
    if of_vmap:
        raise ValueError(
            f"axis_name={names!r} has {sorted(of_vmap)} from vmap, which shard_map with "
            "check_vma=True does not know: use check_vma=False."
        )


def check_stats(stats: Stats, features: tuple[int, ...]) -> None:
    """Raises ValueError unless these are statistics of such features."""
    check_features("stats", stats, features, allowed={"mean", "var", "count"})
    if not {"mean", "var"} <= set(stats):
        raise ValueError(f"stats has the keys {sorted(stats)}: make it with init_stats.")


def check_moments(stats: Stats, moments: Moments) -> None:
    """Raises ValueError unless these are statistics and moments: arrays under their names.

    Of any shape: whitening keeps covariances in the place of variances.
    """
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


def check_features(
    name: str, tree: dict[str, jax.Array], features: tuple[int, ...], allowed: set[str]
) -> None:
    """Raises ValueError unless the tree has these keys alone, of the features' shape."""
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
        if jnp.shape(tree[key]) != features:
            raise ValueError(
                f"{name}[{key!r}] has shape {jnp.shape(tree[key])}, but x has features of "
                f"shape {features}: make it with init_{name}({features}), or set `axis`."
            )


def check_epsilon(epsilon: float, dtype: DTypeLike = jnp.float32) -> None:
    """Raises ValueError unless epsilon is a normal positive number where `dtype` is computed."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real):
        raise ValueError(f"epsilon must be a number known while tracing, got {epsilon!r}.")
    limits = jnp.finfo(precision(dtype))
    if not float(limits.tiny) <= epsilon <= float(limits.max):
        raise ValueError(
            f"epsilon must be > 0, got {epsilon}: constant features divide by its root, which "
            f"{limits.dtype} knows from {limits.tiny:.4g} to {limits.max:.4g}."
        )


def check_dtype(dtype: DTypeLike) -> None:
    """Raises ValueError unless the output's type is floating."""
    try:
        if hasattr(dtype, "astype") and not isinstance(dtype, type):
            raise TypeError  # an array, whose own type would be taken
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype must be floating, got {dtype!r}, which is no type.") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating, got {dtype}: means, scales and outputs are.")


def check_activation(activation: str | None) -> None:
    """Raises ValueError unless it is None or one that can be fused."""
    if activation is not None:
        check_choice("activation", activation, Activation)


def check_decay(decay: float | jax.Array) -> None:
    """Raises ValueError unless it is in [0, 1); of a traced one the shape and type are known."""
    traced = isinstance(decay, jax.core.Tracer)
    dtype = getattr(decay, "dtype", None)
    if dtype is not None and jnp.shape(decay) == ():
        number = jnp.issubdtype(dtype, jnp.floating) or dtype == jnp.int32
    else:
        number = isinstance(decay, Real) and not isinstance(decay, bool)
    if not number:
        raise ValueError(f"decay must be a number, got {decay!r}.")
    if not traced and not 0 <= decay < 1:
        raise ValueError(
            f"decay must be in [0, 1), got {decay}: it is the fraction kept; "
            "torch's momentum m is decay = 1 - m."
        )


def check_update(decay: float | jax.Array, averaging: str, running_var: str) -> None:
    """Raises ValueError unless these can be arguments of `update_stats`."""
    check_decay(decay)
    check_choice("averaging", averaging, Averaging)
    check_choice("running_var", running_var, RunningVar)


def check_count(stats: Stats, averaging: str) -> None:
    """Raises ValueError if averaging needs a count that is not there."""
    if averaging != "ema" and "count" not in stats:
        raise ValueError(
            f"averaging={averaging!r} needs stats['count']: "
            f"make the statistics with init_stats(..., averaging={averaging!r})."
        )


def check_choice(name: str, value: str, choices: object) -> None:
    """Raises ValueError unless `value` is one of the `Literal` type `choices`."""
    allowed = choices.__args__  # type: ignore[attr-defined]
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def full_mask(mask: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """The mask in the shape of `x`."""
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
    """The mask in the shape of `x`, by NumPy's rules; integers are taken for zeros and ones."""
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
