"""Normalization keeps the representations of different inputs apart in deep linear networks.

Through random layers, inputs grow more and more alike: the effective rank of their representations
falls to one (Daneshmand et al. 2020, arXiv 2003.01652). With each unit divided by its root mean
square over the batch they become orthogonal, the more the wider the network (Daneshmand et al.
2021, arXiv 2106.03970). There, normalization does not subtract the mean; both kinds are shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import Answer, Question, rounded
from experiments.why_it_works.standardize import standardize

_CENTRED = "#009e73"


@dataclass(frozen=True, kw_only=True)
class RankCollapse(Question):
    """Follows nearly equal inputs through a network that was only drawn.

    Attributes:
        depth: layers.
        width: units.
        inputs: in the batch.
        alike: correlation of any two of them.
    """

    claim: ClassVar[str] = (
        "Normalization keeps the rank of deep representations, which falls to one without it."
    )
    source: ClassVar[str] = "Daneshmand et al. 2020, 2003.01652; 2021, 2106.03970"
    exact: ClassVar[bool] = False
    effect: ClassVar[str] = "of the effective rank more, uncentred"

    depth: int = numbers(200)
    width: int = numbers(128)
    inputs: int = numbers(8)
    alike: float = numbers(0.9)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how much larger the effective rank is with normalization at the end."""
        rng = np.random.default_rng(seed)
        shape = (self.depth, self.width, self.width)
        kernels = jnp.asarray(rng.normal(size=shape) / np.sqrt(self.width))
        own = rng.normal(size=(self.inputs, self.width)) * np.sqrt(1 - self.alike)
        x = jnp.asarray(own + rng.normal(size=self.width) * np.sqrt(self.alike))
        ranks = {
            "without": _ranks(lambda h: h / jnp.sqrt(jnp.mean(h**2)), x, kernels),
            "uncentred": _ranks(
                lambda h: h / jnp.sqrt(jnp.mean(h**2, 0, keepdims=True)), x, kernels
            ),
            "normalized": _ranks(standardize, x, kernels),
        }
        last = {f"rank, {name}": float(values[-1]) for name, values in ranks.items()}
        return Answer(
            effect=last["rank, uncentred"] - last["rank, without"],
            curves={name: rounded(values) for name, values in ranks.items()},
            numbers=last,
        )

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the effective ranks of all seeds."""
        styles = {
            "without": (PLAIN, "--"),
            "uncentred": (NORMALIZED, ":"),
            "normalized": (_CENTRED, "-"),
        }
        for position, answer in enumerate(answers):
            for name, (color, line) in styles.items():
                label = name if position == 0 else None
                axes.plot(answer["curves"][name], line, color=color, lw=0.8, label=label)
        axes.set(xlabel="layer", ylabel="effective rank", ylim=(0, self.inputs + 0.5))
        name_lines(axes)


def _ranks(norm: Callable[[jax.Array], jax.Array], x: jax.Array, kernels: jax.Array) -> np.ndarray:
    """The exponential of the entropy of the squared singular values, after each layer."""

    def layer(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = norm(x @ kernel)
        part = jnp.linalg.svd(x, compute_uv=False) ** 2
        part = part / part.sum()
        return x, jnp.exp(jax.scipy.special.entr(part).sum())

    return np.asarray(jax.jit(lambda x, kernels: jax.lax.scan(layer, x, kernels)[1])(x, kernels))
