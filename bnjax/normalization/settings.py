"""How a layer normalizes, in one value that is checked where it is made.

A new keyword costs a field of `Settings`, a keyword of `normalize_batch`, and the place where it
acts; the layers of Linen and NNX get it by `OwnFields` and `OwnKeywords`. A new rule of averaging
costs its name in `StatsAveraging` and its weight in `batch_norm.move_stats`.
"""

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, TypedDict, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bnjax.normalization.dtypes import as_type, canonical, precision
from bnjax.normalization.meshes import mapped_names

StatsAveraging = Literal["ema", "ema_debiased", "cumulative"]
RunningVar = Literal["unbiased", "biased"]
Impl = Literal["fused", "autodiff"]
Activation = Literal["relu", "sigmoid"]
BatchChoice = Literal["all", "device"] | int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one call, under the names and with the defaults of `normalize_batch`.

    What depends on the arrays is checked with them: epsilon's range, the axes, the groups.

    Raises:
        ValueError: for a value that no arrays could make right.
    """

    axis: int | Sequence[int] = -1
    decay: float | jax.Array = 0.99
    epsilon: float = 1e-5
    averaging: StatsAveraging = "ema"
    running_var: RunningVar = "unbiased"
    activation: Activation | None = None
    batch: BatchChoice = "all"
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    impl: Impl = "fused"
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        check_decay(self.decay)
        check_choice("averaging", self.averaging, StatsAveraging)
        check_choice("running_var", self.running_var, RunningVar)
        check_choice("impl", self.impl, Impl)
        if self.activation is not None:
            check_choice("activation", self.activation, Activation)
        check_batch(self.batch)
        mapped_names(self.axis_name)  # fails for what are none
        if self.dtype is not None:
            as_type(self.dtype)

    def output_dtype(self, x: jax.Array) -> DTypeLike:
        """Returns the type of `y`."""
        return canonical(x.dtype) if self.dtype is None else self.dtype


@dataclass(kw_only=True, eq=False)
class OwnFields:
    """The attributes of the layers in `bnjax.linen` and `bnjax.nnx` that Flax's lack."""

    averaging: StatsAveraging = "ema"
    running_var: RunningVar = "biased"  # as in Flax
    impl: Impl = "fused"
    activation: Activation | None = None
    batch: BatchChoice = "all"
    update_statistics: bool | None = None


class OwnKeywords(TypedDict, total=False):
    """The same, as keywords of the constructor in `bnjax.nnx`."""

    averaging: StatsAveraging
    running_var: RunningVar
    impl: Impl
    activation: Activation | None
    batch: BatchChoice
    update_statistics: bool | None


def settings_of(layer: Any, **changes: Any) -> Settings:
    """Returns the settings of a layer with Flax's attributes, whose `momentum` is `decay`."""
    flax = {"decay": "momentum"}
    names = [field.name for field in fields(Settings)]
    check_decay(layer.momentum, "momentum")
    check_batch(layer.batch)  # as the next, whatever `changes` replace
    mapped_names(layer.axis_name)
    return Settings(**{name: getattr(layer, flax.get(name, name)) for name in names} | changes)


def check_decay(decay: float | jax.Array, name: str = "decay") -> None:
    """Raises ValueError unless it is in [0, 1); of a traced one the shape and type are known."""
    known = known_number(name, decay)
    if known is not None and not 0 <= known < 1:
        raise ValueError(
            f"{name} must be in [0, 1), got {decay}: it is the fraction kept; "
            "for torch's momentum m, give 1 - m."
        )


def known_number(name: str, value: float | jax.Array) -> float | None:
    """Returns the number, or None for a traced one; ValueError for what is no number."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.shape(value) == ():
        number = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    else:
        number = isinstance(value, Real) and not isinstance(value, bool)
    if not number:
        raise ValueError(f"{name} must be a number, got {value!r}.")
    return None if isinstance(value, jax.core.Tracer) else float(value)


def check_batch(batch: BatchChoice) -> None:
    """Raises ValueError unless it is a name, or a number of examples."""
    if batch in ("all", "device"):
        return
    flag = isinstance(batch, bool) or getattr(batch, "dtype", None) == jnp.bool_
    try:
        examples = 0 if flag or isinstance(batch, str) else operator.index(batch)
    except TypeError:
        examples = 0
    if examples < 1:
        raise ValueError(f"batch must be 'all', 'device' or examples per group, got {batch!r}.")


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


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError unless `value` is one of `choices`, a `Literal` type or a collection."""
    allowed = get_args(choices) or tuple(choices)
    if not isinstance(value, Hashable) or value not in allowed:  # an array has many answers to `in`
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
