"""The gradient before a normalization is that after it, without its mean and its part along y.

Of one feature over m examples, with y = gamma xhat + beta and g = dL/dy:
    norm(dL/dx)^2 = gamma^2 / sigma^2 (norm(g)^2 - (sum g)^2 / m - (g . xhat)^2 / m)
(Santurkar et al. 2018, arXiv 1805.11604, Theorem 4.1, whose bound compares two networks; for one
and the same g it is an equality).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from bnjax import init_stats, normalize_batch
from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED
from experiments.harness.affects import numbers
from experiments.why_it_works.question import THEORY, Answer, Check, Question, deviation, rounded
from experiments.why_it_works.standardize import TINY


@dataclass(frozen=True, kw_only=True)
class LayerGradient(Question):
    """Draws inputs, parameters and gradients; compares both sides.

    Attributes:
        examples: m.
        features: each with a mean, a deviation and a scale of its own.
    """

    claim: ClassVar[str] = (
        "Normalization takes from the gradient its mean and its part along the output, and "
        "divides it by the deviation."
    )
    source: ClassVar[str] = "Santurkar et al. 2018, arXiv 1805.11604, Theorem 4.1"

    examples: int = numbers(32)
    features: int = numbers(200)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns the largest deviation of both sides, and the part that is taken away."""
        rng = np.random.default_rng(seed)
        shape = (self.examples, self.features)
        spread = np.exp(rng.normal(size=self.features))
        x = rng.normal(size=shape) * spread + rng.normal(size=self.features)
        xhat = (x - x.mean(0)) / x.std(0)
        # Gradients with a mean and a part along xhat, as those of a network have.
        along = rng.normal(size=self.features) * xhat
        g = rng.normal(size=shape) + rng.normal(size=self.features) + along
        scale, bias = rng.normal(size=(2, self.features))
        params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
        stats = init_stats(self.features, dtype=jnp.float64)
        _, pull = jax.vjp(
            lambda x: normalize_batch(x, params, stats, epsilon=TINY)[0], jnp.asarray(x)
        )
        measured = np.sum(np.square(pull(jnp.asarray(g))[0]), 0)
        whole = np.sum(np.square(g), 0)
        m = self.examples
        left = whole - np.square(np.sum(g, 0)) / m - np.square(np.sum(g * xhat, 0)) / m
        expected = np.square(scale) / np.var(x, 0) * left
        check = Check("squared gradient of each feature", deviation(measured, expected), 1e-12)
        return Answer(
            (check,),
            curves={"measured": rounded(measured), "expected": rounded(expected)},
            numbers={"part of the squared gradient that is left": float(np.mean(left / whole))},
        )

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws both sides, a point a feature."""
        curves = answers[0]["curves"]
        ends = [min(curves["expected"]), max(curves["expected"])]
        axes.plot(ends, ends, THEORY, lw=0.5)
        axes.plot(curves["expected"], curves["measured"], ".", color=NORMALIZED, ms=3)
        axes.set(xlabel="by the formula", ylabel="squared gradient", xscale="log", yscale="log")
