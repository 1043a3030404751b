"""Sums over the batch, two at a time: memory is read once for both.

Without this file, `first.sum(axes), second.sum(axes)` would be right, and XLA makes one pass of it
on TPU and GPU. Its CPU backend makes a pass for each sum, and often a copy of the summands. There:

- the two are summed as one complex number;
- slices are added up elementwise, which is one loop on all cores as long as there are few of them,
  so that little is left for the sum proper.

The numbers below say how many slices XLA takes into that loop. Where they are wrong for a version,
the sums are slower, and still right.
"""

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
    """Returns the sums over `axes` of two elementwise functions of the same arrays.

    The first axis, of examples, is left whole: devices may divide it.

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
    """Returns the pair of sums for CPUs: by slices, as complex numbers."""
    # One slice for each row of the images if there are few rows, else two to eight thick ones.
    rows = _have_few_rows(arrays, axes)
    cut = partial(_rows_of, axis=axes[1]) if rows else partial(slices_of, axes=axes)
    slices = zip(*map(cut, arrays), strict=True)
    first, *others = (lax.complex(*terms(*parts)) for parts in slices)
    total = sum(others, first)
    # Thick slices leave much to sum: halves are added up elementwise, in the same loop. Not of
    # narrower types than float32, which XLA would widen into memory for it.
    if not rows and arrays[0].dtype.itemsize >= 4:
        for axis in axes[1:]:
            total = _add_halves(total, axis)
    # What is left of an image is summed as a window. A plain sum would do, but XLA would put the
    # additions above into its loop, which runs on one core.
    window = tuple(n if a in axes[1:] else 1 for a, n in enumerate(total.shape))
    total = lax.reduce_window(total, total.dtype.type(0), lax.add, window, window, "VALID")
    total = total.sum(axes)
    return total.real, total.imag


def _have_few_rows(arrays: tuple[jax.Array, ...], axes: tuple[int, ...]) -> bool:
    """Whether the images' rows are few enough to be a slice each: the narrowest array decides."""
    narrowest = min(a.dtype.itemsize for a in arrays if a.dtype != bool)
    return len(axes) > 1 and 1 < arrays[0].shape[axes[1]] <= _ROWS.get(narrowest, 0)


def _rows_of(x: jax.Array, axis: int) -> list[jax.Array]:
    return [lax.slice_in_dim(x, i, i + 1, axis=axis) for i in range(x.shape[axis])]


def _add_halves(x: jax.Array, axis: int) -> jax.Array:
    """Adds one half of the axis to the other, while it has halves."""
    while x.shape[axis] % 2 == 0:
        half = x.shape[axis] // 2
        x = lax.slice_in_dim(x, 0, half, axis=axis) + lax.slice_in_dim(x, half, None, axis=axis)
    return x


def slices_of(x: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
    """Returns equal slices of `x`, along the first of `axes[1:]` that divides; or `x` alone."""
    for axis in axes[1:]:
        if not _may_be_cut(x, axis):
            continue
        number = next((n for n in _SLICES if x.shape[axis] % n == 0), 1)
        if number > 1:
            length = x.shape[axis] // number
            starts = range(0, x.shape[axis], length)
            return [lax.slice_in_dim(x, i, i + length, axis=axis) for i in starts]
    return [x]


def first_rows(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Returns the first of `x` along the first of `axes[1:]` that may be cut; or `x`."""
    axis = next((axis for axis in axes[1:] if _may_be_cut(x, axis) and x.shape[axis] > 0), None)
    return x if axis is None else lax.slice_in_dim(x, 0, 1, axis=axis)


def _may_be_cut(x: jax.Array, axis: int) -> bool:
    """Whether the size is a number (not a symbol of `jax.export`), and no mesh divides the axis."""
    return isinstance(x.shape[axis], int) and explicit_parts(x, axis) == 1
