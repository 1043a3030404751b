"""The paper's conjecture: normalization brings the singular values of layers' Jacobians near one.

Ioffe & Szegedy 2015, arXiv 1502.03167, section 3.3: if the normalized inputs of two layers were
Gaussian, uncorrelated and linearly related, the Jacobian J between them would have J J' = 1. Taken
here as J = diag(gamma) W diag(1 / sigma), from a layer's activations to the next normalized ones,
with sigma of the batch; without normalization J = W. Random square matrices spread from 0 to 2 by
the quarter-circle law (Marchenko & Pastur 1967), whatever divides them: their mean |log| is 1/2 at
a root mean square of one. Yang et al. 2019, arXiv 1902.08129, contradict the conjecture at
initialization.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from matplotlib.axes import Axes

from bnjax.data import DataSet
from bnjax.evidence.figures import NORMALIZED, PLAIN
from bnjax.linen import BatchNorm, model_moments
from bnjax.models import MLP
from bnjax.training.state import TrainState
from experiments.harness.affects import numbers
from experiments.why_it_works.curves import name_lines
from experiments.why_it_works.question import Answer, Observation, rounded
from experiments.why_it_works.side_by_side import (
    Digits,
    orders,
    perceptron,
    seeds_of,
    start,
    training,
)


@dataclass(frozen=True, kw_only=True)
class LayerJacobians(Observation):
    """Takes the singular values of the square layers before and after training.

    Attributes:
        networks: of each seed and kind.
        depth: hidden layers.
        width: of the hidden layers.
        steps: of training.
        batch_size: examples; of the moments too.
        rate: of plain gradient descent; the same for both kinds.
    """

    claim: ClassVar[str] = (
        "Normalization brings the singular values of the layers' Jacobians closer to one."
    )
    source: ClassVar[str] = "Ioffe & Szegedy 2015, arXiv 1502.03167, section 3.3"
    effect: ClassVar[str] = (
        "less of the mean absolute logarithm of the singular values, after training"
    )

    networks: int = numbers(2)
    depth: int = numbers(5)
    width: int = numbers(64)
    steps: int = numbers(500)
    batch_size: int = numbers(100)
    rate: float = numbers(0.1)

    def answer(self, seed: int, data: DataSet) -> Answer:
        """Returns by how much closer to one they are, and how far they spread."""
        digits = Digits.of(data.train)
        found = {
            kind: self._values(norm, seed, digits)
            for kind, norm in (("with", BatchNorm), ("without", None))
        }
        curves, numbers = {}, {}
        for kind, whens in found.items():
            for when, values in whens.items():
                name = f"{when}, {kind}"
                curves[name] = rounded(np.quantile(values, np.linspace(0, 1, 101)))
                numbers[f"mean |log|, {name}"] = spread_of(values)
                numbers[f"least, {name}"] = float(values.min())
                numbers[f"largest, {name}"] = float(values.max())
        effect = spread_of(found["without"]["trained"]) - spread_of(found["with"]["trained"])
        return Answer(effect=effect, curves=curves, numbers=numbers)

    def _values(self, norm: Any, seed: int, digits: Digits) -> dict[str, np.ndarray]:
        model = perceptron((self.width,) * self.depth, norm)
        tx, seeds = optax.sgd(self.rate), seeds_of(seed, self.networks)
        drawn = start(model, tx, seeds, digits)
        order = orders(seeds, 0, self.steps, self.batch_size, len(digits.labels))
        trained, _ = training(model, tx)(drawn, digits, order)
        batch = digits.images[order[0, 0]]
        return {"drawn": _of_all(model, drawn, batch), "trained": _of_all(model, trained, batch)}

    def draw(self, axes: Axes, answers: Sequence[dict[str, Any]]) -> None:
        """Draws the singular values in their order, of the first seed."""
        share = np.linspace(0, 1, 101)
        for kind, color, lines in (("with", NORMALIZED, "-:"), ("without", PLAIN, ("--", "-."))):
            for when, line in zip(("trained", "drawn"), lines, strict=True):
                name = f"{when}, {kind}"
                axes.plot(share, answers[0]["curves"][name], line, color=color, lw=1, label=name)
        axes.axhline(1, color="0.7", lw=0.5)
        axes.set(xlabel="share of the singular values below", ylabel="singular value", yscale="log")
        name_lines(axes)


def _of_all(model: MLP, state: TrainState, batch: jax.Array) -> np.ndarray:
    networks = range(len(state.step))
    each = (jax.tree.map(lambda leaf, i=i: leaf[i], state.variables) for i in networks)
    return np.concatenate([singular_values(model, variables, batch) for variables in each])


def singular_values(model: MLP, variables: Any, batch: jax.Array) -> np.ndarray:
    """Returns the singular values of the Jacobians of all hidden layers but the first."""
    params, found = variables["params"], []
    moments = None if model.norm is None else model_moments(model, variables, batch, train=True)
    for layer in range(2, len(model.hidden) + 1):
        jacobian = np.asarray(params[f"dense{layer}"]["kernel"], float)
        if moments is not None:
            scale = np.asarray(params[f"hidden{layer - 1}"]["norm"]["scale"])
            jacobian = scale[:, None] * jacobian
            jacobian = jacobian / np.sqrt(np.asarray(moments[f"hidden{layer}"]["norm"].var))
        found.append(np.linalg.svd(jacobian, compute_uv=False))
    return np.concatenate(found)


def spread_of(values: np.ndarray) -> float:
    """Returns the mean |log| of singular values: how far they are from one."""
    return float(np.mean(np.abs(np.log(values))))
