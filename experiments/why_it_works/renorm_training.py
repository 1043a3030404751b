"""Batch renormalization where the batch says little: batches of 4, and batches of one class.

Two networks differ in their normalization alone, see the same batches, and are tested by their
running statistics (Ioffe 2017, arXiv 1702.03275, sections 4.2 and 4.3, with Inception-v3 on
ImageNet, batches of 4 and batches in which classes come twice; here perceptrons on digits). The
limits open as in the paper's section 4, with its steps scaled to the length of the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.linen import BatchNorm, BatchRenorm
from bnjax.normalization import renorm_limits
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

_STYLES = {"BN": (PLAIN, "--"), "renormalized": (NORMALIZED, "-")}


@dataclass(frozen=True, kw_only=True)
class RenormSmallBatches(Observation):
    """Trains with batches of 4.

    Attributes:
        networks: of each seed and kind; their mean counts.
        steps: of training.
        tests: how often the accuracy is taken on the way.
        batch_size: examples.
        widths: of the hidden layers.
        rate: of plain gradient descent.
        warm: part of the training until which limits are closed; the paper's 5,000 steps.
        r_open: part until which r_max grows to 3; the paper's 40,000.
        d_open: part until which d_max grows to 5; the paper's 25,000.
    """

    claim: ClassVar[str] = (
        "With batches of 4, batch renormalization tests better than batch normalization."
    )
    source: ClassVar[str] = "Ioffe 2017, arXiv 1702.03275"
    effect: ClassVar[str] = "points of accuracy more"

    networks: int = numbers(2)
    steps: int = numbers(3_000)
    tests: int = numbers(6)
    batch_size: int = numbers(4)
    widths: tuple[int, ...] = numbers((100, 100))
    rate: float = numbers(0.05)
    warm: float = numbers(0.1)
    r_open: float = numbers(0.6)
    d_open: float = numbers(0.4)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points renormalization is better at the end."""
        train, test = Digits.of(data.train), Digits.of(data.test)
        order = self.order(seed, np.asarray(data.train.labels))
        reached = {name: self._accuracies(name, seed, train, test, order) for name in _STYLES}
        last = {name: 100 * float(values[-1].mean()) for name, values in reached.items()}
        return Answer(
            effect=last["renormalized"] - last["BN"],
            curves=over_steps(
                self.steps, {name: 100 * values.mean(1) for name, values in reached.items()}
            ),
            numbers={f"accuracy, {name}": value for name, value in last.items()},
        )

    def order(self, seed: int, labels: np.ndarray) -> jax.Array:
        """Returns the examples of each network's batches, int32 `[networks, steps, batch]`."""
        seeds = seeds_of(seed, self.networks)
        return orders(seeds, 0, self.steps, self.batch_size, len(labels))

    def _accuracies(
        self, name: str, seed: int, train: Digits, test: Digits, order: jax.Array
    ) -> np.ndarray:
        """Accuracies on the test set by running statistics, `[tests, networks]`."""
        plain = perceptron(self.widths, BatchNorm)

        def opening(step: jax.Array) -> nn.Module:
            r_max, d_max = renorm_limits(
                step,
                start=int(self.warm * self.steps),
                r_end=int(self.r_open * self.steps),
                d_end=int(self.d_open * self.steps),
            )
            return perceptron(self.widths, partial(BatchRenorm, r_max=r_max, d_max=d_max))

        tx = optax.sgd(self.rate)
        advance = training(plain if name == "BN" else opening, tx)
        state = start(plain, tx, seeds_of(seed, self.networks), train)
        return tested(plain, advance, state, train, test, order, self.tests)[1]

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the accuracies of all seeds over their training."""
        draw_over_steps(axes, answers, _STYLES, "test accuracy, %")


@dataclass(frozen=True, kw_only=True)
class RenormSortedBatches(RenormSmallBatches):
    """Trains with batches whose examples are all of one class, another one each time."""

    claim: ClassVar[str] = (
        "With batches of one class each, batch renormalization tests better than batch "
        "normalization."
    )

    steps: int = numbers(900)
    batch_size: int = numbers(40)

    def order(self, seed: int, labels: np.ndarray) -> jax.Array:
        """Returns examples of one class for each batch."""
        found = []
        for own in seeds_of(seed, self.networks):
            rng = np.random.default_rng(own)
            classes = rng.integers(labels.max() + 1, size=self.steps)
            members = [np.flatnonzero(labels == one) for one in range(labels.max() + 1)]
            found.append([rng.choice(members[one], self.batch_size) for one in classes])
        return jnp.asarray(np.array(found), jnp.int32)
