"""Forward and backward pass of one layer, as a program that can be timed and compared."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks.batch_norm_layers import LAYERS, Layer, Tree, Wanted


class Given(NamedTuple):
    """Inputs of every contestant, float64 `[..., features]`; each rounds them to its dtype.

    Attributes:
        x: the layer's input.
        dy: the cotangent of its output.
        scale: float64 `[features]`.
        bias: float64 `[features]`.
    """

    x: np.ndarray
    dy: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


class Result(NamedTuple):
    """What one call computes, float64, channels last. `dscale` is None without a scale."""

    y: np.ndarray
    dx: np.ndarray
    dscale: np.ndarray | None
    dbias: np.ndarray


class Program(Protocol):
    """A contestant with its inputs in place, compiled."""

    def run(self, calls: int) -> None:
        """Forward and backward pass, so often; returns when the last is done."""

    def result(self) -> Result:
        """What a call computes."""

    def temporary_bytes(self) -> int | None:
        """Memory of a call besides inputs and outputs; None where it cannot be known."""


def made_inputs(shape: tuple[int, ...], *, offset: float = 0, seed: int = 0) -> Given:
    """Normal values of standard deviation one around `offset`; the same at every call."""
    random = np.random.default_rng(seed)
    features = shape[-1]
    return Given(
        offset + random.normal(size=shape),
        random.normal(size=shape),
        random.uniform(0.5, 1.5, features),
        random.normal(size=features),
    )


def forward(layer: Layer) -> Callable[..., Any]:
    """`(x, params, state) -> (y, new state)`, to be compiled."""
    return layer.apply


def forward_and_backward(layer: Layer) -> Callable[..., Any]:
    """`(x, dy, params, state) -> (y, new state, dx, gradient of params)`, to be compiled.

    The cotangent waits for the output, as in a network, where it depends on it: otherwise the
    compiler could read `x` once for both passes.
    """

    def step(x: jax.Array, dy: jax.Array, params: Tree, state: Tree) -> tuple[Tree, ...]:
        y, pull_back, state = jax.vjp(
            lambda x, params: layer.apply(x, params, state), x, params, has_aux=True
        )
        y, dy = lax.optimization_barrier((y, dy))
        return y, state, *pull_back(dy)

    return step


def layer_of(name: str, wanted: Wanted, given: Given) -> Layer:
    """The named contestant with the given scale and bias, which are float32."""
    scale, bias = (jnp.asarray(value, jnp.float32) for value in (given.scale, given.bias))
    return LAYERS[name](wanted, scale, bias)


def arranged(values: np.ndarray, layer: Layer, dtype: str) -> jax.Array:
    """An input in the layer's layout and dtype."""
    return jnp.asarray(np.moveaxis(values, -1, 1) if layer.channels_first else values, dtype)


class JaxProgram:
    """A contestant of `LAYERS`, under `jit`."""

    def __init__(self, name: str, wanted: Wanted, given: Given) -> None:
        layer = layer_of(name, wanted, given)
        x, dy = (arranged(values, layer, wanted.dtype) for values in (given.x, given.dy))
        self._layer = layer
        self._arguments = (x, dy, layer.params, layer.state)
        self._step = jax.jit(forward_and_backward(layer))
        self._wait_each = jax.default_backend() == "cpu"  # which would run several calls at once

    def run(self, calls: int) -> None:
        """Forward and backward pass, so often; returns when the last is done."""
        for _ in range(calls):
            y = self._step(*self._arguments)[0]
            if self._wait_each:
                y.block_until_ready()
        y.block_until_ready()

    def result(self) -> Result:
        """What a call computes."""
        y, _, dx, dparams = self._step(*self._arguments)
        axis = 1 if self._layer.channels_first else -1
        y, dx = (np.moveaxis(_float64(value), axis, -1) for value in (y, dx))
        dscale, dbias = self._layer.scale_and_bias(dparams)
        return Result(y, dx, None if dscale is None else _float64(dscale), _float64(dbias))

    def temporary_bytes(self) -> int | None:
        """By XLA's account."""
        analysis = self._step.lower(*self._arguments).compile().memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)


def _float64(value: jax.Array) -> np.ndarray:
    return np.asarray(value).astype(np.float64)
