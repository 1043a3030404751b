"""Marks of parameters."""

from collections.abc import Collection, Iterable

import pytest


def slow(*values, id=None):
    """Values of a parametrized test, tried by `pytest -m slow`."""
    return pytest.param(*values, id=id, marks=pytest.mark.slow)


def slow_but(fast: Collection, values: Iterable) -> list:
    """All values of one parameter; those that are not in `fast` are slow."""
    return [value if value in fast else slow(value) for value in values]
