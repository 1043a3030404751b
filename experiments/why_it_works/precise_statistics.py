"""Statistics of the weights as they are now test better than running averages, in mid-training.

At a high learning rate the weights move on while the averages still hold those of before. Precise
statistics are the averages over many batches for fixed weights, Algorithm 2 of the paper (Wu &
Johnson 2021, arXiv 2105.07576, section 3, who keep 0.9 of the running averages in each step).
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
from bnjax.linen import BatchNorm
from bnjax.models import MLP, apply_train
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import draw_over_steps, over_steps
from experiments.why_it_works.question import Answer, Observation
from experiments.why_it_works.side_by_side import (
    Digits,
    accuracies,
    orders,
    perceptron,
    seeds_of,
    start,
    training,
)

_STYLES = {"running": (PLAIN, "--"), "precise": (NORMALIZED, "-")}


@dataclass(frozen=True, kw_only=True)
class PreciseStatistics(Observation):
    """Tests networks by both statistics again and again while they train.

    Attributes:
        networks: of each seed; their mean counts.
        steps: of training.
        tests: how often they are tested on the way.
        batch_size: examples.
        batches: whose moments make precise statistics.
        widths: of the hidden layers.
        rate: of plain gradient descent, high.
        decay: of the running statistics; the fraction kept.
    """

    claim: ClassVar[str] = (
        "In mid-training at a high rate, precise statistics test better than running averages."
    )
    source: ClassVar[str] = "Wu & Johnson 2021, arXiv 2105.07576"
    effect: ClassVar[str] = "points of accuracy more, mean over the training"

    networks: int = numbers(4)
    steps: int = numbers(600)
    tests: int = numbers(15)
    batch_size: int = numbers(40)
    batches: int = numbers(25)
    widths: tuple[int, ...] = numbers((100, 100))
    rate: float = numbers(1.0)
    decay: float = numbers(0.9)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points precise statistics are better, and how both scatter."""
        train, test = Digits.of(data.train), Digits.of(data.test)
        running, precise = self._model(momentum=self.decay), self._model(averaging="cumulative")
        tx, seeds = optax.sgd(self.rate), seeds_of(seed, self.networks)
        advance, state = training(running, tx), start(running, tx, seeds, train)
        order = orders(seeds, 0, self.steps, self.batch_size, len(train.labels))
        rows = orders(seeds, self.steps, self.batches, self.batch_size, len(train.labels))
        fresh = start(precise, tx, seeds, train).batch_stats
        estimate = jax.jit(jax.vmap(partial(average_moments, precise), in_axes=(0, 0, None, 0)))
        reached: dict[str, list[np.ndarray]] = {"running": [], "precise": []}
        for stretch in jnp.split(order, self.tests, axis=1):
            state, _ = advance(state, train, stretch)
            reached["running"].append(accuracies(running, state, test))
            stats = estimate(state.params, fresh, train.images, rows)
            reached["precise"].append(accuracies(precise, state, test, stats))
        points = {name: 100 * np.stack(values) for name, values in reached.items()}
        numbers = {f"accuracy, {name}": float(values.mean()) for name, values in points.items()}
        for name, values in points.items():
            numbers[f"change from test to test, {name}"] = float(np.std(np.diff(values, axis=0)))
        return Answer(
            effect=numbers["accuracy, precise"] - numbers["accuracy, running"],
            curves=over_steps(
                self.steps, {name: values.mean(1) for name, values in points.items()}
            ),
            numbers=numbers,
        )

    def _model(self, **settings: Any) -> MLP:
        return perceptron(self.widths, partial(BatchNorm, **settings))

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the accuracies of all seeds over their training."""
        draw_over_steps(axes, answers, _STYLES, "test accuracy, %")


def average_moments(
    model: nn.Module, params: Any, fresh: Any, images: jax.Array, rows: jax.Array
) -> Any:
    """Returns statistics that average the moments of batches equally, for fixed weights.

    Args:
        model: normalizes with `averaging="cumulative"`.
        params: the weights.
        fresh: statistics without an update yet.
        images: of which the batches are.
        rows: int32 `[batches, batch]`.
    """

    def add(stats: Any, batch: jax.Array) -> tuple[Any, None]:
        variables = {"params": params, "batch_stats": stats}
        return apply_train(model, variables, images[batch])[1], None

    return jax.lax.scan(add, fresh, rows)[0]
