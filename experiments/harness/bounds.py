"""Bounds of a configuration's numbers: those of the float32 that computes, and of patience."""

from collections.abc import Sequence

import numpy as np

MOST_SEEDS = 10_000
"""Runs of an arm."""
PASSES = 100
"""At most so many passes over the training set go into the statistics of Algorithm 2."""
_FLOAT32 = np.finfo(np.float32)
_LEAST, _MOST = float(_FLOAT32.tiny), float(_FLOAT32.max)
_BELOW_1 = 1 - float(_FLOAT32.epsneg)


def check_positive(name: str, value: float) -> None:
    """Raises ValueError for what is not positive and finite as a float32."""
    if not _LEAST <= value <= _MOST:
        raise ValueError(f"{name} must be > 0 and finite, got {value}, as a float32.")


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError for what is not in [0, 1) as a float32."""
    if not 0 <= value <= _BELOW_1:
        raise ValueError(f"{name} must be in [0, 1), got {value}, as a float32.")


def check_rates(name: str, rates: Sequence[float]) -> None:
    """Raises ValueError for rates that are not positive, or that folders would not tell apart."""
    for rate in rates:
        check_positive(name, rate)
    if len({f"{rate:g}" for rate in rates}) < len(rates):
        raise ValueError(
            f"{name} must name rates that differ in their first six digits, got {rates}."
        )


def check_seeds(name: str, value: int) -> None:
    """Raises ValueError for more seeds than anybody waits for."""
    if value > MOST_SEEDS:
        raise ValueError(f"{name} must be at most {MOST_SEEDS}, got {value}.")


def check_population(batches: int, batch_size: int, examples: int) -> None:
    """Raises ValueError if Algorithm 2 is to average over more than `PASSES` passes."""
    most = PASSES * examples // batch_size
    if batches > most:
        raise ValueError(
            f"population_batches must be at most {most:,}, {PASSES} passes over the {examples:,} "
            f"training examples, got {batches:,}."
        )
