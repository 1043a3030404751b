"""A network learns labels that were drawn at random by heart, with and without normalization.

Its number of parameters, not normalization, lets it do so, and what it has learned then says
nothing of other images (Zhang et al. 2017, arXiv 1611.03530, section 2.1 and Table 1: Inception on
CIFAR-10, with batch normalization and without; here perceptrons on few digits).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.data.order import permutation
from bnjax.evidence.figures import NORMALIZED, PLAIN
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import draw_over_steps, over_steps
from experiments.why_it_works.question import Answer, Check, Observation
from experiments.why_it_works.side_by_side import (
    Digits,
    accuracies,
    orders,
    perceptron,
    seeds_of,
    start,
    tested,
    training,
)

_NORMS = {"with": "batch", "without": None}
_STYLES = {"with": (NORMALIZED, "-"), "without": (PLAIN, "--")}


@dataclass(frozen=True, kw_only=True)
class RandomLabels(Observation):
    """Trains on few digits with labels that were drawn.

    Attributes:
        networks: of each seed and kind; each must fit.
        examples: to train on.
        steps: of training.
        tests: how often the accuracy is taken on the way.
        batch_size: examples.
        widths: of the hidden layers.
        rate: of plain gradient descent; the same for both.
        wrong: part of the labels that may be wrong in the end.
    """

    claim: ClassVar[str] = (
        "A network fits labels drawn at random, with normalization and without it."
    )
    source: ClassVar[str] = "Zhang et al. 2017, arXiv 1611.03530, Table 1"

    networks: int = numbers(2)
    examples: int = numbers(500)
    steps: int = numbers(1_500)
    tests: int = numbers(10)
    batch_size: int = numbers(50)
    widths: tuple[int, ...] = numbers((200, 200))
    rate: float = numbers(0.1)
    wrong: float = numbers(0.01)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns the part of the labels that is wrong at the end, of the worst network."""
        whole, test = Digits.of(data.train), Digits.of(data.test)
        rows = permutation(seed, 0, len(whole.labels))[: self.examples]
        drawn = np.random.default_rng(seed).integers(whole.labels.max() + 1, size=self.examples)
        train = Digits(whole.images[rows], jnp.asarray(drawn, jnp.int32))
        reached, numbers = {}, {}
        for kind, norm in _NORMS.items():
            reached[kind], tested = self._follow(norm, seed, train, test)
            numbers[f"training accuracy {kind}"] = 100 * float(reached[kind][-1].mean())
            numbers[f"test accuracy {kind}"] = 100 * tested
        return Answer(
            checks=tuple(
                Check(f"all labels, {kind}", 1 - float(values[-1].min()), self.wrong)
                for kind, values in reached.items()
            ),
            curves=over_steps(
                self.steps, {kind: 100 * values.mean(1) for kind, values in reached.items()}
            ),
            numbers=numbers,
        )

    def _follow(
        self, norm: str | None, seed: int, train: Digits, test: Digits
    ) -> tuple[np.ndarray, float]:
        """Accuracies on what is trained on, `[tests, networks]`, and the last on the test set."""
        model = perceptron(self.widths, norm)
        tx, seeds = optax.sgd(self.rate), seeds_of(seed, self.networks)
        advance, state = training(model, tx), start(model, tx, seeds, train)
        order = orders(seeds, 0, self.steps, self.batch_size, self.examples)
        state, reached = tested(model, advance, state, train, train, order, self.tests)
        return reached, float(accuracies(model, state, test).mean())

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the training accuracies of all seeds."""
        draw_over_steps(axes, answers, _STYLES, "training accuracy, %")
