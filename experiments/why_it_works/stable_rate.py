"""With normalization, deep networks train at higher learning rates.

The largest learning rate at which a network of fully connected layers still trains, by depth
(Bjorck et al. 2018, arXiv 1806.02375). At small rates a deep normalized network is slower than one
without: its gradients are those of weights whose length does not matter. Each layer has a bias,
with normalization a scale too. The test images are normalized as one batch, for so few steps leave
no running statistics to speak of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from bnjax import init_params, init_stats, normalize_batch
from bnjax.data import DataSet
from bnjax.data.order import batch_indices
from bnjax.evidence.figures import NORMALIZED, PLAIN
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import Answer, Question, rounded

_KINDS = {"with": True, "without": False}
_LINES = ("-", "--", ":")
_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class StableRate(Question):
    """Trains ReLU networks of several depths at several rates, with and without.

    Attributes:
        depths: numbers of hidden layers.
        rates: of plain gradient descent.
        steps: of training.
        batch_size: examples.
        width: of the hidden layers.
        enough: of the best accuracy of its depth and kind, at which a network counts as trained.
    """

    claim: ClassVar[str] = (
        "With normalization, deep networks train at higher learning rates than without."
    )
    source: ClassVar[str] = "Bjorck et al. 2018, arXiv 1806.02375"
    exact: ClassVar[bool] = False
    effect: ClassVar[str] = "powers of ten more, at the greatest depth"

    depths: tuple[int, ...] = numbers((3, 10, 20))
    rates: tuple[float, ...] = numbers(
        (
            *(0.003, 0.0055, 0.01, 0.018, 0.03, 0.055, 0.1, 0.18),
            *(0.3, 0.55, 1.0, 1.8, 3.0, 5.5, 10.0),
        )
    )
    steps: int = numbers(300)
    batch_size: int = numbers(60)
    width: int = numbers(64)
    enough: float = numbers(0.9)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many powers of ten the largest rate of the deepest network is higher."""
        curves: dict[str, Any] = {"rate": list(self.rates)}
        largest: dict[str, float] = {}
        for depth in self.depths:
            for kind, normalized in _KINDS.items():
                reached = self._accuracies(seed, data, depth, normalized)
                trained = [
                    rate
                    for rate, accuracy in zip(self.rates, reached, strict=True)
                    if accuracy >= self.enough * max(reached)
                ]
                name = f"{kind}, depth {depth}"
                curves[name] = rounded(reached)
                largest[f"largest rate {name}"] = max(trained)
        ends = [largest[f"largest rate {kind}, depth {self.depths[-1]}"] for kind in _KINDS]
        return Answer(
            effect=float(np.log10(ends[0] / ends[1])),
            curves=curves,
            numbers=largest
            | {
                f"at rate {self.rates[0]:g}, {name}": values[0]
                for name, values in curves.items()
                if name != "rate"
            },
        )

    def _accuracies(self, seed: int, data: DataSet, depth: int, normalized: bool) -> list[float]:
        """Accuracies on the test set at each rate; in float32, all rates at once."""
        images, tests = (
            split.images.reshape(len(split), -1).astype(np.float32) / 255
            for split in (data.train, data.test)
        )
        order = batch_indices(seed, 0, self.steps, batch_size=self.batch_size, size=len(images))
        widths = (images.shape[1], *[self.width] * depth, _CLASSES)
        rng = np.random.default_rng(seed)
        kernels = [
            jnp.asarray(rng.normal(size=(before, after)) * np.sqrt(2 / before), jnp.float32)
            for before, after in pairwise(widths)
        ]
        own, last = (init_params(units) for units in (self.width, _CLASSES))
        unit = own if normalized else {"bias": own["bias"]}
        layers = [*[unit] * depth, {"bias": last["bias"]}]

        def logits(weights: Any, x: jax.Array) -> jax.Array:
            *hidden, (kernel, last) = zip(*weights, strict=True)
            for own, layer in hidden:
                x = x @ own
                if normalized:
                    x, _ = normalize_batch(x, layer, init_stats(self.width))
                else:
                    x = x + layer["bias"][None]
                x = jax.nn.relu(x)
            return x @ kernel + last["bias"][None]

        def loss(weights: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(
                logits(weights, x), labels
            ).mean()

        def train(rate: jax.Array, x: jax.Array, labels: jax.Array) -> jax.Array:
            def step(weights: Any, rows: jax.Array) -> tuple[Any, None]:
                slope = jax.grad(loss)(weights, x[rows], labels[rows])
                return jax.tree.map(lambda w, g: w - rate * g, weights, slope), None

            weights, _ = jax.lax.scan(step, (kernels, layers), jnp.asarray(order))
            guess = jnp.argmax(logits(weights, jnp.asarray(tests)), -1).astype(jnp.int32)
            return jnp.mean((guess == jnp.asarray(data.test.labels)).astype(jnp.float32))

        rates = jnp.asarray(self.rates, jnp.float32)
        trained = jax.jit(jax.vmap(train, in_axes=(0, None, None)))
        return [
            float(a) for a in trained(rates, jnp.asarray(images), jnp.asarray(data.train.labels))
        ]

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws accuracy against the rate: the mean over seeds."""
        rates = answers[0]["curves"]["rate"]
        for kind, color, sign in (("with", NORMALIZED, ""), ("without", PLAIN, "o")):
            for depth, line in zip(self.depths, _LINES, strict=False):
                name = f"{kind}, depth {depth}"
                mean = np.mean([answer["curves"][name] for answer in answers], 0)
                axes.plot(rates, 100 * mean, line + sign, color=color, ms=3, label=name)
        axes.set(xlabel="learning rate", ylabel="test accuracy, %", xscale="log", ylim=(0, 100))
        name_lines(axes)
