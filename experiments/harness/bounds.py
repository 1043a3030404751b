"""Bounds of a configuration's numbers: those of the float32 that computes, and of patience."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

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


def check_l2(value: float) -> None:
    """Raises ValueError for a weight of squared norms that is negative or infinite."""
    if not 0 <= value < 1e30:
        raise ValueError(f"l2 must be >= 0 and finite, got {value}.")


def check_falls(factor: float, every: float) -> None:
    """Raises ValueError unless a learning rate can fall: by `decay_factor`, each `decay_every`."""
    check_positive("decay_every", every)
    check_positive("decay_factor", factor)
    if factor > 1:
        raise ValueError(f"decay_factor must be in (0, 1], got {factor}.")


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


def check_together(together: int, examples: int) -> None:
    """Raises ValueError unless groups of `normalize_together` make up what is computed at once."""
    if together < 2 or examples % together:
        raise ValueError(
            f"normalize_together={together} must be 2 or more and divide the {examples} examples "
            f"that are computed at once (batch_size / micro_batches)."
        )


def check_fields(
    config: Any,
    *,
    choices: Mapping[str, Collection[str]] | None = None,
    least: Mapping[str, int] | None = None,
) -> None:
    """Refuses values that no measurement can have. None, where a field allows it, is not checked.

    Args:
        config: a dataclass; its fields hold one value, or a tuple of several.
        choices: names that a field may hold, one or several.
        least: the lowest value of an integer field; 1 where it is not given.

    Raises:
        ValueError: a name that is unknown or given twice; a number that is too low or infinite.
    """
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        known, lowest = (choices or {}).get(name, values), (least or {}).get(name, 1)
        for each in values:
            if each not in known:
                raise ValueError(f"{name}: unknown {each!r}; choose from {', '.join(known)}.")
            if isinstance(each, int) and each < lowest and not isinstance(each, bool):
                raise ValueError(f"{name} must be >= {lowest}, got {each}.")
            if isinstance(each, float) and not 0 < each < math.inf:
                raise ValueError(f"{name} must be > 0, got {each}.")
        if isinstance(value, tuple):
            check_several(name, value)


def check_literals(config: Any) -> None:
    """Raises ValueError unless each field of a `Literal` type holds one of its values."""
    for field in fields(config):
        literals = [
            kind for kind in (field.type, *get_args(field.type)) if get_origin(kind) is Literal
        ]
        known = [choice for kind in literals for choice in get_args(kind)]
        value = getattr(config, field.name)
        if known and value is not None and value not in known:
            choices = ", ".join(map(str, known))
            raise ValueError(f"{field.name}: unknown {value!r}; choose from {choices}.")


def check_several(name: str, values: Sequence[Any]) -> None:
    """Raises ValueError unless there are one or more, each once."""
    if not values or len(set(values)) < len(values):
        given = ", ".join(map(str, values)) or "nothing"
        raise ValueError(f"{name} must name one or more, each once, got {given}.")
