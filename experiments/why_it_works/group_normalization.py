"""Small batches cost batch normalization accuracy, and group normalization none.

Convolutional networks see equally many examples in batches of several sizes, at rates proportional
to these (Wu & He 2018, arXiv 1803.08494: errors of ResNet-50 on ImageNet with 32 to 2 images on
each device, 23.6 to 34.7 % with batch normalization, 24.1 to 24.1 % with group normalization).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.models.layers import ConvNorm
from experiments.harness.affects import numbers
from experiments.why_it_works.question import NORMALIZED, PLAIN, Answer, Question, rounded
from experiments.why_it_works.side_by_side import Digits, accuracies, seeds_of, trained

_STYLES = {"batch": (NORMALIZED, ".-"), "group": (PLAIN, "x--")}


class Convolutions(nn.Module):
    """Three 3x3 convolutions with strides of 2, the mean over positions, logits.

    Attributes:
        channels: of the convolutions.
        norm: of each convolution.
        classes: outputs.
    """

    channels: tuple[int, ...]
    norm: str
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits `[n, classes]` of images `[n, h, w, c]`."""
        x = images
        for channels in self.channels:
            x = ConvNorm(channels, (3, 3), strides=2, norm=self.norm)(x, train=train)
        return nn.Dense(self.classes)(x.mean((1, 2)))


@dataclass(frozen=True, kw_only=True)
class GroupNormalization(Question):
    """Trains with small and larger batches, normalized either way.

    Attributes:
        batches: sizes, the smallest first.
        examples: that each network sees.
        channels: of the convolutions.
        groups: of channels, for group normalization.
        rate: of descent with momentum, for each example of a batch.
        momentum: the fraction kept.
    """

    claim: ClassVar[str] = (
        "Small batches cost batch normalization more accuracy than group normalization."
    )
    source: ClassVar[str] = "Wu & He 2018, arXiv 1803.08494"
    exact: ClassVar[bool] = False
    effect: ClassVar[str] = "points of accuracy more, between the largest and the smallest batches"
    in_float64: ClassVar[bool] = False

    batches: tuple[int, ...] = numbers((2, 4, 8, 32))
    examples: int = numbers(8_000)
    channels: tuple[int, ...] = numbers((8, 16, 32))
    groups: int = numbers(4)
    rate: float = numbers(0.0015)
    momentum: float = numbers(0.9)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns how many points more batch normalization loses."""
        train, test = Digits.of(data.train), Digits.of(data.test)
        norms = {"batch": "batch", "group": f"group:{self.groups}"}
        reached = {
            kind: [self._accuracy(norm, size, seed, train, test) for size in self.batches]
            for kind, norm in norms.items()
        }
        lost = {kind: values[-1] - values[0] for kind, values in reached.items()}
        return Answer(
            effect=lost["batch"] - lost["group"],
            curves={"batch size": list(self.batches)}
            | {kind: rounded(values) for kind, values in reached.items()},
            numbers={
                f"accuracy, {kind}, batches of {size}": value
                for kind, values in reached.items()
                for size, value in zip(self.batches, values, strict=True)
            },
        )

    def _accuracy(self, norm: str, size: int, seed: int, train: Digits, test: Digits) -> float:
        model = Convolutions(self.channels, norm)
        tx = optax.sgd(self.rate * size, momentum=self.momentum)
        steps = self.examples // size
        state = trained(model, tx, train, seeds_of(seed, 1), steps=steps, batch_size=size)
        return 100 * float(accuracies(model, state, test)[0])

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the accuracies of all seeds."""
        for position, answer in enumerate(answers):
            for kind, (color, line) in _STYLES.items():
                curves, label = answer["curves"], kind if position == 0 else None
                axes.plot(
                    curves["batch size"], curves[kind], line, color=color, lw=0.8, label=label
                )
        axes.set(xlabel="batch size", ylabel="test accuracy, %", xscale="log")
        axes.set_xticks(self.batches, [str(size) for size in self.batches])
        axes.minorticks_off()
        axes.legend(frameon=False)
