"""Small groups of examples cost batch normalization accuracy that group normalization keeps.

Networks take equally many steps on the same batches. Batch normalization divides a batch into
groups of examples, each with moments of its own; group normalization takes moments over groups of
features of one example, so that no group of examples can be too small for it (Wu & He 2018, arXiv
1803.08494: ResNet-50 on ImageNet, 23.6 % of errors with 32 images on each device and 34.7 % with 2,
against 24.1 % with group normalization in both cases). They change the size of the batch with that
of the group, and the rate in proportion; here the batch stays, and each kind has the rate that is
best for it on digits held out. A perceptron has one value of a feature for each example; a
convolutional network has one for each position, so that few examples are many values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.linen import BatchNorm
from bnjax.models.layers import DenseNorm
from bnjax.models.norms import Norm
from bnjax.training.optimizers import sgd
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import Answer, Observation, rounded
from experiments.why_it_works.rates import Kind, accuracies_and_rates, compared, hold_out
from experiments.why_it_works.side_by_side import Digits, perceptron, seeds_of


class Convolutions(nn.Module):
    """3x3 convolutions with strides of 2, then logits.

    Attributes:
        channels: of the convolutions.
        norm: of each convolution.
        classes: outputs.
    """

    channels: tuple[int, ...]
    norm: Norm
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[n, classes]` of images `[n, h, w, c]`."""
        x = images
        for channels in self.channels:
            x = DenseNorm(channels, norm=self.norm)(windows(x), train=train)
        return nn.Dense(self.classes)(x.reshape(len(x), -1))


def windows(x: jax.Array) -> jax.Array:
    """Returns the 3x3 window around every second position of `[n, h, w, c]`, `[..., 9 c]`.

    A product with them is a convolution; XLA's own is many times slower inside a loop on a CPU.
    """
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(parts, -1)


@dataclass(frozen=True, kw_only=True)
class GroupNormalization(Observation):
    """Trains perceptrons with batch normalization in groups of several sizes, and with the other.

    Attributes:
        networks: of each seed, kind and rate; their mean counts.
        examples: sizes of the groups of examples, ascending; the largest is the batch.
        steps: of training.
        widths: units or channels of the hidden layers.
        groups: of features, for group normalization.
        rates: of plain gradient descent, from which each kind has its best.
        held_out: digits that choose the rate.
        decay: of the running statistics; the fraction kept.
    """

    claim: ClassVar[str] = (
        "In a perceptron, batch normalization in groups of 2 examples tests worse than in groups "
        "of 32, and worse than group normalization."
    )
    source: ClassVar[str] = "Wu & He 2018, arXiv 1803.08494"
    effect: ClassVar[str] = "points of accuracy less than the lower of both"

    networks: int = numbers(2)
    examples: tuple[int, ...] = numbers((2, 4, 8, 32))
    steps: int = numbers(500)
    widths: tuple[int, ...] = numbers((100, 100))
    groups: int = numbers(4)
    rates: tuple[float, ...] = numbers((0.03, 0.1, 0.3, 1.0))
    held_out: int = numbers(500)
    decay: float = numbers(0.95)

    def model(self, norm: Norm) -> nn.Module:
        """Returns a network with a normalization."""
        return perceptron(self.widths, norm)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points the smallest groups are worse."""
        train, held_out = hold_out(Digits.of(data.train), self.held_out, seed)
        test = Digits.of(data.test)
        norms: dict[str, Norm] = {
            f"groups of {size}": partial(BatchNorm, batch=size, momentum=self.decay)
            for size in self.examples
        }
        norms["group normalization"] = partial(nn.GroupNorm, num_groups=self.groups)
        kinds = {
            kind: Kind(self.model(norm), sgd(self.rates[0]), self.examples[-1])
            for kind, norm in norms.items()
        }
        seeds = seeds_of(seed, self.networks)
        found = compared(kinds, self.rates, train, held_out, test, seeds, steps=self.steps)
        *batch, group = (each.accuracy for each in found.values())
        return Answer(
            effect=min(batch[-1], group) - batch[0],
            curves={
                "examples": list(self.examples),
                "batch": rounded(batch),
                "group": rounded([group] * len(batch)),
            },
            numbers=accuracies_and_rates(found),
        )

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the accuracies of all seeds."""
        styles = {"batch": (NORMALIZED, ".-"), "group": (PLAIN, "--")}
        for position, answer in enumerate(answers):
            curves = answer["curves"]
            for kind, (color, line) in styles.items():
                label = kind if position == 0 else None
                axes.plot(curves["examples"], curves[kind], line, color=color, lw=0.8, label=label)
        axes.set(xlabel="examples in a group", ylabel="test accuracy, %", xscale="log")
        axes.set_xticks(self.examples, [str(size) for size in self.examples])
        axes.minorticks_off()
        name_lines(axes)


@dataclass(frozen=True, kw_only=True)
class GroupNormalizationConvolutions(GroupNormalization):
    """Trains convolutional networks."""

    claim: ClassVar[str] = (
        "In a convolutional network, batch normalization in groups of 2 examples tests worse than "
        "in groups of 32, and worse than group normalization."
    )

    examples: tuple[int, ...] = numbers((2, 8, 32))
    widths: tuple[int, ...] = numbers((8, 16, 32))
    rates: tuple[float, ...] = numbers((0.1, 0.3, 1.0))

    def model(self, norm: Norm) -> nn.Module:
        """Returns a network with a normalization."""
        return Convolutions(self.widths, norm)
