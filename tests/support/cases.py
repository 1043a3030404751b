"""The inputs that tests of batch normalization share."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bnjax

SETTINGS = ("axis", "epsilon", "activation", "dtype")
TRAIN_SETTINGS = (*SETTINGS, "decay", "averaging", "running_var", "batch", "impl")
train = jax.jit(bnjax.normalize_batch, static_argnames=TRAIN_SETTINGS)
infer = jax.jit(bnjax.normalize_population, static_argnames=SETTINGS)


class Layout(NamedTuple):
    shape: tuple[int, ...]
    axis: int | tuple[int, ...]

    @property
    def features(self) -> tuple[int, ...]:
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis
        return tuple(self.shape[a] for a in axes)


LAYOUTS = {
    "dense": Layout((16, 5), -1),
    "sequence": Layout((6, 4, 3), -1),
    "channels_last": Layout((4, 3, 2, 5), -1),
    "channels_first": Layout((4, 5, 3, 2), 1),
    "per_activation": Layout((12, 2, 3, 2), (1, 2, 3)),
}
MASKS = ("none", "example", "position", "nan")
LAYOUTS_AND_MASKS = [  # each layout, and each mask where it means something else
    *itertools.product(LAYOUTS, ["none", "nan"]),
    *itertools.product(["dense", "per_activation"], ["example", "position"]),
]


class Case(NamedTuple):
    """Arrays of one case; `clean` is `x` before NaN and infinity went to the masked places."""

    x: jax.Array
    clean: jax.Array
    mask: jax.Array | None
    params: dict[str, jax.Array]
    stats: dict[str, jax.Array]
    weights: jax.Array
    axis: int | tuple[int, ...]


def make(layout: str, *, mask="none", offset=0.0, dtype="float32", params_dtype=None) -> Case:
    """A case, the same one at every call."""
    rng = np.random.default_rng(7)
    shape, axis = LAYOUTS[layout]
    features = LAYOUTS[layout].features
    params_dtype = params_dtype or ("float64" if dtype == "float64" else "float32")
    axes = [a % len(shape) for a in ((axis,) if isinstance(axis, int) else axis)]
    per_feature = [n if a in axes else 1 for a, n in enumerate(shape)]
    spread = rng.uniform(0.5, 2, per_feature)
    clean = jnp.asarray(offset + spread * rng.normal(size=shape), dtype)

    flags = None
    x = clean
    if mask != "none":
        flags = rng.random(_mask_shape(mask, shape, axes)) < 0.7
        flags[:2] = True  # two values at least behind every mean
        flags[2] = False
        flags = jnp.asarray(flags)
    if mask == "nan":
        bad = jnp.asarray(rng.choice([np.nan, np.inf, -np.inf], size=shape), dtype)
        x = jnp.where(flags, x, bad)
    params = {
        "scale": jnp.asarray(rng.uniform(-2, 2, features), params_dtype),
        "bias": jnp.asarray(rng.uniform(-2, 2, features), params_dtype),
    }
    stats = {
        "mean": jnp.asarray(rng.normal(size=features), params_dtype),
        "var": jnp.asarray(rng.uniform(0.5, 2, features), params_dtype),
    }
    weights = jnp.asarray(rng.normal(size=shape), dtype)
    return Case(x, clean, flags, params, stats, weights, axis)


def _mask_shape(mask: str, shape, axes) -> list[int]:
    if mask == "example":
        return [shape[0], *(1 for _ in shape[1:])]
    if len(shape) == 2 or len(axes) > 1:  # one flag for each value: counts differ by feature
        return list(shape)
    return [1 if a in axes else n for a, n in enumerate(shape)]
