"""Scale and bias alone train a network further than as many of its other weights do.

All other weights stay as they were drawn. In the control two weights of each hidden unit are
trained in the place of its scale and bias, of inputs that are not the same for all digits (Frankle,
Schwab & Morcos 2021, arXiv 2003.00152, of residual networks on CIFAR-10 and ImageNet, have two
weights of each channel). It is asked with the last layer as it was drawn, as there, and with the
last layer trained in both. Each part has the rate that is best for it on digits held out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.training.optimizers import sgd
from experiments.harness.affects import numbers
from experiments.why_it_works.question import THEORY, Answer, Observation
from experiments.why_it_works.rates import Kind, accuracies_and_rates, at_an_end, compared, hold_out
from experiments.why_it_works.side_by_side import Digits, perceptron, seeds_of

_LAST = "logits"


@dataclass(frozen=True, kw_only=True)
class ScaleBiasAlone(Observation):
    """Trains parts of networks; the last layer stays.

    Attributes:
        networks: of each seed, part and rate; their mean counts.
        steps: of training.
        batch_size: examples.
        widths: of the hidden layers.
        rates: of plain gradient descent, from which each part has its best.
        held_out: digits that choose the rate.
    """

    claim: ClassVar[str] = (
        "Scale and bias alone train a network further than as many of its other weights do."
    )
    source: ClassVar[str] = "Frankle et al. 2021, arXiv 2003.00152"
    effect: ClassVar[str] = "points of accuracy more"
    trained: ClassVar[tuple[str, ...]] = ("scale, bias", "as many", "all")
    """Names in `parts`: what the claim says, its control, and what else is told."""

    networks: int = numbers(2)
    steps: int = numbers(600)
    batch_size: int = numbers(60)
    widths: tuple[int, ...] = numbers((200, 200, 200))
    rates: tuple[float, ...] = numbers((0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0))
    held_out: int = numbers(500)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points scale and bias are better."""
        train, held_out = hold_out(Digits.of(data.train), self.held_out, seed)
        test = Digits.of(data.test)
        model = perceptron(self.widths, "batch")
        masks = parts(seed, np.ptp(np.asarray(train.images), axis=0).ravel() > 0)
        kinds = {
            part: Kind(model, optax.chain(only(masks[part]), sgd(self.rates[0])), self.batch_size)
            for part in self.trained
        }
        seeds = seeds_of(seed, self.networks)
        found = compared(kinds, self.rates, train, held_out, test, seeds, steps=self.steps)
        reached = {part: each.accuracy for part, each in found.items()}
        ours, control, *_ = reached.values()
        return Answer(
            effect=ours - control,
            curves={"reached": reached},
            numbers=accuracies_and_rates(found) | at_an_end(found, self.rates),
        )

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the accuracies of all seeds, a row for each part."""
        colors = (NORMALIZED, PLAIN, THEORY)
        for row, (part, color) in enumerate(zip(self.trained, colors, strict=True)):
            values = [answer["curves"]["reached"][part] for answer in answers]
            axes.plot(values, [-row] * len(values), "o", color=color, ms=4)
        axes.set(xlabel="test accuracy, %", ylim=(-2.5, 0.5))
        axes.set_yticks(range(0, -3, -1), [part.replace(", ", ",\n") for part in self.trained])


@dataclass(frozen=True, kw_only=True)
class ScaleBiasLast(ScaleBiasAlone):
    """Trains the last layer too."""

    claim: ClassVar[str] = (
        "With the last layer, scale and bias train a network further than as many of its other "
        "weights do."
    )
    trained: ClassVar[tuple[str, ...]] = ("scale, bias, last", "as many, last", "last")


Mask = Callable[[Any], Any]
"""Of a tree of parameters, the same tree of ones, for what is trained, and zeros."""


def only(mask: Mask) -> optax.GradientTransformation:
    """Takes the gradient from all parameters but those of a mask."""
    return optax.stateless(lambda slope, _: jax.tree.map(jnp.multiply, slope, mask(slope)))


def parts(seed: int, seen: np.ndarray) -> dict[str, Mask]:
    """Returns what is trained, by name.

    Args:
        seed: of the weights that are drawn as the control.
        seen: bool `[pixels]`, those that are not the same in all images.
    """
    return {
        "scale, bias, last": _and_last(_scale_and_bias),
        "as many, last": _and_last(lambda params: _as_many(params, seed, seen)),
        "last": _and_last(lambda params: jax.tree.map(jnp.zeros_like, params)),
        "scale, bias": _scale_and_bias,
        "as many": lambda params: _as_many(params, seed, seen),
        "all": lambda params: jax.tree.map(jnp.ones_like, params),
    }


def _scale_and_bias(params: Any) -> Any:
    return {
        name: jax.tree.map(jnp.ones_like if "norm" in layer else jnp.zeros_like, layer)
        for name, layer in params.items()
    }


def _as_many(params: Any, seed: int, seen: np.ndarray) -> Any:
    """Two weights of each unit of the hidden layers, as many as it has scale and bias."""
    rng = np.random.default_rng(seed)
    none = jax.tree.map(jnp.zeros_like, params)
    for name, layer in params.items():
        if name != _LAST and "kernel" in layer:
            kernel = layer["kernel"]
            inputs, units = kernel.shape
            used = np.flatnonzero(seen) if inputs == len(seen) else np.arange(inputs)
            rows = np.stack([rng.choice(used, 2, replace=False) for _ in range(units)])
            ones = jnp.zeros_like(kernel).at[rows, np.arange(units)[:, None]].set(1)
            none[name] = none[name] | {"kernel": ones}
    return none


def _and_last(mask: Mask) -> Mask:
    return lambda params: mask(params) | {_LAST: jax.tree.map(jnp.ones_like, params[_LAST])}
