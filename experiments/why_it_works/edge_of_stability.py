"""Full-batch gradient descent brings the sharpness to 2 / eta, about which it hovers.

The sharpness is the largest eigenvalue of the loss's Hessian; beyond 2 / eta descent on a quadratic
would diverge (Cohen et al. 2021, arXiv 2103.00065, with and without batch normalization). There it
rises from below; here it comes down, for so few steps take a large rate, and drawn weights are
sharper than 2 / eta then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes

from bnjax import init_params, init_stats, normalize_batch
from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import THEORY, Answer, Check, Question, rounded

_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class EdgeOfStability(Question):
    """Descends on few digits and follows the Hessian's largest eigenvalue.

    Attributes:
        examples: all in each step.
        widths: of the hidden layers, with tanh.
        rate: eta.
        steps: of descent.
        every: steps between two measurements.
        iterations: of the power method, each from where the last one ended.
    """

    claim: ClassVar[str] = (
        "Full-batch descent brings the sharpness to 2 / eta, about which it hovers, with "
        "normalization and without."
    )
    source: ClassVar[str] = "Cohen et al. 2021, arXiv 2103.00065"
    exact: ClassVar[bool] = False

    examples: int = numbers(300)
    widths: tuple[int, ...] = numbers((50, 50))
    rate: float = numbers(0.2)
    steps: int = numbers(2_000)
    every: int = numbers(50)
    iterations: int = numbers(15)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns how far from 2 / eta the sharpness is over the last quarter."""
        curves: dict[str, Any] = {"step": list(range(0, self.steps, self.every))}
        checks = []
        late = {}
        for name, normalized in (("without", False), ("with", True)):
            sharpness = self._sharpness(seed, data, normalized)
            curves[name] = rounded(sharpness)
            last = float(np.median(sharpness[-len(sharpness) // 4 :]))
            late[f"sharpness {name}"] = last
            # It oscillates; the median over a quarter of the run is what hovers.
            checks.append(Check(f"{name}, from 2 / eta", abs(last * self.rate / 2 - 1), 0.05))
        return Answer(tuple(checks), curves=curves, numbers=late | {"2 / eta": 2 / self.rate})

    def _sharpness(self, seed: int, data: DataSet, normalized: bool) -> np.ndarray:
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(data.train))[: self.examples]
        pixels = data.train.images[rows].reshape(len(rows), -1) / 255.0
        x = jnp.asarray((pixels - pixels.mean(0)) / np.sqrt(pixels.var(0).mean()))
        y = jax.nn.one_hot(data.train.labels[rows], _CLASSES, dtype=x.dtype)
        widths = (x.shape[1], *self.widths, _CLASSES)
        pairs = list(pairwise(widths))
        kernels = [jnp.asarray(rng.normal(size=pair) / np.sqrt(pair[0])) for pair in pairs]
        layers = [init_params(width, dtype=x.dtype) for width in widths[1:]]
        flat, restored = ravel_pytree((kernels, layers))

        def loss(flat: jax.Array) -> jax.Array:
            kernels, layers = restored(flat)
            h = x
            for position, kernel in enumerate(kernels[:-1]):
                h = h @ kernel
                own = layers[position]
                if normalized:  # the closed form has no second derivative in forward mode
                    stats = init_stats(h.shape[-1], dtype=h.dtype)
                    h, _ = normalize_batch(h, own, stats, impl="autodiff")
                else:
                    h = h + own["bias"][None]
                h = jnp.tanh(h)
            h = h @ kernels[-1] + layers[-1]["bias"][None]
            return jnp.mean(jnp.sum((h - y) ** 2, -1)) / 2

        start = jnp.asarray(rng.normal(size=flat.shape))
        return np.asarray(jax.jit(self._descent, static_argnums=0)(loss, flat, start))

    def _descent(
        self, loss: Callable[[jax.Array], jax.Array], flat: jax.Array, direction: jax.Array
    ) -> jax.Array:
        slope = jax.grad(loss)

        def sharpness(flat: jax.Array, direction: jax.Array) -> tuple[jax.Array, jax.Array]:
            def power(_: int, v: jax.Array) -> jax.Array:
                v = jax.jvp(slope, (flat,), (v,))[1]
                return v / jnp.linalg.norm(v)

            direction = jax.lax.fori_loop(0, self.iterations, power, direction)
            return jnp.vdot(direction, jax.jvp(slope, (flat,), (direction,))[1]), direction

        def stretch(carry: tuple[jax.Array, jax.Array], _: None) -> Any:
            flat, direction = carry
            seen, direction = sharpness(flat, direction)
            flat = jax.lax.fori_loop(0, self.every, lambda _, w: w - self.rate * slope(w), flat)
            return (flat, direction), seen

        return jax.lax.scan(stretch, (flat, direction), None, self.steps // self.every)[1]

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the sharpness of the first seed over its descent."""
        curves = answers[0]["curves"]
        for name, color, line in (("without", PLAIN, "--"), ("with", NORMALIZED, "-")):
            axes.plot(curves["step"], curves[name], line, color=color, lw=0.8, label=name)
        axes.axhline(2 / self.rate, color=THEORY, lw=0.8, ls=":")
        axes.set(xlabel="step", ylabel="sharpness", ylim=(0, 4 / self.rate))
        name_lines(axes)
