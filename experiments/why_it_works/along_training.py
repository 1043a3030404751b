"""What is measured along the training of deep networks, with and without normalization."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.linen import BatchNorm
from bnjax.models import apply_train
from bnjax.training.state import TrainState
from bnjax.training.steps import make_train_step
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import draw_over_steps
from experiments.why_it_works.question import Answer, Observation, rounded
from experiments.why_it_works.side_by_side import Digits, orders, perceptron, seeds_of, start

Loss = Callable[[Any, Any], jax.Array]
"""`(params, (images, labels)) -> mean loss in training`"""
_KINDS = {"with": BatchNorm, "without": None}
_STYLES = {"with": (NORMALIZED, "-"), "without": (PLAIN, "--")}


@dataclass(frozen=True, kw_only=True)
class AlongTraining(Observation):
    """Trains deep ReLU networks by plain gradient descent, and measures on the way.

    Attributes:
        shown: the measurement that the figure shows, one of those that `measure` returns.
        networks: of each seed and kind.
        depth: hidden layers.
        width: of the hidden layers.
        steps: of training.
        every: steps between two measurements.
        batch_size: examples.
        rate: of plain gradient descent; the same for both kinds.
    """

    shown: ClassVar[str]

    networks: int = numbers(2)
    depth: int = numbers(10)
    width: int = numbers(64)
    steps: int = numbers(300)
    every: int = numbers(15)
    batch_size: int = numbers(100)
    rate: float = numbers(0.03)

    @abstractmethod
    def measure(self, loss: Loss, params: Any, batch: Any) -> dict[str, jax.Array]:
        """Returns what is measured before a step on `batch`, scalars by name."""

    @abstractmethod
    def compared(self, with_norm: np.ndarray, without: np.ndarray) -> float:
        """Returns the effect, of what is shown, `[measurements, networks]` each."""

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns the effect, and the means over the training."""
        digits = Digits.of(data.train)
        found = {kind: self.follow(norm, seed, digits) for kind, norm in _KINDS.items()}
        curves = {kind: rounded(values[self.shown].mean(1)) for kind, values in found.items()}
        return Answer(
            effect=self.compared(found["with"][self.shown], found["without"][self.shown]),
            curves={"step": list(range(0, self.steps, self.every))} | curves,
            numbers={
                f"{name}, {kind}": float(values[name].mean())
                for kind, values in found.items()
                for name in values
            },
        )

    def follow(self, norm: Any, seed: int, digits: Digits) -> dict[str, np.ndarray]:
        """Returns what is measured while networks with a norm train: `[measurements, networks]`."""
        model = perceptron((self.width,) * self.depth, norm)
        tx, seeds = optax.sgd(self.rate), seeds_of(seed, self.networks)
        take = make_train_step(partial(apply_train, model), tx)

        def one(state: TrainState, order: jax.Array, digits: Digits) -> dict[str, jax.Array]:
            def examples(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
                return digits.images[rows], digits.labels[rows]

            def stretch(state: TrainState, order: jax.Array) -> Any:
                def loss(params: Any, batch: Any) -> jax.Array:
                    variables = {"params": params, "batch_stats": state.batch_stats}
                    logits, _ = apply_train(model, variables, batch[0])
                    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

                seen = self.measure(loss, state.params, examples(order[0]))
                state, _ = jax.lax.scan(
                    lambda state, rows: (take(state, examples(rows))[0], None), state, order
                )
                return state, seen

            parts = order.reshape(-1, self.every, self.batch_size)
            return jax.lax.scan(stretch, state, parts)[1]

        order = orders(seeds, 0, self.steps, self.batch_size, len(digits.labels))
        run = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))
        seen = run(start(model, tx, seeds, digits), order, digits)
        return {name: np.asarray(values).T for name, values in seen.items()}

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws what is shown, of all seeds, over the training."""
        draw_over_steps(axes, answers, _STYLES, self.shown)
