"""Inference is the further from training, the smaller the groups that are normalized together.

Networks train on the same batches, which normalization divides into groups; in training an output
depends on the rest of its group, at inference on the running statistics. The gap is the mean total
variation distance between the class probabilities that both give to the same test images (Wu &
Johnson 2021, arXiv 2105.07576, section 3, compare errors; those are told too).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED
from bnjax.linen import BatchNorm
from bnjax.models import apply_train
from experiments.harness.affects import numbers
from experiments.why_it_works.question import Answer, Observation, rounded
from experiments.why_it_works.side_by_side import Digits, perceptron, seeds_of, trained


@dataclass(frozen=True, kw_only=True)
class GroupSize(Observation):
    """Trains with groups of several sizes, and gives the test images to both modes.

    Attributes:
        networks: of each seed and size; their mean counts.
        groups: sizes; the largest is the batch.
        steps: of training.
        widths: of the hidden layers.
        rate: of plain gradient descent.
        decay: of the running statistics; the fraction kept.
    """

    claim: ClassVar[str] = (
        "The smaller the groups that are normalized together, the larger the gap between training "
        "and inference."
    )
    source: ClassVar[str] = "Wu & Johnson 2021, arXiv 2105.07576"
    effect: ClassVar[str] = "of the probability more, between the smallest and the largest groups"

    networks: int = numbers(2)
    groups: tuple[int, ...] = numbers((2, 4, 8, 40, 200))
    steps: int = numbers(400)
    widths: tuple[int, ...] = numbers((100, 100))
    rate: float = numbers(0.1)
    decay: float = numbers(0.95)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how much the gap is larger with the smallest groups."""
        train, test = Digits.of(data.train), Digits.of(data.test)
        gaps: list[float] = []
        right: dict[str, float] = {}
        for group in self.groups:
            gap, accuracies = self._modes(group, seed, train, test)
            gaps.append(gap)
            right |= {f"{mode}, groups of {group}": value for mode, value in accuracies.items()}
        return Answer(
            effect=gaps[0] - gaps[-1],
            curves={"group": list(self.groups), "gap": rounded(gaps)},
            numbers={f"gap, groups of {k}": gap for k, gap in zip(self.groups, gaps, strict=True)}
            | right,
        )

    def _modes(
        self, group: int, seed: int, train: Digits, test: Digits
    ) -> tuple[float, dict[str, float]]:
        """Returns the gap, and the test accuracy in both modes, per cent."""
        model = perceptron(self.widths, partial(BatchNorm, batch=group, momentum=self.decay))
        seeds, batch_size = seeds_of(seed, self.networks), max(self.groups)
        state = trained(
            model, optax.sgd(self.rate), train, seeds, steps=self.steps, batch_size=batch_size
        )

        def both(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            variables = {"params": params, "batch_stats": stats}
            training, _ = apply_train(model, variables, images)
            inference: Any = model.apply(variables, images, train=False)
            return jax.nn.softmax(training), jax.nn.softmax(inference)

        # The digits lie sorted by class; no group is cut off.
        whole = len(test.labels) // batch_size * batch_size
        rows = np.random.default_rng(seed).permutation(len(test.labels))[:whole]
        images, labels = test.images[rows], np.asarray(test.labels)[rows]
        run = jax.jit(jax.vmap(both, in_axes=(0, 0, None)))
        training, inference = run(state.params, state.batch_stats, images)
        right = {
            "accuracy by the group": training,
            "accuracy by running statistics": inference,
        }
        gap = jnp.abs(training - inference).sum(-1).mean() / 2
        return float(gap), {
            name: 100 * float(np.mean(np.argmax(np.asarray(found), -1) == labels))
            for name, found in right.items()
        }

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the gaps of all seeds."""
        for answer in answers:
            curves = answer["curves"]
            axes.plot(curves["group"], curves["gap"], ".-", color=NORMALIZED, lw=0.8)
        axes.set(xlabel="examples in a group", ylabel="training from inference")
        axes.set(xscale="log", ylim=0)
