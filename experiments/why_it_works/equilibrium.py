"""Weight decay sets how far each step turns the weights, whatever the loss.

The gradient of a scale-invariant loss is perpendicular to the weights, so that a step of gradient
descent has norm(w')^2 = (1 - eta lambda)^2 norm(w)^2 + eta^2 norm(g)^2 exactly (Arora et al. 2019,
arXiv 1812.03981; van Laarhoven 2017, arXiv 1706.05350). Growth and decay balance where the root
mean square of the angle of a step is sqrt(2 eta lambda / (1 + momentum)) (Wan et al. 2020, arXiv
2006.08419; Kosson et al. 2023, arXiv 2305.17212), to first order in eta lambda.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import THEORY, Answer, Check, Question, deviation, rounded
from experiments.why_it_works.scale_invariant import Problem, Weights, problem

_SHOWN = 25


@dataclass(frozen=True, kw_only=True)
class Equilibrium(Question):
    """Trains without and with momentum; measures lengths and angles of the weights.

    Attributes:
        steps: of training, many times 1 / (2 eta lambda).
        batch_size: examples.
        rate: eta.
        decay: lambda, without momentum.
        momentum: kept, in the second run.
        momentum_decay: lambda there.
    """

    claim: ClassVar[str] = (
        "With normalization, rate and weight decay alone set the angle by which a step turns the "
        "weights."
    )
    source: ClassVar[str] = "van Laarhoven 2017, 1706.05350; Wan et al. 2020, 2006.08419"

    steps: int = numbers(2_000)
    batch_size: int = numbers(50)
    rate: float = numbers(0.1)
    decay: float = numbers(0.05)
    momentum: float = numbers(0.9)
    momentum_decay: float = numbers(0.038)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns the deviations of lengths and of angles in equilibrium."""
        given = problem(seed, data, steps=self.steps, batch_size=self.batch_size)
        plain = self._train(given, self.decay, 0.0)
        heavy = self._train(given, self.momentum_decay, self.momentum)
        keep = 1 - self.rate * self.decay
        predicted = keep**2 * plain["before"] ** 2 + self.rate**2 * plain["gradient"] ** 2
        late = slice(self.steps // 2, None)
        angles, expected = [], []
        for run, decay, momentum in (
            (plain, self.decay, 0.0),
            (heavy, self.momentum_decay, self.momentum),
        ):
            angles.append(float(np.sqrt(np.mean(np.square(run["angle"][late])))))
            expected.append(float(np.sqrt(2 * self.rate * decay / (1 + momentum))))
        checks = (
            Check(
                "squared length after a step",
                float(np.max(np.abs(plain["after"] ** 2 / predicted - 1))),
                1e-12,
            ),
            # Mean over half of the steps and two layers; the formula is the first order's.
            Check("angle in equilibrium", deviation(angles[0], expected[0]), 0.02),
            Check("angle in equilibrium, momentum", deviation(angles[1], expected[1]), 0.02),
        )
        curves: dict[str, Any] = {"step": list(range(0, self.steps, _SHOWN)), "expected": expected}
        for name, run in (("angle", plain), ("angle with momentum", heavy)):
            curves[name] = rounded(np.sqrt((run["angle"] ** 2).mean(1))[::_SHOWN])
        names = ("angle", "angle with momentum")
        return Answer(
            checks,
            curves=curves,
            numbers=dict(zip(names, angles, strict=True))
            | {f"{name}, expected": value for name, value in zip(names, expected, strict=True)},
        )

    def _train(self, given: Problem, decay: float, momentum: float) -> dict[str, np.ndarray]:
        """Returns lengths and angles of both layers, `[steps, 2]` each."""

        def step(carry: tuple[Weights, Weights], batch: Any) -> Any:
            weights, speed = carry
            slope = jax.grad(given.loss)(weights, batch)
            speed = [
                momentum * v + g + decay * w for v, g, w in zip(speed, slope, weights, strict=True)
            ]
            moved = [w - self.rate * v for w, v in zip(weights, speed, strict=True)]
            seen = {
                "before": _lengths(weights),
                "after": _lengths(moved),
                "gradient": _lengths(slope),
                "angle": jnp.stack(
                    [_angle(w, other) for w, other in zip(weights, moved, strict=True)]
                ),
            }
            return (moved, speed), seen

        start = (given.weights, [jnp.zeros_like(w) for w in given.weights])
        _, seen = jax.jit(lambda start, batches: jax.lax.scan(step, start, batches))(
            start, given.batches
        )
        return {name: np.asarray(values) for name, values in seen.items()}

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the angle of each step, and the predictions."""
        curves = answers[0]["curves"]
        axes.plot(curves["step"], curves["angle"], NORMALIZED, lw=0.8, label="no momentum")
        label = f"momentum {self.momentum:g}"
        axes.plot(
            curves["step"], curves["angle with momentum"], PLAIN, lw=0.8, ls="--", label=label
        )
        for value in curves["expected"]:
            axes.axhline(value, color=THEORY, lw=0.8, ls=":")
        axes.set(xlabel="step", ylabel="angle of a step", ylim=(0, 2.5 * max(curves["expected"])))
        name_lines(axes)


def _lengths(weights: Weights) -> jax.Array:
    return jnp.stack([jnp.linalg.norm(w) for w in weights])


def _angle(first: jax.Array, second: jax.Array) -> jax.Array:
    """The angle, by its chord: an arc cosine of nearly one has no digits."""
    chord = first / jnp.linalg.norm(first) - second / jnp.linalg.norm(second)
    return 2 * jnp.arcsin(jnp.linalg.norm(chord) / 2)
