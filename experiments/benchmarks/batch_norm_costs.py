"""Costs of a layer besides time: memory kept for the backward pass, and lost digits."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from experiments.benchmarks.batch_norm_layers import EPSILON, Layer, LayerSpec
from experiments.benchmarks.batch_norm_programs import make_program
from experiments.benchmarks.batch_norm_values import Inputs, Outputs, make_inputs

OFFSETS = (0.0, 1e3, 1e5)
"""Means of the input, in standard deviations."""


def residual_bytes(layer: Layer, spec: LayerSpec) -> float:
    """Returns the bytes per value of `x` that `jax.vjp` keeps between forward and backward pass.

    Each array as large as `x` counts once, `x` itself too. The output, which the next layer keeps
    anyway, and values per feature do not count. In a larger program XLA may keep less.
    """
    shape = spec.shape
    if layer.channels_first:
        shape = (shape[0], shape[-1], *shape[1:-1])

    def kept(x: jax.Array, params: Any, state: Any) -> Any:
        y, pull_back, _ = jax.vjp(
            lambda x, params: layer.apply(x, params, state), x, params, has_aux=True
        )
        return y, jax.tree.leaves(pull_back)

    x = jax.ShapeDtypeStruct(shape, spec.dtype)
    y, *residuals = jax.make_jaxpr(kept)(x, layer.params, layer.state).jaxpr.outvars
    large = [
        variable.aval
        for variable in residuals
        if not isinstance(variable, Literal) and variable.aval.size >= x.size and variable is not y
    ]
    return sum(aval.size * aval.dtype.itemsize for aval in large) / x.size


def accuracy(shape: tuple[int, ...], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns errors in float32 at the first step, for inputs at `OFFSETS`.

    Args:
        shape: the input's, channels last.
        names: contestants that normalize.

    Returns:
        For each offset, each contestant's largest error of `y`, and of each gradient relative to
        that gradient's largest value, against float64; None where it is not finite.
    """
    spec = LayerSpec(shape, "float32")
    entries = []
    for offset in OFFSETS:
        inputs = make_inputs(shape, offset=offset)
        rounded = Inputs(*(value.astype(np.float32).astype(np.float64) for value in inputs))
        truth = exact(rounded)
        outputs = {name: make_program(name, spec, rounded).result() for name in names}
        errors = {name: _errors(each, truth) for name, each in outputs.items()}
        entries.append({"offset": offset, "errors": errors})
    return entries


def exact(inputs: Inputs) -> Outputs:
    """Computes the layer and its gradients in float64 by the formulas of the paper's section 3."""
    x, dy, scale, bias = inputs
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axes)
    rstd = 1 / np.sqrt(np.square(centred).mean(axes) + EPSILON)
    xhat = centred * rstd
    dscale, dbias = (dy * xhat).sum(axes), dy.sum(axes)
    dx = scale * rstd * (dy - dy.mean(axes) - xhat * (dy * xhat).mean(axes))
    return Outputs(scale * xhat + bias, dx, dscale, dbias)


def _errors(outputs: Outputs, truth: Outputs) -> dict[str, float | None]:
    errors: dict[str, float | None] = {}
    for key in Outputs._fields:
        value, exactly = np.asarray(getattr(outputs, key)), np.asarray(getattr(truth, key))
        unit = 1.0 if key == "y" else np.abs(exactly).max()
        error = np.abs(value - exactly).max() / unit
        errors[key] = float(error) if np.isfinite(error) else None
    return errors
