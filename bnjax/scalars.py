"""Numbers given as arguments, checked: every error names the argument and its value."""

import operator
from typing import Any


def integer(name: str, value: Any) -> int:
    """Returns an integer as Python's, which does not wrap; ValueError for anything else.

    NumPy would cut a seed of 1.5 to 1, and its int32 wraps at position 2^31.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}.") from None


def number(name: str, value: Any) -> float:
    """Returns a real number as Python's; ValueError for anything else, a traced one included."""
    try:
        if isinstance(value, bool | str) or getattr(value, "shape", ()) != ():
            raise TypeError
        return float(value)
    except TypeError:
        raise ValueError(f"{name} must be a number, got {value!r}.") from None


def check_seed(seed: Any, *, bits: int = 64) -> int:
    """Returns a seed as Python's integer; ValueError unless it is one of so many bits, >= 0."""
    seed = integer("seed", seed)
    if not 0 <= seed < 2**bits:
        raise ValueError(f"seed must be in 0 .. 2**{bits} - 1, got {seed}.")
    return seed
