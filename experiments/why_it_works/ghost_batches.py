"""Large batches normalized in small groups test better than those normalized as a whole.

Networks take equally many steps, not epochs: with small batches, with large ones normalized as a
whole, and with large ones normalized in groups as large as the small batches, "ghost batches"
(Hoffer et al. 2017, arXiv 1705.08741, sections 4 and 5, with 4,096 and 128 examples: ghost batches
and as many steps win back what large batches lose). Each kind has the rate that is best for it on
digits held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.linen import BatchNorm
from bnjax.training.optimizers import sgd
from experiments.harness.affects import numbers
from experiments.why_it_works.question import THEORY, Answer, Observation
from experiments.why_it_works.rates import Kind, accuracies_and_rates, at_an_end, compared, hold_out
from experiments.why_it_works.side_by_side import Digits, perceptron, seeds_of

_SIGNS = {
    "small batches": (THEORY, "s"),
    "large batches": (PLAIN, "x"),
    "ghost batches": (NORMALIZED, "o"),
}


@dataclass(frozen=True, kw_only=True)
class GhostBatches(Observation):
    """Trains with small batches, large ones, and large ones in small groups.

    Attributes:
        networks: of each seed, kind and rate; their mean counts.
        steps: of training, for all.
        small: examples of a small batch and of a group.
        large: examples of a large batch.
        widths: of the hidden layers.
        rates: of plain gradient descent, from which each kind has its best.
        held_out: digits that choose the rate.
        decay: of the running statistics; the fraction kept.
    """

    claim: ClassVar[str] = (
        "Large batches that are normalized in small groups test better than as a whole."
    )
    source: ClassVar[str] = "Hoffer et al. 2017, arXiv 1705.08741"
    effect: ClassVar[str] = "points of accuracy more"

    networks: int = numbers(2)
    steps: int = numbers(1_200)
    small: int = numbers(16)
    large: int = numbers(512)
    widths: tuple[int, ...] = numbers((100, 100))
    rates: tuple[float, ...] = numbers((0.03, 0.1, 0.3, 1.0, 3.0, 10.0))
    held_out: int = numbers(500)
    decay: float = numbers(0.95)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how many points ghost batches are better than large ones."""
        train, held_out = hold_out(Digits.of(data.train), self.held_out, seed)
        test = Digits.of(data.test)
        sizes = {
            "small batches": (self.small, self.small),
            "large batches": (self.large, self.large),
            "ghost batches": (self.large, self.small),
        }
        kinds = {}
        for kind, (batch_size, group) in sizes.items():
            norm = partial(BatchNorm, batch=group, momentum=self.decay)
            kinds[kind] = Kind(perceptron(self.widths, norm), sgd(self.rates[0]), batch_size)
        seeds = seeds_of(seed, self.networks)
        found = compared(kinds, self.rates, train, held_out, test, seeds, steps=self.steps)
        reached = {kind: each.accuracy for kind, each in found.items()}
        return Answer(
            effect=reached["ghost batches"] - reached["large batches"],
            curves={"reached": reached},
            numbers=accuracies_and_rates(found) | at_an_end(found, self.rates),
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
