"""Large batches test worse after as many steps; groups of a small batch's size win some of it back.

Three kinds of networks take equally many steps: with small batches, with large ones normalized as a
whole, and with large ones normalized in groups as large as the small batches, "ghost batches"
(Hoffer et al. 2017, arXiv 1705.08741, with 4,096 and 128 examples). Equal epochs would give small
batches more steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.linen import BatchNorm
from bnjax.models import MLP
from experiments.harness.affects import numbers
from experiments.why_it_works.question import NORMALIZED, PLAIN, THEORY, Answer, Question
from experiments.why_it_works.side_by_side import Digits, accuracies, seeds_of, trained

_SIGNS = {
    "small batches": (THEORY, "s"),
    "large batches": (PLAIN, "x"),
    "ghost batches": (NORMALIZED, "o"),
}


@dataclass(frozen=True, kw_only=True)
class GhostBatches(Question):
    """Trains with small batches, large ones, and large ones in small groups.

    Attributes:
        networks: of each seed and kind; their mean counts.
        steps: of training, for all.
        small: examples of a small batch and of a group.
        large: examples of a large batch.
        widths: of the hidden layers.
        rate: of plain gradient descent; the same for all.
        decay: of the running statistics; the fraction kept.
    """

    claim: ClassVar[str] = (
        "Large batches that are normalized in small groups test better than as a whole."
    )
    source: ClassVar[str] = "Hoffer et al. 2017, arXiv 1705.08741"
    exact: ClassVar[bool] = False
    effect: ClassVar[str] = "points of accuracy more"
    in_float64: ClassVar[bool] = False

    networks: int = numbers(3)
    steps: int = numbers(300)
    small: int = numbers(25)
    large: int = numbers(1_000)
    widths: tuple[int, ...] = numbers((100, 100))
    rate: float = numbers(0.5)
    decay: float = numbers(0.95)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points ghost batches are better than large ones."""
        train, test = Digits.of(data.train), Digits.of(data.test)
        kinds = {
            "small batches": (self.small, self.small),
            "large batches": (self.large, self.large),
            "ghost batches": (self.large, self.small),
        }
        reached = {}
        for kind, (batch_size, group) in kinds.items():
            model = MLP(
                self.widths,
                norm=partial(BatchNorm, batch=group, momentum=self.decay),
                activation=nn.relu,
                kernel_init=nn.initializers.he_normal(),
            )
            seeds, tx = seeds_of(seed, self.networks), optax.sgd(self.rate)
            state = trained(model, tx, train, seeds, steps=self.steps, batch_size=batch_size)
            reached[kind] = 100 * float(accuracies(model, state, test).mean())
        return Answer(
            effect=reached["ghost batches"] - reached["large batches"],
            curves={"reached": reached},
            numbers={f"accuracy, {kind}": value for kind, value in reached.items()},
        )

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the accuracies, a line for each seed."""
        for answer in answers:
            reached = answer["curves"]["reached"]
            axes.plot(range(len(reached)), reached.values(), color="0.7", lw=0.8)
            for place, (kind, value) in enumerate(reached.items()):
                color, sign = _SIGNS[kind]
                axes.plot(place, value, sign, color=color, ms=4)
        axes.set(ylabel="test accuracy, %", xlim=(-0.5, 2.5))
        axes.set_xticks(range(3), [kind.split()[0] for kind in _SIGNS])
