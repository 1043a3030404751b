"""In a residual network normalized on the branches, the signal grows linearly with depth.

x <- x + W max(norm(x), 0), with W of variance 2 / width: a branch adds a second moment of one, so
that the l-th stream has 1 + l. Without normalization each block doubles it, 2^l, so that the
branches of deep networks drown the identity (De & Smith 2020, arXiv 2002.10444).
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
from experiments.why_it_works.standardize import standardize


@dataclass(frozen=True, kw_only=True)
class ResidualStream(Question):
    """Measures the second moment along residual networks that were only drawn.

    Attributes:
        depth: blocks.
        width: units.
        examples: in the batch.
        draws: networks whose moments are averaged.
    """

    claim: ClassVar[str] = (
        "Normalization on the branches of a residual network lets its signal grow linearly with "
        "depth instead of exponentially."
    )
    source: ClassVar[str] = "De & Smith 2020, arXiv 2002.10444"

    depth: int = numbers(32)
    width: int = numbers(500)
    examples: int = numbers(250)
    draws: int = numbers(12)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns the deviations from 1 + l and 2^l."""
        rng = np.random.default_rng(seed)
        both = jax.jit(
            lambda x, kernels: (_moments(standardize, x, kernels), _moments(jnp.array, x, kernels))
        )
        shape = (self.depth, self.width, self.width)
        seen = []
        for _ in range(self.draws):
            x = jnp.asarray(rng.normal(size=(self.examples, self.width)))
            seen.append(both(x, jnp.asarray(rng.normal(size=shape) * np.sqrt(2 / self.width))))
        with_norm, without = (np.mean(moments, 0) for moments in zip(*seen, strict=True))
        blocks = np.arange(self.depth + 1)
        factor = (without[-1] / without[0]) ** (1 / self.depth)
        checks = (  # a block's moment deviates by some sqrt(2 / width), over so many draws by 2 %
            Check("second moment, normalized", _relative(with_norm, 1 + blocks), 0.04),
            Check("factor of a block, without", deviation(factor, 2.0), 0.015),
        )
        curves = {"with": rounded(with_norm), "without": rounded(without)}
        return Answer(checks, curves=curves, numbers={"last moment, without": float(without[-1])})

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws both growths, and what theory says."""
        curves = answers[0]["curves"]
        blocks = np.arange(len(curves["with"]))
        axes.plot(blocks, curves["without"], PLAIN, ls="--", label="without")
        axes.plot(blocks, curves["with"], NORMALIZED, label="normalized")
        axes.plot(blocks, 1 + blocks, THEORY, lw=0.5)
        axes.plot(blocks, 2.0**blocks, THEORY, lw=0.5)
        axes.set(xlabel="block", ylabel="second moment", yscale="log", ylim=(0.5, 1e4))
        name_lines(axes)


def _moments(norm: Any, x: jax.Array, kernels: jax.Array) -> jax.Array:
    """The second moments of the stream, before the first block and after each."""

    def block(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x + jax.nn.relu(norm(x)) @ kernel
        return x, jnp.mean(x**2)

    return jnp.append(jnp.mean(x**2), jax.lax.scan(block, x, kernels)[1])


def _relative(measured: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(measured / expected - 1)))
