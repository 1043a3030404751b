"""Batch renormalization sees in training what inference will see; with closed limits it is BN.

    y = ((x - mu_B) / sigma_B r + d) gamma + beta
    r = clip(sigma_B / sigma, 1 / r_max, r_max),  d = clip((mu_B - mu) / sigma, -d_max, d_max)

Without a limit y is that of the running mu and sigma; r_max = 1, d_max = 0 is batch normalization.
r and d are constants to the gradient, g = dL/dy, of one feature over m examples:
    dL/dx = gamma r / sigma_B (g - mean(g) - xhat mean(g xhat))
which is not the gradient of inference's affine map, gamma / sigma g (Ioffe 2017, arXiv 1702.03275,
section 3). Both deviations contain the same epsilon here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from bnjax import normalize_batch, normalize_population
from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.normalization import renormalize_batch
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import Answer, Check, Question, deviation, rounded

_ROUNDING = 1e-12
_STAGES = 21


@dataclass(frozen=True, kw_only=True)
class RenormIdentity(Question):
    """Draws inputs, statistics, parameters and gradients; compares with the formulas.

    Attributes:
        examples: of a batch.
        features: each with moments and statistics of its own.
        r_max: the limit where r and d are clipped in part.
        d_max: the same of d.
        epsilon: added to both variances.
    """

    claim: ClassVar[str] = (
        "Batch renormalization gives in training the output of inference, as far as its limits "
        "let it; with closed limits it is batch normalization."
    )
    source: ClassVar[str] = "Ioffe 2017, arXiv 1702.03275, section 3"

    examples: int = numbers(4)
    features: int = numbers(200)
    r_max: float = numbers(1.5)
    d_max: float = numbers(0.5)
    epsilon: float = numbers(1e-3)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns the deviations from inference, from BN and from the formulas when clipped."""
        rng = np.random.default_rng(seed)
        spread = np.exp(rng.normal(size=self.features))
        x, g = rng.normal(size=(2, self.examples, self.features))
        x = x * spread + rng.normal(size=self.features)
        mean = x.mean(0) + 0.5 * spread * rng.normal(size=self.features)
        var = (spread * np.exp(0.5 * rng.normal(size=self.features))) ** 2
        scale, bias = rng.normal(size=(2, self.features))
        params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}
        stats = {"mean": jnp.asarray(mean), "var": jnp.asarray(var)}

        def train(x: jax.Array, r_max: float, d_max: float) -> jax.Array:
            return renormalize_batch(
                x, params, stats, r_max=r_max, d_max=d_max, epsilon=self.epsilon
            )[0]

        given = jnp.asarray(x)
        inference = normalize_population(given, params, stats, epsilon=self.epsilon)
        plain, _ = normalize_batch(given, params, stats, epsilon=self.epsilon)
        clipped, pull = jax.vjp(lambda x: train(x, self.r_max, self.d_max), given)

        sigma_b, sigma = np.sqrt(x.var(0) + self.epsilon), np.sqrt(var + self.epsilon)
        r = np.clip(sigma_b / sigma, 1 / self.r_max, self.r_max)
        d = np.clip((x.mean(0) - mean) / sigma, -self.d_max, self.d_max)
        xhat = (x - x.mean(0)) / sigma_b
        output = (xhat * r + d) * scale + bias
        slope = scale * r / sigma_b * (g - g.mean(0) - xhat * (g * xhat).mean(0))
        checks = (
            Check(
                "no limits, from inference",
                deviation(train(given, np.inf, np.inf), inference),
                _ROUNDING,
            ),
            Check("closed limits, from BN", deviation(train(given, 1, 0), plain), _ROUNDING),
            Check("output, clipped", deviation(clipped, output), _ROUNDING),
            Check("gradient, clipped", deviation(pull(jnp.asarray(g))[0], slope), _ROUNDING),
        )
        share = np.linspace(0, 1, _STAGES)
        limits = [(1 + 2 * s, 5 * s) for s in share]  # the paper ends with r_max = 3, d_max = 5
        apart = [_apart(train(given, *limit), inference) for limit in limits]
        kept = np.mean((np.abs(d) < self.d_max) & (r > 1 / self.r_max) & (r < self.r_max))
        return Answer(
            checks,
            curves={"share": rounded(share), "apart": rounded(apart)},
            numbers={
                "part of the features within both limits": float(kept),
                "BN from inference": apart[0],
            },
        )

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws how training's output comes to inference's as the limits open."""
        curves = answers[0]["curves"]
        axes.plot(curves["share"], curves["apart"], ".-", color=NORMALIZED)
        axes.plot(0, curves["apart"][0], "x", color=PLAIN, label="batch normalization")
        axes.set(xlabel="limits, part of the paper's", ylabel="training from inference", ylim=0)
        name_lines(axes)


def _apart(output: Any, other: Any) -> float:
    """The root mean square of the difference over that of the other."""
    difference = np.asarray(output) - np.asarray(other)
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.square(np.asarray(other)))))
