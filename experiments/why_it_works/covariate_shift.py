"""Internal covariate shift: how much a layer's gradient changes as the layers below it step.

Ioffe & Szegedy 2015, arXiv 1502.03167, say that normalization reduces it. Santurkar et al. 2018,
arXiv 1805.11604, Definition 2.1, measure it: with W the weights before a step and V after it, and
the loss of one and the same batch,
    G_i  = gradient of W_i at (W_1, ..., W_k)
    G'_i = gradient of W_i at (V_1, ..., V_{i-1}, W_i, ..., W_k)
the shift of layer i is norm(G_i - G'_i); they show the cosine of the two as well, which does not
depend on the gradients' lengths, and is 1 without a shift.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.why_it_works.along_training import AlongTraining, Loss

_COSINE = "cosine of the gradients"


@dataclass(frozen=True, kw_only=True)
class CovariateShift(AlongTraining):
    """Takes each layer's gradient before and after the layers below it step."""

    claim: ClassVar[str] = (
        "Normalization reduces internal covariate shift: a layer's gradient keeps its direction as "
        "the layers below it step."
    )
    source: ClassVar[str] = (
        "Ioffe & Szegedy 2015; as measured by Santurkar et al. 2018, arXiv 1805.11604"
    )
    effect: ClassVar[str] = (
        "of the cosine of both gradients, with minus without, mean over layers and training"
    )
    shown: ClassVar[str] = _COSINE

    def measure(self, loss: Loss, params: Any, batch: Any) -> dict[str, jax.Array]:
        """Returns the mean cosine and the mean relative shift of the layers above the first."""
        slope = jax.grad(loss)(params, batch)
        stepped = jax.tree.map(lambda w, g: w - self.rate * g, params, slope)
        layers = self.layers(params)

        def after_those_below(layer: jax.Array) -> Any:
            mixed = {}
            for position, names in enumerate(layers):
                for name in names:
                    mixed[name] = jax.tree.map(
                        partial(jnp.where, position < layer), stepped[name], params[name]
                    )
            return jax.grad(loss)(mixed, batch)

        above = range(1, len(layers))
        shifted = jax.vmap(after_those_below)(jnp.asarray(above, jnp.int32))
        cosines, shifts = [], []
        for row, position in enumerate(above):
            names = layers[position]
            before = [slope[name] for name in names]
            after = [jax.tree.map(lambda leaf, row=row: leaf[row], shifted[name]) for name in names]
            cosines.append(
                optax.tree.vdot(before, after) / (optax.tree.norm(before) * optax.tree.norm(after))
            )
            shifts.append(optax.tree.norm(optax.tree.sub(after, before)) / optax.tree.norm(before))
        return {
            _COSINE: jnp.mean(jnp.stack(cosines)),
            "shift over the gradient's length": jnp.mean(jnp.stack(shifts)),
        }

    def layers(self, params: Any) -> list[list[str]]:
        """Returns the names of each layer's parameters, from the lowest on."""
        hidden = [[f"dense{i}", f"hidden{i}"] for i in range(1, self.depth + 1)]
        return [[name for name in names if name in params] for names in [*hidden, ["logits"]]]

    def compared(self, with_norm: np.ndarray, without: np.ndarray) -> float:
        """Returns by how much the cosine is larger with normalization."""
        return float(np.mean(with_norm) - np.mean(without))
