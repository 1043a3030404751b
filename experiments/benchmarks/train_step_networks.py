"""The contestants of the train step: one network, with several normalizations."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bnjax.linen
from bnjax.models.bn_inception import BNInception

MOMENTUM = 0.9
"""Of the optimizer, and the fraction that the running statistics keep."""

EPSILON = 1e-5
"""Of the normalization."""


class Setting(NamedTuple):
    """What all contestants share; fields as in `train_step.Config`."""

    dtype: str
    width: float
    image_size: int
    stem_stride: int
    batch_size: int
    classes: int
    learning_rate: float


class Training(Protocol):
    """A contestant in training, compiled."""

    def run(self, steps: int) -> None:
        """Trains on; returns when the last step is done."""

    def loss(self) -> float:
        """The mean loss before the last step."""

    def temporary_bytes(self) -> int | None:
        """Memory of a step besides state and batch; None where it cannot be known."""


NETWORKS: dict[str, dict[str, Any]] = {
    "ours": {"norm": partial(bnjax.linen.BatchNorm, momentum=MOMENTUM, epsilon=EPSILON)},
    "ours_separate": {
        "norm": partial(bnjax.linen.BatchNorm, momentum=MOMENTUM, epsilon=EPSILON),
        "activation": lambda x: nn.relu(x),  # which the model does not recognize, and adds
    },
    "flax": {"norm": partial(nn.BatchNorm, momentum=MOMENTUM, epsilon=EPSILON)},
    "bias": {"norm": None},
}
"""Settings of `BNInception`: ReLU inside bnjax's layer; ReLU after it; Flax's layer; no layer."""


class State(NamedTuple):
    """What a step changes."""

    params: Any
    batch_stats: Any
    opt_state: Any


def batch(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Random images, float32 `[n, h, w, 3]`, and labels, int32 `[n]`; the same at every call."""
    random = np.random.default_rng(0)
    size = (setting.batch_size, setting.image_size, setting.image_size, 3)
    images = random.normal(size=size).astype(np.float32)
    return images, random.integers(setting.classes, size=setting.batch_size, dtype=np.int32)


def network(name: str, setting: Setting) -> BNInception:
    """The named contestant's network."""
    return BNInception(
        classes=setting.classes,
        width=setting.width,
        stem_stride=setting.stem_stride,
        dtype=jnp.dtype(setting.dtype),
        **NETWORKS[name],
    )


def make_step(
    model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """`(state, images, labels) -> (new state, mean loss before it)`, to be compiled."""

    def step(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), labels
            )
            return losses.mean(), updates.get("batch_stats", {})

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), stats, opt_state), value

    return step


def initial_variables(model: BNInception, setting: Setting) -> dict[str, Any]:
    """Parameters and statistics before the first step; the same at every call.

    Drawn by NumPy: compiling the network's own initialization takes as long as its step.
    """
    random = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "kernel":  # the last axis is that of the outputs
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(random.normal(0, deviation, leaf.shape), leaf.dtype)
        return jnp.full(leaf.shape, 1 if name in ("scale", "var") else 0, leaf.dtype)

    init = partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), batch(setting)[0])
    return jax.tree_util.tree_map_with_path(draw, shapes)


class JaxTraining:
    """A contestant of `NETWORKS`, one jitted step at a time, the state donated."""

    def __init__(self, name: str, setting: Setting) -> None:
        model = network(name, setting)
        optimizer = optax.sgd(setting.learning_rate, momentum=MOMENTUM)
        self._batch = tuple(map(jnp.asarray, batch(setting)))
        variables = initial_variables(model, setting)
        params = variables["params"]
        self._state = State(params, variables.get("batch_stats", {}), optimizer.init(params))
        step = jax.jit(make_step(model, optimizer), donate_argnums=0)
        self._step = step.lower(self._state, *self._batch).compile()
        self._loss = jnp.float32(jnp.nan)

    def run(self, steps: int) -> None:
        """Trains on; returns when the last step is done."""
        for _ in range(steps):
            self._state, self._loss = self._step(self._state, *self._batch)
        self._loss.block_until_ready()

    def loss(self) -> float:
        """The mean loss before the last step."""
        return float(self._loss)

    def temporary_bytes(self) -> int | None:
        """By XLA's account."""
        analysis = self._step.memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)
