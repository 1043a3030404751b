"""Arguments, checked while tracing: every error names the value and the remedy."""

import operator
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bnjax.normalization.fused import Activation
from bnjax.normalization.groups import Groups
from bnjax.normalization.moments import batch_size
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
        ValueError: if one is out of range or given twice.
    """
    given = tuple(axis) if isinstance(axis, Sequence) else (operator.index(axis),)
    if not given or any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"axis={axis} does not name axes of x, which has rank {ndim}.")
    axes = tuple(sorted(a % ndim for a in given))
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis={axis} names an axis twice, for x of rank {ndim}.")
    return axes


def split_axes(x: jax.Array, axis: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes to average over, and the features' shape."""
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


def check_values(
    x: jax.Array, axes: tuple[int, ...], axis: int | Sequence[int], groups: Groups
) -> None:
    """Raises ValueError if a group leaves one value per feature."""
    values = batch_size(x.shape, axes, groups.axis_name, groups.axis_index_groups)
    where = ""
    if groups.size is not None:
        examples = x.shape[axes[0]]
        smallest = examples % groups.size or groups.size
        values = values // examples * smallest
        where = f" in the group of {smallest} that batch={groups.size} makes"
    if values < 2:
        raise ValueError(
            f"x of shape {x.shape} with feature axis {axis} leaves one value per feature{where}: "
            "its variance is zero and the output would be `bias`, whatever x. Train on a larger "
            "batch, or use normalize_population."
        )


def check_index_groups(x: jax.Array, groups: Groups) -> None:
    """Raises ValueError where JAX cannot divide a mapped axis into groups of devices."""
    if groups.axis_index_groups is not None and varying_axes(x):
        raise ValueError(
            f"groups of devices {groups.axis_index_groups} along {groups.axis_name!r} (from "
            "axis_index_groups, or batch=k of several devices) are unknown to shard_map with "
            "check_vma=True: use check_vma=False or pmap."
        )


def check_stats(stats: Stats, features: tuple[int, ...]) -> None:
    """Raises ValueError unless these are statistics of such features."""
    check_features("stats", stats, features, allowed={"mean", "var", "count"})
    if not {"mean", "var"} <= set(stats):
        raise ValueError(f"stats has the keys {sorted(stats)}: make it with init_stats.")


def check_features(
    name: str, tree: dict[str, jax.Array], features: tuple[int, ...], allowed: set[str]
) -> None:
    """Raises ValueError unless the tree has these keys alone, of the features' shape."""
    if not set(tree) <= allowed:
        raise ValueError(
            f"{name} has the keys {sorted(tree)}, expected {sorted(allowed)}: "
            f"make it with init_{name}."
        )
    for key in tree:
        if jnp.shape(tree[key]) != features:
            raise ValueError(
                f"{name}[{key!r}] has shape {jnp.shape(tree[key])}, but x has features of "
                f"shape {features}: make it with init_{name}({features}), or set `axis`."
            )


def check_epsilon(epsilon: float) -> None:
    """Raises ValueError unless epsilon is positive."""
    if not epsilon > 0:
        raise ValueError(f"epsilon must be > 0, got {epsilon}: constant features divide by it.")


def check_dtype(dtype: DTypeLike) -> None:
    """Raises ValueError unless the output's type is floating."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"dtype must be floating, got {jnp.dtype(dtype)}: it is the type of the output."
        )


def check_activation(activation: str | None) -> None:
    """Raises ValueError unless it is None or one that can be fused."""
    if activation is not None:
        check_choice("activation", activation, Activation)


def check_update(decay: float, averaging: str, running_var: str) -> None:
    """Raises ValueError unless these can be arguments of `update_stats`."""
    if not 0 <= decay < 1:
        raise ValueError(
            f"decay must be in [0, 1), got {decay}: it is the fraction kept; "
            "torch's momentum m is decay = 1 - m."
        )
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
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def full_mask(mask: jax.Array | None, x: jax.Array) -> jax.Array | None:
    """The mask in the shape of `x`."""
    if mask is None:
        return None
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
