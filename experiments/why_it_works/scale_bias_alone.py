"""Scale and bias alone, with all other weights as they were drawn, train a network far.

Frankle, Schwab & Morcos 2021, arXiv 2003.00152, of residual networks on CIFAR-10, with the last
layer as it was drawn too; their control trains two other weights of each unit in their place, as
many parameters at another place. Here perceptrons; both with and without the last layer trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.models import MLP
from experiments.harness.affects import numbers
from experiments.why_it_works.question import NORMALIZED, PLAIN, THEORY, Answer, Question
from experiments.why_it_works.side_by_side import Digits, accuracies, seeds_of, trained

_LAST = "logits"


@dataclass(frozen=True, kw_only=True)
class ScaleBiasAlone(Question):
    """Trains parts of networks.

    Attributes:
        networks: of each seed and part; their mean counts.
        steps: of training.
        batch_size: examples.
        widths: of the hidden layers.
        rate: of descent with momentum.
        momentum: the fraction kept.
    """

    claim: ClassVar[str] = (
        "Scale and bias alone train a network further than as many of its other weights do."
    )
    source: ClassVar[str] = "Frankle et al. 2021, arXiv 2003.00152"
    exact: ClassVar[bool] = False
    effect: ClassVar[str] = "points of accuracy more than with two weights of each unit"
    in_float64: ClassVar[bool] = False

    networks: int = numbers(2)
    steps: int = numbers(600)
    batch_size: int = numbers(60)
    widths: tuple[int, ...] = numbers((200, 200, 200))
    rate: float = numbers(0.03)
    momentum: float = numbers(0.9)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points scale and bias alone are better."""
        train, test = Digits.of(data.train), Digits.of(data.test)
        reached = {
            part: 100 * float(self._accuracies(mask, seed, train, test).mean())
            for part, mask in PARTS.items()
        }
        return Answer(
            effect=reached["scale and bias"] - reached["two weights a unit"],
            curves={"reached": reached},
            numbers={f"accuracy, {part}": value for part, value in reached.items()},
        )

    def _accuracies(
        self, mask: Callable[[Any], Any], seed: int, train: Digits, test: Digits
    ) -> np.ndarray:
        model = MLP(
            self.widths, norm="batch", activation=nn.relu, kernel_init=nn.initializers.he_normal()
        )
        only = optax.stateless(lambda slope, params: jax.tree.map(jnp.multiply, slope, mask(slope)))
        tx = optax.chain(only, optax.sgd(self.rate, momentum=self.momentum))
        state = trained(
            model,
            tx,
            train,
            seeds_of(seed, self.networks),
            steps=self.steps,
            batch_size=self.batch_size,
        )
        return accuracies(model, state, test)

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the accuracies of all seeds, a row for each part."""
        colors = {"scale and bias": NORMALIZED, "two weights a unit": PLAIN}
        for row, part in enumerate(reversed(PARTS)):
            values = [answer["curves"]["reached"][part] for answer in answers]
            axes.plot(values, [row] * len(values), "o", color=colors.get(part, THEORY), ms=4)
        axes.set(xlabel="test accuracy, %", xlim=(0, 100))
        axes.set_yticks(range(len(PARTS)), [*reversed(PARTS)], fontsize=7)


def _scale_and_bias(params: Any) -> Any:
    """Ones for the normalizations' parameters, zeros for all others."""
    return {
        name: jax.tree.map(jnp.ones_like if "norm" in layer else jnp.zeros_like, layer)
        for name, layer in params.items()
    }


def _two_weights(params: Any) -> Any:
    """Ones for two weights of each hidden unit, of inputs drawn once, zeros for all others."""
    mask = jax.tree.map(jnp.zeros_like, params)
    rng = np.random.default_rng(0)
    for name, layer in params.items():
        if name != _LAST and "kernel" in layer:
            inputs, units = layer["kernel"].shape
            chosen = np.zeros((inputs, units), np.float32)
            for unit in range(units):
                chosen[rng.choice(inputs, 2, replace=False), unit] = 1
            mask[name]["kernel"] = jnp.asarray(chosen)
    return mask


def _and_last(mask: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Adds the last layer to what is trained."""

    def both(params: Any) -> Any:
        return mask(params) | {_LAST: jax.tree.map(jnp.ones_like, params[_LAST])}

    return both


PARTS: dict[str, Callable[[Any], Any]] = {
    "scale and bias": _scale_and_bias,
    "two weights a unit": _two_weights,
    "scale, bias, last layer": _and_last(_scale_and_bias),
    "two weights, last layer": _and_last(_two_weights),
    "last layer": _and_last(lambda params: jax.tree.map(jnp.zeros_like, params)),
    "all": lambda params: jax.tree.map(jnp.ones_like, params),
}
"""What is trained: of a tree of parameters, a tree of ones and zeros."""
