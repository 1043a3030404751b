"""What a layer costs besides time: what it keeps for the backward pass, and digits."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from experiments.benchmarks.batch_norm_layers import EPSILON, Layer, Wanted
from experiments.benchmarks.batch_norm_programs import Given, Program, Result, made_inputs

OFFSETS = (0.0, 1e3, 1e5)
"""Means of the input, in standard deviations."""


def residual_bytes(layer: Layer, shape: tuple[int, ...], dtype: str) -> float:
    """Bytes per value of `x` that `jax.vjp` keeps between forward and backward pass.

    Each array as large as `x` counts once, `x` itself too; not the output, which the next layer
    keeps anyway, nor what is per feature. Compiled with more around it, XLA may keep less.

    Args:
        layer: any.
        shape: of the input, channels last.
        dtype: of the input.
    """
    if layer.channels_first:
        shape = (shape[0], shape[-1], *shape[1:-1])

    def kept(x: jax.Array, params: Any, state: Any) -> Any:
        y, pull_back, _ = jax.vjp(
            lambda x, params: layer.apply(x, params, state), x, params, has_aux=True
        )
        return y, jax.tree.leaves(pull_back)

    x = jax.ShapeDtypeStruct(shape, dtype)
    y, *residuals = jax.make_jaxpr(kept)(x, layer.params, layer.state).jaxpr.outvars
    large = [
        variable.aval
        for variable in residuals
        if not isinstance(variable, Literal) and variable.aval.size >= x.size and variable is not y
    ]
    return sum(aval.size * aval.dtype.itemsize for aval in large) / x.size


def accuracy(
    shape: tuple[int, ...],
    names: Sequence[str],
    program: Callable[[str, Wanted, Given], Program],
) -> list[dict[str, Any]]:
    """Errors in float32 at the first step, for inputs at `OFFSETS`.

    Args:
        shape: of the input, channels last.
        names: of contestants that normalize.
        program: makes a contestant's program.

    Returns:
        For each offset, each contestant's largest error of `y`, and of each gradient relative to
        that gradient's largest value, against float64; None where it is not finite.
    """
    wanted = Wanted(shape, "float32")
    entries = []
    for offset in OFFSETS:
        given = made_inputs(shape, offset=offset)
        rounded = Given(*(value.astype(np.float32).astype(np.float64) for value in given))
        truth = exact(rounded)
        entries.append(
            {
                "offset": offset,
                "errors": {
                    name: _errors(program(name, wanted, rounded).result(), truth) for name in names
                },
            }
        )
    return entries


def exact(given: Given) -> Result:
    """The layer and its gradients in float64, by the formulas of the paper's section 3."""
    x, dy, scale, bias = given
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axes)
    rstd = 1 / np.sqrt(np.square(centred).mean(axes) + EPSILON)
    xhat = centred * rstd
    dscale, dbias = (dy * xhat).sum(axes), dy.sum(axes)
    dx = scale * rstd * (dy - dy.mean(axes) - xhat * (dy * xhat).mean(axes))
    return Result(scale * xhat + bias, dx, dscale, dbias)


def _errors(result: Result, truth: Result) -> dict[str, float | None]:
    errors: dict[str, float | None] = {}
    for key in Result._fields:
        value, exactly = np.asarray(getattr(result, key)), np.asarray(getattr(truth, key))
        unit = 1.0 if key == "y" else np.abs(exactly).max()
        error = np.abs(value - exactly).max() / unit
        errors[key] = float(error) if np.isfinite(error) else None
    return errors
