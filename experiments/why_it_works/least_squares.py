"""Gradient descent with normalization on least squares converges linearly.

A normalized linear unit g w.x / sqrt(w.S w), S = E[x x'], with the best g, minimizes
rho(w) = -(w.u)^2 / (w.S w), u = E[-y x], which is not convex. With the step size
w.S w / (2 L |rho(w)|) its gap to the minimum is multiplied by at most (1 - mu / L)^2 a step, mu and
L being the least and the largest eigenvalue of S (Kohler et al. 2019, arXiv 1805.10694, Theorem 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED
from experiments.harness.affects import numbers
from experiments.why_it_works.question import THEORY, Answer, Check, Question, rounded
from experiments.why_it_works.standardize import standardize


@dataclass(frozen=True, kw_only=True)
class LeastSquares(Question):
    """Descends on a drawn problem, and compares each step's factor with the bound.

    Attributes:
        examples: of the problem.
        features: with deviations spread from 1 to `condition`.
        condition: ratio of the largest deviation to the least.
        steps: of descent.
    """

    claim: ClassVar[str] = (
        "Gradient descent on normalized least squares converges linearly, though the problem is "
        "not convex."
    )
    source: ClassVar[str] = "Kohler et al. 2019, arXiv 1805.10694, Theorem 1"

    examples: int = numbers(500)
    features: int = numbers(20)
    condition: float = numbers(5.0)
    steps: int = numbers(500)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how much a factor exceeds the bound, and the largest factor."""
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(self.examples, self.features))
        x = x * np.geomspace(1, self.condition, self.features)
        x -= x.mean(0)  # so that the layer's variance is w.S w
        y = x @ rng.normal(size=self.features) + rng.normal(size=self.examples)
        y -= y.mean()
        second = x.T @ x / self.examples
        eigenvalues = np.linalg.eigvalsh(second)
        u = -(x.T @ y) / self.examples
        least = -float(u @ np.linalg.solve(second, u))
        gaps = self._gaps(jnp.asarray(x), jnp.asarray(y), rng, float(eigenvalues[-1])) - least
        bound = float((1 - eigenvalues[0] / eigenvalues[-1]) ** 2)
        gaps = gaps[~(gaps <= 1e-9 * gaps[0])]  # there, rounding is as large as the gap
        factors = gaps[1:] / gaps[:-1]
        check = Check(
            "factor of a step over its bound", float(np.maximum(0, factors.max() / bound - 1)), 0.0
        )
        return Answer(
            (check,),
            curves={"gap": rounded(gaps / gaps[0]), "bound": bound},
            numbers={"largest factor": float(factors.max()), "bound": bound},
        )

    def _gaps(
        self, x: jax.Array, y: jax.Array, rng: np.random.Generator, most: float
    ) -> np.ndarray:
        """rho(w) along the descent, through the layer itself."""

        def rho(w: jax.Array) -> jax.Array:
            return -(jnp.mean(standardize(x @ w[:, None])[:, 0] * y) ** 2)  # with the best g

        def step(w: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            value, slope = jax.value_and_grad(rho)(w)
            rate = jnp.mean((x @ w) ** 2) / (2 * most * jnp.abs(value))
            return w - rate * slope, value

        w = jnp.asarray(rng.normal(size=self.features))
        return np.asarray(jax.jit(lambda w: jax.lax.scan(step, w, None, self.steps)[1])(w))

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the gap of each seed, and the bound of the first."""
        for answer in answers:
            axes.plot(answer["curves"]["gap"], NORMALIZED, lw=0.8)
        steps = np.arange(len(answers[0]["curves"]["gap"]))
        axes.plot(steps, answers[0]["curves"]["bound"] ** steps, THEORY, lw=0.8, ls=":")
        axes.set(xlabel="step", ylabel="gap to the minimum", yscale="log")
