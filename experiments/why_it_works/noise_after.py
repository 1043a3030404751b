"""With noise behind it, so that inputs of layers shift at each step, normalization still helps.

After each normalization, in training, a unit's output y becomes s y + m. At each step every unit
draws a mean from U(-n, n) and a scale from U(1, 1 + n / 2); every example its m within r of that
mean, uniformly, and its s about that scale, normally with deviation r. So a unit's mean shifts from
one step to the next by sqrt(2/3) n in root mean square, in deviations of y, which no statistics
undo (Santurkar et al. 2018, arXiv 1805.11604, section 2.1, who perturb VGG; the shape is theirs,
the constants are ours).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.linen import BatchNorm
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import draw_over_steps, over_steps
from experiments.why_it_works.question import Answer, Observation
from experiments.why_it_works.side_by_side import (
    Digits,
    orders,
    perceptron,
    seeds_of,
    start,
    tested,
    training,
)

_STYLES = {
    "normalized": (NORMALIZED, "-"),
    "with noise": ("#009e73", ":"),
    "without": (PLAIN, "--"),
}


class NoisyBatchNorm(nn.Module):
    """Batch normalization and, in training, noise whose moments change with each call.

    Attributes:
        use_running_average: as of `bnjax.linen.BatchNorm`; there is no noise then.
        shift: n, the largest mean.
        spread: r, of the examples.
    """

    use_running_average: bool
    shift: float = 0.5
    spread: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x` `[examples, features]`; training needs the PRNG key `"dropout"`."""
        y = BatchNorm(self.use_running_average)(x)
        if self.use_running_average:
            return y
        means, scales, own_means, own_scales = jax.random.split(self.make_rng("dropout"), 4)
        row, n, r = (1, x.shape[-1]), self.shift, self.spread
        mean = jax.random.uniform(means, row, x.dtype, -n, n)
        scale = jax.random.uniform(scales, row, x.dtype, 1, 1 + n / 2)
        mean = mean + jax.random.uniform(own_means, x.shape, x.dtype, -r, r)
        scale = scale + r * jax.random.normal(own_scales, x.shape, x.dtype)
        return scale * y + mean


@dataclass(frozen=True, kw_only=True)
class NoiseAfter(Observation):
    """Trains deep networks normalized, normalized with noise, and without.

    Attributes:
        networks: of each seed and kind; their mean counts.
        depth: hidden layers.
        width: of the hidden layers.
        steps: of training.
        tests: how often the accuracy is taken on the way.
        batch_size: examples.
        rate: of plain gradient descent; the same for all.
        shift: n.
        spread: r.
    """

    claim: ClassVar[str] = (
        "Normalization helps although noise behind it shifts the inputs of all layers at each step."
    )
    source: ClassVar[str] = "Santurkar et al. 2018, arXiv 1805.11604, Figure 2"
    effect: ClassVar[str] = "points of accuracy more than without normalization"

    networks: int = numbers(2)
    depth: int = numbers(10)
    width: int = numbers(64)
    steps: int = numbers(600)
    tests: int = numbers(6)
    batch_size: int = numbers(60)
    rate: float = numbers(0.3)
    shift: float = numbers(0.5)
    spread: float = numbers(0.1)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points noisy networks are better at the end."""
        noisy = partial(NoisyBatchNorm, shift=self.shift, spread=self.spread)
        kinds = {"normalized": BatchNorm, "with noise": noisy, "without": None}
        train, test = Digits.of(data.train), Digits.of(data.test)
        reached = {kind: self._accuracies(norm, seed, train, test) for kind, norm in kinds.items()}
        last = {kind: float(values[-1]) for kind, values in reached.items()}
        return Answer(
            effect=last["with noise"] - last["without"],
            curves=over_steps(self.steps, reached),
            numbers={f"accuracy, {kind}": value for kind, value in last.items()},
        )

    def _accuracies(self, norm: Any, seed: int, train: Digits, test: Digits) -> np.ndarray:
        """Mean accuracies on the test set by running statistics and without noise, per cent."""
        model = perceptron((self.width,) * self.depth, norm)
        tx, seeds = optax.sgd(self.rate), seeds_of(seed, self.networks)
        advance = training(model, tx)
        state = start(model, tx, seeds, train)
        order = orders(seeds, 0, self.steps, self.batch_size, len(train.labels))
        _, reached = tested(model, advance, state, train, test, order, self.tests)
        return 100 * reached.mean(1)

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the accuracies of all seeds over their training."""
        draw_over_steps(axes, answers, _STYLES, "test accuracy, %")
