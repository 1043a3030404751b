"""Pools over windows of images, with the border rule by name, and fast on every platform.

XLA's windows are slow on CPUs: it visits each value of each window, and finds the place of a
maximum again in the backward pass, with the coordinates of all values in memory. There, windows
that overlap are combinations of shifted slices. They are compiled apart from the operations around
them: XLA would otherwise fuse the pool's input into each slice, and compute it once for each.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bnjax.normalization.fast.borders import fusion_border

Window = tuple[int, int]
Borders = Literal["SAME", "VALID"] | Sequence[tuple[int, int]]
"""TensorFlow's rule by name, or how many rows and columns are added before and after."""


def max_pool(x: jax.Array, window: Window, strides: Window, padding: Borders) -> jax.Array:
    """The largest value of each window of `[n, h, w, c]`; NaN where there is one.

    The gradient goes to the first of equal values, row by row.

    Args:
        x: floating.
        window: height and width.
        strides: of the window.
        padding: with what is never the largest.
    """
    of_windows = partial(nn.max_pool, window_shape=window, strides=strides, padding=padding)
    return _pool(x, window, strides, padding, of_windows=of_windows, of_slices=_max_of_slices)


def average_pool(
    x: jax.Array,
    window: Window = (2, 2),
    strides: Window = (2, 2),
    padding: Literal["SAME", "VALID"] = "VALID",
    *,
    count_include_pad: bool = False,
) -> jax.Array:
    """The mean of each window of `[n, h, w, c]`; by default of 2x2 ones, stride 2.

    Flax's divides by an integer array, which strict dtype promotion refuses, and counts padding.

    Args:
        x: floating.
        window: height and width.
        strides: of the window.
        padding: as in TensorFlow.
        count_include_pad: at the border, whether the zeros around the image count as values
            (torch's default) or the mean is over the image's own values (TensorFlow, Keras).
    """
    total = _sum_pool(x, window, strides, padding)
    if padding == "VALID" or count_include_pad:
        return total / math.prod(window)
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return total / _sum_pool(ones, window, strides, padding)


def _sum_pool(x: jax.Array, window: Window, strides: Window, padding: Borders) -> jax.Array:
    def of_windows(x: jax.Array) -> jax.Array:
        return nn.pooling.pool(x, 0.0, lax.add, window, strides, padding)

    return _pool(x, window, strides, padding, of_windows=of_windows, of_slices=_sum_of_slices)


def _pool(
    x: jax.Array,
    window: Window,
    strides: Window,
    padding: Borders,
    *,
    of_windows: Callable[[jax.Array], jax.Array],
    of_slices: Callable[..., jax.Array],
) -> jax.Array:
    """By slices where windows overlap on a CPU, else by XLA's windows."""
    if all(size <= step for size, step in zip(window, strides, strict=True)):
        return of_windows(x)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    borders = tuple((before, after) for before, after in padding)
    of_slices = partial(of_slices, window=tuple(window), strides=tuple(strides), borders=borders)
    return lax.platform_dependent(x, cpu=of_slices, default=of_windows)


_windows_border = partial(fusion_border, static_argnames=("window", "strides", "borders"))


@_windows_border
def _max_of_slices(
    x: jax.Array, window: Window, strides: Window, borders: Sequence[tuple[int, int]]
) -> jax.Array:
    """A slice for each place in the window; the place of the maximum is a byte a window."""
    shifted = [x]
    for axis, size, step, border in zip((1, 2), window, strides, borders, strict=True):
        shifted = [part for y in shifted for part in _slices(y, axis, size, step, border, -jnp.inf)]
    best, place = lax.stop_gradient(shifted[0]), jnp.zeros(shifted[0].shape, jnp.uint8)
    for i, values in enumerate(map(lax.stop_gradient, shifted[1:]), start=1):
        better = ~(best >= values) & (best == best)  # as is the first NaN, and nothing after it
        best = jnp.where(better, values, best)
        place = jnp.where(better, jnp.uint8(i), place)
    return lax.select_n(place.astype(jnp.int32), *shifted)


@_windows_border
def _sum_of_slices(
    x: jax.Array, window: Window, strides: Window, borders: Sequence[tuple[int, int]]
) -> jax.Array:
    """Over the rows of a window, then over its columns."""
    for axis, size, step, border in zip((1, 2), window, strides, borders, strict=True):
        first, *others = _slices(x, axis, size, step, border, 0.0)
        x = sum(others, start=first)
    return x


def _slices(
    x: jax.Array, axis: int, size: int, step: int, border: tuple[int, int], fill: float
) -> list[jax.Array]:
    """The values at the first, second, ... place of every window along an axis."""
    added = [(0, 0, 0)] * x.ndim
    added[axis] = (*border, 0)
    x = lax.pad(x, jnp.asarray(fill, x.dtype), added)
    windows = (x.shape[axis] - size) // step + 1
    return [lax.slice_in_dim(x, i, i + (windows - 1) * step + 1, step, axis) for i in range(size)]
