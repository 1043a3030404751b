"""Dropout before a normalization: the statistics of training are wrong at inference.

Units of mean c and variance v, kept with probability p and then divided by it, have a variance of
(c^2 + v) / p - c^2 in training; at inference it is v. So the running variance is too large by a
factor that weights between them do not change, if they are drawn independently
(Li et al. 2019, arXiv 1801.05134).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from bnjax import init_params, init_stats, normalize_batch
from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import THEORY, Answer, Check, Question, deviation, rounded


@dataclass(frozen=True, kw_only=True)
class DropoutBefore(Question):
    """Measures variances at a normalization behind dropout, and behind dropout and a layer.

    Attributes:
        examples: over which statistics are taken.
        units: that are dropped.
        mean: c.
        deviation: the square root of v.
        kept: probabilities p.
    """

    claim: ClassVar[str] = (
        "Dropout before normalization makes the running variance larger than that at inference."
    )
    source: ClassVar[str] = "Li et al. 2019, arXiv 1801.05134"

    examples: int = numbers(20_000)
    units: int = numbers(400)
    mean: float = numbers(0.5)
    deviation: float = numbers(1.0)
    kept: tuple[float, ...] = numbers((0.5, 0.7, 0.9))

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns the deviations of the ratio of variances."""
        rng = np.random.default_rng(seed)
        x = self.mean + self.deviation * rng.normal(size=(self.examples, self.units))
        kernel = rng.normal(size=(self.units, 100)) / np.sqrt(self.units)
        second, v = self.mean**2 + self.deviation**2, self.deviation**2
        expected = np.array([v / (second / p - self.mean**2) for p in self.kept])
        direct, behind = [], []
        for p in self.kept:
            dropped = x * (rng.random(x.shape) < p) / p
            direct.append(_ratio(x, dropped))
            behind.append(_ratio(x @ kernel, dropped @ kernel))
        checks = (  # of so many examples
            Check("ratio, behind dropout", deviation(direct, expected), 0.005),
            Check("ratio, behind dropout and a layer", deviation(behind, expected), 0.01),
        )
        curves = {"kept": list(self.kept), "direct": rounded(direct), "behind": rounded(behind)}
        return Answer(checks, curves=curves)

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the ratio against the part that is kept."""
        p = np.linspace(0.3, 1, 100)
        c, v = self.mean, self.deviation**2
        axes.plot(p, v / ((c**2 + v) / p - c**2), THEORY, lw=0.5)
        curves = answers[0]["curves"]
        axes.plot(curves["kept"], curves["direct"], "o", color=NORMALIZED, label="direct")
        axes.plot(curves["kept"], curves["behind"], "x", color=PLAIN, label="behind a layer")
        axes.set(xlabel="part kept", ylabel="variance at inference / training", ylim=(0, 1.05))
        name_lines(axes)


def _ratio(inference: np.ndarray, training: np.ndarray) -> float:
    """The mean variance at inference over the running variance that training leaves."""
    width = training.shape[1]
    stats = init_stats(width, averaging="cumulative", dtype=jnp.float64)
    _, stats = normalize_batch(
        jnp.asarray(training), init_params(width, dtype=jnp.float64), stats, averaging="cumulative"
    )
    return float(np.mean(inference.var(0, ddof=1)) / np.mean(np.asarray(stats["var"])))
