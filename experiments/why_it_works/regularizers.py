"""Dropout and L2 gain less where there is normalization, which regularizes by itself.

Ioffe & Szegedy 2015, arXiv 1502.03167, found that with normalization dropout can go (section 3.4)
and that a fifth of the L2 is enough (section 4.2.1) without more overfitting. Here networks learn
few digits by heart. What a regularizer gains in test accuracy, with it minus without it and nothing
else changed, is taken of networks with and without normalization; where it can go, it gains
nothing. Each of the four has the rate that is best for it on digits held out. It is asked with the
right labels, with which overfitting costs little, and with part of them drawn at random. Dropout
stands behind each hidden layer, so before the normalization of the next, to whose variance it adds
in training and not in inference (`dropout_before`); the paper's stands before the last layer alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.models.layers import DenseNorm, Dropout
from bnjax.training.optimizers import make_optimizer, sgd
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import Answer, Observation
from experiments.why_it_works.rates import Kind, compared, hold_out
from experiments.why_it_works.side_by_side import Digits, accuracies, seeds_of

_KINDS = {"without": None, "with": "batch"}


class Perceptron(nn.Module):
    """A network with dropout behind each hidden layer.

    Attributes:
        widths: of the hidden layers.
        norm: of each hidden layer, or None.
        dropout: fraction of the units.
        classes: outputs.
    """

    widths: tuple[int, ...]
    norm: str | None
    dropout: float
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[n, classes]` of images `[n, ...]`."""
        x = images.reshape(images.shape[0], -1)
        for units in self.widths:
            x = DenseNorm(units, norm=self.norm)(x, train=train)
            x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.classes)(x)


@dataclass(frozen=True, kw_only=True)
class DropoutGain(Observation):
    """Trains on few digits, with and without normalization, with and without dropout.

    Attributes:
        networks: of each seed, kind and rate; their mean counts.
        examples: to train on.
        drawn: part of them whose labels are drawn at random.
        steps: of training.
        batch_size: examples.
        widths: of the hidden layers.
        rates: of plain gradient descent, from which each kind has its best.
        held_out: digits that choose the rate.
        strength: fraction of the hidden units that dropout zeroes.
    """

    claim: ClassVar[str] = "With normalization, dropout gains less than without."
    source: ClassVar[str] = "Ioffe & Szegedy 2015, arXiv 1502.03167, section 3.4"
    effect: ClassVar[str] = "points of test accuracy less gained"
    regularizer: ClassVar[str] = "dropout"

    networks: int = numbers(2)
    examples: int = numbers(400)
    drawn: float = numbers(0.0)
    steps: int = numbers(1_500)
    batch_size: int = numbers(50)
    widths: tuple[int, ...] = numbers((200, 200))
    rates: tuple[float, ...] = numbers((0.01, 0.03, 0.1, 0.3))
    held_out: int = numbers(1_000)
    strength: float = numbers(0.5)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points the gain is less with normalization."""
        rest, held_out = hold_out(Digits.of(data.train), self.held_out, seed)
        train = Digits(rest.images[: self.examples], self.labels(seed, rest))
        test = Digits.of(data.test)
        kinds = {
            f"{kind}, {name}": Kind(*self.network(norm, strength), self.batch_size)
            for kind, norm in _KINDS.items()
            for name, strength in (("plain", 0.0), (self.regularizer, self.strength))
        }
        seeds = seeds_of(seed, self.networks)
        found = compared(kinds, self.rates, train, held_out, test, seeds, steps=self.steps)
        reached = {own: each.accuracy for own, each in found.items()}
        numbers: dict[str, float] = {}
        for own, (accuracy, rate, state) in found.items():
            learned = 100 * float(accuracies(kinds[own].model, state, train).mean())
            numbers |= {
                f"test accuracy {own}": accuracy,
                f"training accuracy {own}": learned,
                f"rate {own}": rate,
            }
        gains = {
            kind: reached[f"{kind}, {self.regularizer}"] - reached[f"{kind}, plain"]
            for kind in _KINDS
        }
        return Answer(
            effect=gains["without"] - gains["with"],
            curves={"reached": reached},
            numbers={f"gain {kind}": gain for kind, gain in gains.items()} | numbers,
        )

    def labels(self, seed: int, digits: Digits) -> jax.Array:
        """Returns labels to train on: of the first digits, some of them drawn at random."""
        rng = np.random.default_rng(seed)
        true = np.asarray(digits.labels[: self.examples])
        drawn = rng.integers(true.max() + 1, size=len(true))
        wrong = rng.random(len(true)) < self.drawn
        return jnp.asarray(np.where(wrong, drawn, true), jnp.int32)

    def network(self, norm: str | None, strength: float) -> tuple[nn.Module, Any]:
        """Returns a network with a norm and so much of the regularizer, and its optimizer."""
        return Perceptron(self.widths, norm, strength), sgd(self.rates[0])

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws plain and regularized accuracies, a line for each seed and kind."""
        for position, answer in enumerate(answers):
            for kind, color, line in (("with", NORMALIZED, "o-"), ("without", PLAIN, "x--")):
                reached, label = answer["curves"]["reached"], kind if position == 0 else None
                ends = [reached[f"{kind}, {name}"] for name in ("plain", self.regularizer)]
                axes.plot(ends, line, color=color, ms=4, lw=0.8, label=label)
        axes.set(ylabel="test accuracy, %", xlim=(-0.3, 1.3))
        axes.set_xticks((0, 1), ("plain", self.regularizer))
        name_lines(axes)


@dataclass(frozen=True, kw_only=True)
class L2Gain(DropoutGain):
    """Trains with and without L2 in the place of dropout.

    Attributes:
        strength: weight of half the squared length of the kernels.
    """

    claim: ClassVar[str] = "With normalization, L2 gains less than without."
    source: ClassVar[str] = "Ioffe & Szegedy 2015, arXiv 1502.03167, section 4.2.1"
    regularizer: ClassVar[str] = "L2"

    strength: float = numbers(0.03)

    def network(self, norm: str | None, strength: float) -> tuple[nn.Module, Any]:
        """Returns a network with a norm, and an optimizer with so much L2."""
        return Perceptron(self.widths, norm, 0.0), make_optimizer(sgd(self.rates[0]), l2=strength)
