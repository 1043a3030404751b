"""At initialization the gradient grows exponentially with depth, because of normalization.

A fully connected network of great width: h = W x, y = (h - mean) / deviation over a batch of B,
x' = max(y, 0). Of one unit, y / sqrt(B) is uniform on the unit sphere of the vectors whose sum is
zero. With rho = -1 / (B - 1), the correlation of two of its entries, let
    P = 1/4 + asin(rho) / (2 pi)                                both entries positive
    K = (sqrt(1 - rho^2) + rho (pi - acos(rho))) / (2 pi)       mean product of their positive parts
A gradient that sums to zero over the batch, backwards through one layer, has its squared norm
multiplied on average by
    B / ((1/2 - K) (B - 3) (B - 1)) ((1 - 1/B)^2 B/2 + (1 - 1/B) P - 1/2 + (1/2 + (B - 1) K) / B),
which tends to pi / (pi - 1) = 1.467; without the activation by (B - 2) / (B - 3).
Without an activation the deviations of a finite width from layer to layer add up, as nothing draws
them back, and the growth stays below the formula: it is told, and not held to it.
Yang et al. 2019, arXiv 1902.08129, have the limits and the linear case; the finite form above is
derived here by the same steps: 1/2 - K is the variance of h across the batch, B - 3 comes from the
mean of the inverse of a chi-square of B - 1 degrees, the bracket from the projection.
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
from experiments.why_it_works.question import THEORY, Answer, Check, Question, rounded
from experiments.why_it_works.standardize import standardize


def relu_factor(batch: int) -> float:
    """Returns the growth of the squared gradient through normalization and ReLU."""
    rho = -1 / (batch - 1)
    both = 1 / 4 + np.arcsin(rho) / (2 * np.pi)
    product = (np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / (2 * np.pi)
    part = 1 - 1 / batch
    kept = part**2 * batch / 2 + part * both - 1 / 2 + (1 / 2 + (batch - 1) * product) / batch
    return float(batch * kept / ((1 / 2 - product) * (batch - 3) * (batch - 1)))


def linear_factor(batch: int) -> float:
    """Returns the same without an activation."""
    return (batch - 2) / (batch - 3)


@dataclass(frozen=True, kw_only=True)
class GradientGrowth(Question):
    """Measures the gradient at each layer of a deep network that was only drawn.

    Attributes:
        depth: layers.
        width: much larger than the batches.
        draws: networks whose growth is averaged.
        batches: sizes.
    """

    claim: ClassVar[str] = "Normalization makes gradients grow exponentially with depth."
    source: ClassVar[str] = "Yang et al. 2019, arXiv 1902.08129"

    depth: int = numbers(30)
    width: int = numbers(512)
    draws: int = numbers(10)
    batches: tuple[int, ...] = numbers((8, 16, 32))

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns the deviations of the growth a layer, and the growth."""
        rng = np.random.default_rng(seed)
        checks: list[Check] = []
        curves: dict[str, Any] = {"layer": list(range(self.depth, 0, -1))}
        measured: dict[str, float] = {}
        for name, relu, factor in (("ReLU", True, relu_factor), ("linear", False, linear_factor)):
            for batch in self.batches:
                squares = np.mean([self._gradients(rng, batch, relu) for _ in range(self.draws)], 0)
                settled = squares[5:]  # the first layers forget where the gradient came from
                growth = float((settled[-1] / settled[0]) ** (1 / (len(settled) - 1)))
                what = f"{name}, batch {batch}"
                if relu:  # of so many draws
                    deviation = abs(np.log(growth) / np.log(factor(batch)) - 1)
                    checks.append(Check(f"logarithm of the growth, {what}", deviation, 0.04))
                curves[what] = rounded(squares / squares[0])
                measured |= {f"growth, {what}": growth, f"theory, {what}": factor(batch)}
        return Answer(tuple(checks), curves=curves, numbers=measured)

    def _gradients(self, rng: np.random.Generator, batch: int, relu: bool) -> np.ndarray:
        """Squared norms of the gradients at the layers' outputs, from the last one on."""
        shape = (self.depth, self.width, self.width)
        kernels = jnp.asarray(rng.normal(size=shape) / np.sqrt(self.width))
        x = jnp.asarray(rng.normal(size=(batch, self.width)))
        last = rng.normal(size=(batch, self.width))
        return np.asarray(_gradients(kernels, x, jnp.asarray(last - last.mean(0)), relu=relu))

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the growth for each batch, and what theory says."""
        curves = answers[0]["curves"]
        layers = np.array(curves["layer"])
        for name, color, sign, factor in (
            ("ReLU", NORMALIZED, "", relu_factor),
            ("linear", PLAIN, "o", linear_factor),
        ):
            for batch, line in zip(self.batches, ("-", "--", "-."), strict=False):
                values = curves[f"{name}, batch {batch}"]
                style: Any = {"color": color, "ms": 3, "markevery": 4}
                axes.plot(layers, values, line + sign, label=f"{name}, batch {batch}", **style)
                axes.plot(
                    layers, values[0] * factor(batch) ** (self.depth - layers), THEORY, lw=0.5
                )
        axes.set(xlabel="layer", ylabel="squared gradient", yscale="log")
        name_lines(axes)


def _gradients(kernels: jax.Array, x: jax.Array, last: jax.Array, *, relu: bool) -> jax.Array:
    def layer(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = standardize(x @ kernel)
        return jax.nn.relu(y) if relu else y

    def run(kernels: jax.Array, x: jax.Array, last: jax.Array) -> jax.Array:
        _, inputs = jax.lax.scan(lambda x, kernel: (layer(x, kernel), x), x, kernels)

        def back(slope: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, kernel = at
            _, pull = jax.vjp(lambda x: layer(x, kernel), x)
            return pull(slope)[0], jnp.sum(slope**2)

        return jax.lax.scan(back, last, (inputs, kernels), reverse=True)[1][::-1]

    return jax.jit(run)(kernels, x, last)
