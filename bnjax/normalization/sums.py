"""Sums over the batch, two at a time: memory is read once for both."""

from collections.abc import Callable
from functools import partial

import jax
from jax import lax

from bnjax.normalization.meshes import explicit_parts

Terms = Callable[..., tuple[jax.Array, jax.Array]]

_SMALL = 1 << 16
"""Fewer values than this fit a core's cache: reading them twice costs nothing."""

_SLICES = (8, 7, 6, 5, 4, 3, 2)
"""So many slices XLA fuses into one loop, whatever follows."""

_ROWS = {2: 16, 4: 64, 8: 64}
"""By the bytes of a value: so many rows XLA fuses into the loop over the rest of an image; more,
and it copies them first, or widens them into memory."""


def pair_of_sums(
    terms: Terms, arrays: tuple[jax.Array, ...], axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The sums over `axes` of two elementwise functions of the same arrays.

    XLA computes both in one pass on TPU and GPU. On CPU it makes a pass, and often a copy of the
    summands, for each; there, the rows of the images, or larger slices, are added up as complex
    numbers, which stay in one loop on all cores. The first axis, of examples, is left whole:
    devices may divide it.

    Args:
        terms: maps `arrays`, or equal slices of them, to two float arrays of their shape.
        arrays: of one shape.
        axes: the axes to sum over (non-negative).
    """

    def plain(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = terms(*arrays)
        return first.sum(axes), second.sum(axes)

    x = arrays[0]
    if not (isinstance(x.size, int) and all(_may_be_cut(x, axis) for axis in axes[1:])):
        return plain(*arrays)
    if x.size < _SMALL or not (_have_few_rows(arrays, axes) or len(slices_of(x, axes)) > 1):
        return plain(*arrays)
    return lax.platform_dependent(*arrays, cpu=partial(_sliced, terms, axes), default=plain)


def _sliced(terms: Terms, axes: tuple[int, ...], *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = _have_few_rows(arrays, axes)
    cut = partial(_rows_of, axis=axes[1]) if rows else partial(slices_of, axes=axes)
    slices = zip(*map(cut, arrays), strict=True)
    first, *others = (lax.complex(*terms(*parts)) for parts in slices)
    total = sum(others, first)
    if not rows and arrays[0].dtype.itemsize >= 4:  # XLA would widen narrower ones into memory
        for axis in axes[1:]:
            total = _fold(total, axis)
    # Windows first: XLA would put the additions above into the loop of a plain sum, on one core.
    window = tuple(n if a in axes[1:] else 1 for a, n in enumerate(total.shape))
    total = lax.reduce_window(total, total.dtype.type(0), lax.add, window, window, "VALID")
    total = total.sum(axes)
    return total.real, total.imag


def _have_few_rows(arrays: tuple[jax.Array, ...], axes: tuple[int, ...]) -> bool:
    narrowest = min(a.dtype.itemsize for a in arrays if a.dtype != bool)
    return len(axes) > 1 and 1 < arrays[0].shape[axes[1]] <= _ROWS.get(narrowest, 0)


def _rows_of(x: jax.Array, axis: int) -> list[jax.Array]:
    return [lax.slice_in_dim(x, i, i + 1, axis=axis) for i in range(x.shape[axis])]


def _fold(x: jax.Array, axis: int) -> jax.Array:
    """Adds one half of the axis to the other, while it has halves."""
    while x.shape[axis] % 2 == 0:
        half = x.shape[axis] // 2
        x = lax.slice_in_dim(x, 0, half, axis=axis) + lax.slice_in_dim(x, half, None, axis=axis)
    return x


def slices_of(x: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
    """Equal slices of `x` along the first of `axes` but the examples' that divides; or `x`."""
    for axis in axes[1:]:
        if not _may_be_cut(x, axis):
            continue
        number = next((n for n in _SLICES if x.shape[axis] % n == 0), 1)
        if number > 1:
            length = x.shape[axis] // number
            starts = range(0, x.shape[axis], length)
            return [lax.slice_in_dim(x, i, i + length, axis=axis) for i in starts]
    return [x]


def _may_be_cut(x: jax.Array, axis: int) -> bool:
    """Not of a size that is a symbol of `jax.export`, nor divided by the type of `x`."""
    return isinstance(x.shape[axis], int) and explicit_parts(x, axis) == 1
