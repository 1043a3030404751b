"""The landscape along the gradient: the loss varies less, the gradient changes less, with BN.

From weights w on the training's path, with g the gradient of one batch, the loss and the gradient
of that batch are taken at w - a g for several a about the learning rate: a line along which the
network would step. Santurkar et al. 2018, arXiv 1805.11604, Figure 4, of VGG on CIFAR-10, show
(a) how far the losses lie apart, (b) how far the gradients are from g, "gradient predictiveness",
(c) the largest norm(g_a - g) / norm(a g), "effective smoothness". They are differences of
gradients; differences of their norms, which some take instead, are smaller.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from experiments.harness.affects import numbers
from experiments.why_it_works.along_training import AlongTraining, Loss

_RANGE, _CHANGE = "range of the loss", "change of the gradient"
_SMOOTHNESS = "change over distance"


@dataclass(frozen=True, kw_only=True)
class Landscape(AlongTraining):
    """Steps along the gradient of a batch, by several multiples of the learning rate.

    Attributes:
        multiples: of the learning rate, to which one steps.
    """

    source: ClassVar[str] = "Santurkar et al. 2018, arXiv 1805.11604, Figure 4"
    effect: ClassVar[str] = "powers of ten, without over with, mean over the training"

    multiples: tuple[float, ...] = numbers((0.5, 1.0, 2.0, 4.0))

    def measure(self, loss: Loss, params: Any, batch: Any) -> dict[str, jax.Array]:
        """Returns all three, and how far the gradient changes relative to its length."""
        value, slope = jax.value_and_grad(loss)(params, batch)
        lengths = self.rate * jnp.asarray(self.multiples, value.dtype)

        def at(length: jax.Array) -> tuple[jax.Array, jax.Array]:
            there = jax.tree.map(lambda w, g: w - length * g, params, slope)
            other, steeper = jax.value_and_grad(loss)(there, batch)
            return other, optax.tree.norm(optax.tree.sub(steeper, slope))

        losses, changes = jax.vmap(at)(lengths)
        own = optax.tree.norm(slope)
        return {
            _RANGE: jnp.ptp(jnp.append(losses, value)),
            _CHANGE: jnp.max(changes),
            _SMOOTHNESS: jnp.max(changes / (lengths * own)),
            "change over the gradient's length": jnp.max(changes) / own,
        }

    def compared(self, with_norm: np.ndarray, without: np.ndarray) -> float:
        """Returns how many powers of ten less it is with normalization."""
        return float(np.mean(np.log10(without) - np.log10(with_norm)))

    def draw(self, axes: Axes, answers: Any) -> None:
        """Draws it on a logarithmic scale."""
        super().draw(axes, answers)
        axes.set_yscale("log")


@dataclass(frozen=True, kw_only=True)
class LossRange(Landscape):
    """(a): how far the losses lie apart."""

    claim: ClassVar[str] = "With normalization, the loss varies less along the gradient."
    shown: ClassVar[str] = _RANGE


@dataclass(frozen=True, kw_only=True)
class GradientChange(Landscape):
    """(b): how far the gradients are from the first one."""

    claim: ClassVar[str] = (
        "With normalization, gradients are more predictive: they change less along the gradient."
    )
    shown: ClassVar[str] = _CHANGE


@dataclass(frozen=True, kw_only=True)
class Smoothness(Landscape):
    """(c): the largest change of the gradient over the distance."""

    claim: ClassVar[str] = (
        "With normalization, the loss is smoother: gradients change less for each unit of distance."
    )
    shown: ClassVar[str] = _SMOOTHNESS
