"""Forward and backward pass of one layer, as a program that can be timed and compared."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks.batch_norm_layers import LAYERS, Layer, LayerSpec, Tree
from experiments.benchmarks.batch_norm_values import Inputs, Outputs

TORCH_THREADS = {"torch": None, "torch_one_thread": 1}
"""PyTorch's contestants, and their numbers of threads; None is PyTorch's own choice."""


class LayerProgram(Protocol):
    """A contestant's compiled layer with its inputs in place."""

    def run(self, calls: int) -> None:
        """Makes forward and backward passes; returns when the last is done."""

    def result(self) -> Outputs:
        """Returns the outputs of a call."""

    def temporary_bytes(self) -> int | None:
        """Returns a call's memory besides inputs and outputs; None where it cannot be known."""


def forward_and_backward(layer: Layer) -> Callable[..., Any]:
    """Returns `(x, dy, params, state) -> (y, new state, dx, gradient of params)`, to be compiled.

    The cotangent waits for the output, as in a network, where it depends on the output: otherwise
    the compiler could read `x` once for both passes.
    """

    def step(x: jax.Array, dy: jax.Array, params: Tree, state: Tree) -> tuple[Tree, ...]:
        y, pull_back, state = jax.vjp(
            lambda x, params: layer.apply(x, params, state), x, params, has_aux=True
        )
        y, dy = lax.optimization_barrier((y, dy))
        return y, state, *pull_back(dy)

    return step


def make_layer(name: str, spec: LayerSpec, inputs: Inputs) -> Layer:
    """Returns the named contestant's layer with the given scale and bias, in float32."""
    scale, bias = (jnp.asarray(value, jnp.float32) for value in (inputs.scale, inputs.bias))
    return LAYERS[name](spec, scale, bias)


def to_layout(values: np.ndarray, layer: Layer, dtype: str) -> jax.Array:
    """Returns an input in the layer's layout and dtype."""
    return jnp.asarray(np.moveaxis(values, -1, 1) if layer.channels_first else values, dtype)


def make_program(name: str, spec: LayerSpec, inputs: Inputs) -> LayerProgram:
    """Returns the named contestant's program."""
    if name in TORCH_THREADS:
        from experiments.benchmarks.batch_norm_torch import TorchProgram

        return TorchProgram(spec, inputs, threads=TORCH_THREADS[name])
    return JaxProgram(name, spec, inputs)


class JaxProgram:
    """A contestant of `LAYERS`, under `jit`."""

    def __init__(self, name: str, spec: LayerSpec, inputs: Inputs) -> None:
        layer = make_layer(name, spec, inputs)
        x, dy = (to_layout(values, layer, spec.dtype) for values in (inputs.x, inputs.dy))
        self._layer = layer
        self._arguments = (x, dy, layer.params, layer.state)
        self._step = jax.jit(forward_and_backward(layer))
        self._wait_each = jax.default_backend() == "cpu"  # CPUs would run several calls at once

    def run(self, calls: int) -> None:
        """Makes forward and backward passes; returns when the last is done."""
        for _ in range(calls):
            y = self._step(*self._arguments)[0]
            if self._wait_each:
                y.block_until_ready()
        y.block_until_ready()

    def result(self) -> Outputs:
        """Returns the outputs of a call."""
        y, _, dx, dparams = self._step(*self._arguments)
        axis = 1 if self._layer.channels_first else -1
        y, dx = (np.moveaxis(_float64(value), axis, -1) for value in (y, dx))
        dscale, dbias = self._layer.scale_and_bias(dparams)
        return Outputs(y, dx, None if dscale is None else _float64(dscale), _float64(dbias))

    def temporary_bytes(self) -> int | None:
        """Returns XLA's account of a call's temporary memory."""
        analysis = self._step.lower(*self._arguments).compile().memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)


def _float64(value: jax.Array) -> np.ndarray:
    return np.asarray(value).astype(np.float64)
