"""A question: an explanation of batch normalization, and what measures whether it holds."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes

from bnjax.data import DataSet
from experiments.harness.arm import Arm

THEORY = "#000000"


class Check(NamedTuple):
    """A deviation from what a theorem says.

    Attributes:
        what: is held against what.
        deviation: relative, the largest.
        bound: that rounding, or a finite width or number of draws, explains.
    """

    what: str
    deviation: float
    bound: float


class Answer(NamedTuple):
    """What a seed says to a question.

    Attributes:
        checks: of a theorem or an identity; none of an observation.
        effect: of an observation, in the direction of the claim: above zero where it holds.
        curves: what the figure shows, lists of numbers by name.
        numbers: what the page tells besides.
    """

    checks: tuple[Check, ...] = ()
    effect: float | None = None
    curves: dict[str, Any] = {}  # noqa: RUF012 - never written
    numbers: dict[str, float] = {}  # noqa: RUF012


@dataclass(frozen=True, kw_only=True)
class Question(Arm, ABC):
    """An arm that is a question; its settings are those of the measurement.

    Attributes:
        claim: in a sentence.
        source: authors, year, arXiv number.
        exact: whether it is an identity or a theorem, which any seed must confirm.
        effect: what an observation's effect is, with its unit.
        in_float64: whether it computes in float64, as identities need; else in float32.
    """

    claim: ClassVar[str]
    source: ClassVar[str]
    exact: ClassVar[bool] = True
    effect: ClassVar[str] = ""
    in_float64: ClassVar[bool] = True

    @abstractmethod
    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns what the measurement with a seed says."""

    @abstractmethod
    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the curves of some seeds' answers, JSON values."""


@dataclass(frozen=True, kw_only=True)
class Observation(Question, ABC):
    """A question that is asked of trained networks: no theorem tells the answer; in float32."""

    exact: ClassVar[bool] = False
    in_float64: ClassVar[bool] = False


@contextmanager
def float64() -> Iterator[None]:
    """Lets JAX compute in float64 inside: identities are held to rounding."""
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]  # set by name
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def deviation(measured: Any, expected: Any) -> float:
    """Returns the largest difference, relative to the largest expected value."""
    measured, expected = np.asarray(measured, float), np.asarray(expected, float)
    return float(np.abs(measured - expected).max() / np.abs(expected).max())


def rounded(values: Any) -> list[float]:
    """Returns numbers to five digits, for figures."""
    return [float(f"{value:.5g}") for value in np.asarray(values, float).ravel()]
