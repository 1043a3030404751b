"""Numbers and names given as arguments, checked: errors name the argument and its value."""

import operator
from collections.abc import Hashable
from typing import Any, get_args


def integer(name: str, value: Any, *, least: int | None = None) -> int:
    """Returns an integer as Python's, which does not wrap; ValueError for less, or anything else.

    NumPy would cut a seed of 1.5 to 1, and its int32 wraps at position 2^31.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}.") from None
    if least is not None and whole < least:
        raise ValueError(f"{name} must be >= {least}, got {whole}.")
    return whole


def number(name: str, value: Any) -> float:
    """Returns a real number as Python's; ValueError for anything else, a traced one included."""
    try:
        if isinstance(value, bool | str) or getattr(value, "shape", ()) != ():
            raise TypeError
        return float(value)
    except TypeError:
        raise ValueError(f"{name} must be a number, got {value!r}.") from None


def check_decay(decay: float, name: str = "decay") -> None:
    """Raises ValueError unless it is a number in [0, 1)."""
    if not 0 <= number(name, decay) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {decay}: it is the fraction kept.")


def check_seed(seed: Any, *, bits: int = 64) -> int:
    """Returns a seed as Python's integer; ValueError unless it is one of so many bits, >= 0."""
    seed = integer("seed", seed)
    if not 0 <= seed < 2**bits:
        raise ValueError(f"seed must be in 0 .. 2**{bits} - 1, got {seed}.")
    return seed


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises ValueError unless `value` is one of `choices`, a `Literal` type or a collection.

    As that of `bnjax.normalization`, which imports nothing from here.
    """
    allowed = get_args(choices) or tuple(choices)
    if not isinstance(value, Hashable) or value not in allowed:  # an array has many answers to `in`
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
