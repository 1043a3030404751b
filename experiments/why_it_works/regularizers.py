"""Dropout and L2 gain less where there is normalization, which regularizes by itself.

Ioffe & Szegedy 2015, arXiv 1502.03167, section 3.4, found that dropout could go, and section 4.2.1
that a fifth of the L2 was better. Here networks learn few digits by heart; each regularizer's gain
in test accuracy is taken without normalization and with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.models.layers import DenseNorm, Dropout
from bnjax.training.optimizers import make_optimizer, sgd
from experiments.harness.affects import numbers
from experiments.why_it_works.question import NORMALIZED, PLAIN, Answer, Question
from experiments.why_it_works.side_by_side import Digits, accuracies, seeds_of, trained

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
class DropoutGain(Question):
    """Trains on few digits, with and without normalization, with and without dropout.

    Attributes:
        networks: of each seed and kind; their mean counts.
        examples: to train on.
        steps: of training.
        batch_size: examples.
        widths: of the hidden layers.
        rate: of plain gradient descent.
        dropout: fraction of the hidden units, where there is dropout.
        l2: weight of half the squared length of the kernels, where there is L2.
    """

    claim: ClassVar[str] = "With normalization, dropout gains less than without."
    source: ClassVar[str] = "Ioffe & Szegedy 2015, arXiv 1502.03167, section 3.4"
    exact: ClassVar[bool] = False
    effect: ClassVar[str] = "points of accuracy less of gain"
    in_float64: ClassVar[bool] = False
    regularizer: ClassVar[str] = "dropout"

    networks: int = numbers(4)
    examples: int = numbers(400)
    steps: int = numbers(800)
    batch_size: int = numbers(50)
    widths: tuple[int, ...] = numbers((150, 150))
    rate: float = numbers(0.1)
    dropout: float = numbers(0.5)
    l2: float = numbers(1e-3)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points the gain is less with normalization."""
        own = np.random.default_rng(seed).permutation(len(data.train))[: self.examples]
        whole, test = Digits.of(data.train), Digits.of(data.test)
        train = Digits(whole.images[own], whole.labels[own])
        reached, learned = {}, {}
        for kind, norm in _KINDS.items():
            for regularized in (False, True):
                name = f"{kind}, {self.regularizer if regularized else 'plain'}"
                found = self._accuracies(norm, regularized, seed, train, test)
                learned[name], reached[name] = (100 * float(part.mean()) for part in found)
        gains = {
            kind: reached[f"{kind}, {self.regularizer}"] - reached[f"{kind}, plain"]
            for kind in _KINDS
        }
        return Answer(
            effect=gains["without"] - gains["with"],
            curves={"reached": reached},
            numbers={f"gain {kind} normalization": gain for kind, gain in gains.items()}
            | {f"test accuracy {name}": value for name, value in reached.items()}
            | {f"training accuracy {name}": value for name, value in learned.items()},
        )

    def _accuracies(
        self, norm: str | None, regularized: bool, seed: int, train: Digits, test: Digits
    ) -> tuple[np.ndarray, np.ndarray]:
        """Accuracies on what is trained on, and on the test set."""
        chosen = self.regularizer if regularized else ""
        model = Perceptron(self.widths, norm, self.dropout if chosen == "dropout" else 0.0)
        tx = make_optimizer(sgd(self.rate), l2=self.l2 if chosen == "L2" else 0.0)
        seeds = seeds_of(seed, self.networks)
        state = trained(model, tx, train, seeds, steps=self.steps, batch_size=self.batch_size)
        return accuracies(model, state, train), accuracies(model, state, test)

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws plain and regularized accuracies, a line for each seed and kind."""
        for position, answer in enumerate(answers):
            for kind, color, line in (("with", NORMALIZED, "o-"), ("without", PLAIN, "x--")):
                reached, label = answer["curves"]["reached"], kind if position == 0 else None
                ends = [reached[f"{kind}, {name}"] for name in ("plain", self.regularizer)]
                axes.plot(ends, line, color=color, ms=4, lw=0.8, label=label)
        axes.set(ylabel="test accuracy, %", xlim=(-0.3, 1.3))
        axes.set_xticks((0, 1), ("plain", self.regularizer))
        axes.legend(frameon=False)


@dataclass(frozen=True, kw_only=True)
class L2Gain(DropoutGain):
    """Trains with and without L2 in the place of dropout."""

    claim: ClassVar[str] = "With normalization, L2 gains less than without."
    source: ClassVar[str] = "Ioffe & Szegedy 2015, arXiv 1502.03167, section 4.2.1"
    regularizer: ClassVar[str] = "L2"
