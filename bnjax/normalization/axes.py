"""Integers as they may be given: one or several, and axes of an array from either end."""

import operator
from collections.abc import Sequence


def integers(given: int | Sequence[int]) -> tuple[int, ...]:
    """Returns integers, one or several; TypeError for anything else, booleans included."""
    several = tuple(given) if isinstance(given, Sequence) else (given,)
    if any(isinstance(one, bool) for one in several):
        raise TypeError
    return tuple(map(operator.index, several))


def check_integer(name: str, value: int, least: int) -> None:
    """Raises ValueError unless it is an integer, of `least` or more."""
    try:
        (number,) = integers((value,))
    except TypeError as error:
        raise ValueError(f"{name} must be an integer, got {value!r}.") from error
    if number < least:
        raise ValueError(f"{name} must be >= {least}, got {number}.")


def sorted_axes(ndim: int, axis: int | Sequence[int], name: str = "axis") -> tuple[int, ...]:
    """Returns axes of an `x` of rank `ndim` as sorted non-negative numbers.

    Raises:
        ValueError: if there is none, or one is no integer, out of range or given twice; `name` is
            the argument's.
    """
    try:
        given = integers(axis)
    except TypeError as error:
        raise ValueError(f"{name} must be an integer or several, got {axis!r}.") from error
    if not given or any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"{name}={axis} does not name axes of x, which has rank {ndim}.")
    axes = tuple(sorted(a % ndim for a in given))
    if len(set(axes)) < len(axes):
        raise ValueError(f"{name}={axis} names an axis twice, for x of rank {ndim}.")
    return axes
