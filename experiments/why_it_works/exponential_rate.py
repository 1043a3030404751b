"""Weight decay at a constant rate is a rate that grows exponentially.

For a loss that does not change with the length of the weights, w <- (1 - eta lambda) w - eta g(w)
goes through the same directions as w <- w - eta_t g(w) with eta_t = eta (1 - eta lambda)^(-2t-1),
t = 0, 1, ...: the second one's weights are the first one's over (1 - eta lambda)^t, since g is
inversely as long as w (Li & Arora 2020, arXiv 1910.07454).
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
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import THEORY, Answer, Check, Question, deviation, rounded
from experiments.why_it_works.scale_invariant import Problem, Weights, problem

_SHOWN = 10
"""Every so many steps are drawn."""


@dataclass(frozen=True, kw_only=True)
class ExponentialRate(Question):
    """Trains by both rules and compares losses and directions.

    Attributes:
        steps: of training.
        batch_size: examples.
        rate: eta.
        decay: lambda.
        epsilon: one with which the invariance breaks, for comparison.
    """

    claim: ClassVar[str] = (
        "With normalization, weight decay at a constant rate is training without it at a rate "
        "that grows exponentially."
    )
    source: ClassVar[str] = "Li & Arora 2020, arXiv 1910.07454"

    steps: int = numbers(400)
    batch_size: int = numbers(100)
    rate: float = numbers(0.1)
    decay: float = numbers(0.05)
    epsilon: float = numbers(1e-5)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns the largest deviations of losses and of directions."""
        given = problem(seed, data, steps=self.steps, batch_size=self.batch_size)
        first, second = self._both(given)
        broken = self._both(
            problem(seed, data, steps=self.steps, batch_size=self.batch_size, epsilon=self.epsilon)
        )
        apart = [
            deviation(a / jnp.linalg.norm(a), b / jnp.linalg.norm(b))
            for a, b in zip(first[0], second[0], strict=True)
        ]
        # Rounding grows along a trajectory; of 400 steps some 1e-14 remain.
        checks = (
            Check("loss, by both rules", deviation(first[1], second[1]), 1e-11),
            Check("directions of the weights at the end", float(np.max(apart)), 1e-11),
        )
        curves = {
            "step": list(range(0, self.steps, _SHOWN)),
            "loss with decay": rounded(first[1][::_SHOWN]),
            "loss by the growing rate": rounded(second[1][::_SHOWN]),
        }
        return Answer(
            checks,
            curves=curves,
            numbers={
                f"deviation with epsilon {self.epsilon:g}": deviation(broken[0][1], broken[1][1]),
                "last rate over the first": (1 - self.rate * self.decay) ** (-2 * self.steps + 2),
            },
        )

    def _both(self, given: Problem) -> tuple[tuple[Weights, Any], tuple[Weights, Any]]:
        keep = 1 - self.rate * self.decay
        constant = jnp.full(self.steps, self.rate)
        growing = self.rate * keep ** (-2.0 * np.arange(self.steps) - 1)
        return _train(given, constant, keep), _train(given, jnp.asarray(growing), 1.0)

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws both losses: one lies on the other."""
        curves = answers[0]["curves"]
        decayed, grown = curves["loss with decay"], curves["loss by the growing rate"]
        label = "constant rate, decay"
        axes.plot(curves["step"], decayed, NORMALIZED, lw=3, alpha=0.4, label=label)
        axes.plot(curves["step"], grown, THEORY, lw=0.8, label="growing rate, no decay")
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        name_lines(axes)


def _train(given: Problem, rates: jax.Array, keep: float) -> tuple[Weights, Any]:
    """Returns the last weights and all losses."""

    def step(weights: Weights, inputs: Any) -> tuple[Weights, jax.Array]:
        rate, batch = inputs
        loss, slope = jax.value_and_grad(given.loss)(weights, batch)
        return [keep * w - rate * g for w, g in zip(weights, slope, strict=True)], loss

    return jax.jit(lambda weights, inputs: jax.lax.scan(step, weights, inputs))(
        given.weights, (rates, given.batches)
    )
