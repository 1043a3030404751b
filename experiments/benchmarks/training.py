"""Contestants that train BN-Inception, each with another normalization or library, and their race.

All share initial parameters, data and optimizer, and train turn by turn in one process.
"""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bnjax.linen
from bnjax.models import apply_train
from bnjax.models.bn_inception import BNInception
from experiments.benchmarks.benchmark import not_installed
from experiments.benchmarks.training_spec import EPSILON, MOMENTUM, StepSpec, make_batch
from experiments.benchmarks.turns import raw, take_turns

NETWORKS: dict[str, dict[str, Any]] = {
    "ours": {"norm": partial(bnjax.linen.BatchNorm, momentum=MOMENTUM, epsilon=EPSILON)},
    "ours_separate": {
        "norm": partial(bnjax.linen.BatchNorm, momentum=MOMENTUM, epsilon=EPSILON),
        "activation": lambda x: nn.relu(x),  # not recognized by the model, so applied after it
    },
    "flax": {"norm": partial(nn.BatchNorm, momentum=MOMENTUM, epsilon=EPSILON)},
    "bias": {"norm": None},
}
"""Arguments of `BNInception`: ReLU inside bnjax's layer; ReLU after it; Flax's layer; no layer."""

TORCH = {"torch": "flax", "torch_compiled": "flax", "torch_bias": "bias"}
"""PyTorch's contestants, and whose initial parameters they take."""


class Training(Protocol):
    """A contestant in training, compiled."""

    def run(self, steps: int) -> None:
        """Trains for some more steps; returns when the last is done."""

    def loss(self) -> float:
        """Returns the mean loss before the last step."""

    def temporary_bytes(self) -> int | None:
        """Returns a step's memory besides state and batch; None where it cannot be known."""


def race(
    spec: StepSpec, names: Sequence[str], *, repeats: int, turn_seconds: float
) -> dict[str, Any]:
    """Times the named contestants turn by turn, for `repeats` and `turn_seconds` of `take_turns`.

    Returns:
        JSON values, raw, each by contestant.

    Raises:
        ValueError: a contestant's loss is not finite at the end: its times mean nothing then.
    """
    trainings: dict[str, Training] = {}
    for name in names:
        print(f"compiling: {name}, {spec.dtype}", file=sys.stderr, flush=True)
        trainings[name] = make_training(name, spec)
    turns = take_turns(
        {name: each.run for name, each in trainings.items()},
        repeats=repeats,
        turn_seconds=turn_seconds,
    )
    losses = {name: each.loss() for name, each in trainings.items()}
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise ValueError(f"{name} diverged: choose a learning_rate below {spec.learning_rate}.")
    return {
        **raw(turns),
        "temporary_bytes": {name: each.temporary_bytes() for name, each in trainings.items()},
        "final_loss": losses,
    }


def find_torch(names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns PyTorch's version; or the contestants that need it, and why they are missing."""
    wanted = [name for name in names if name in TORCH]
    if not wanted:
        return {}, {}
    try:
        import torch
    except ImportError as error:
        return {}, dict.fromkeys(wanted, not_installed(error))
    return {"torch": torch.__version__}, {}


def make_training(name: str, spec: StepSpec) -> Training:
    """Returns the named contestant, compiled."""
    if name not in TORCH:
        return JaxTraining(name, spec)
    from experiments.benchmarks.training_torch import TorchTraining

    variables = initial_variables(make_network(TORCH[name], spec), spec)
    return TorchTraining(spec, variables["params"], compiled=name == "torch_compiled")


class JaxTraining:
    """A contestant of `NETWORKS`, one jitted step at a time, the state donated."""

    def __init__(self, name: str, spec: StepSpec) -> None:
        model = make_network(name, spec)
        optimizer = optax.sgd(spec.learning_rate, momentum=MOMENTUM)
        self._batch = tuple(map(jnp.asarray, make_batch(spec)))
        variables = initial_variables(model, spec)
        params = variables["params"]
        self._state = State(params, variables.get("batch_stats", {}), optimizer.init(params))
        step = jax.jit(make_step(model, optimizer), donate_argnums=0)
        self._step = step.lower(self._state, *self._batch).compile()
        self._loss = jnp.float32(jnp.nan)

    def run(self, steps: int) -> None:
        """Trains for some more steps; returns when the last is done."""
        for _ in range(steps):
            self._state, self._loss = self._step(self._state, *self._batch)
        self._loss.block_until_ready()

    def loss(self) -> float:
        """Returns the mean loss before the last step."""
        return float(self._loss)

    def temporary_bytes(self) -> int | None:
        """Returns XLA's account of a step's temporary memory."""
        analysis = self._step.memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)


class State(NamedTuple):
    """The values that a step changes."""

    params: Any
    batch_stats: Any
    opt_state: Any


def make_step(
    model: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """Returns `(state, images, labels) -> (new state, mean loss before it)`, to be compiled."""

    def step(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, stats = apply_train(model, variables, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), labels
            )
            return losses.mean(), stats

        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), stats, opt_state), value

    return step


def make_network(name: str, spec: StepSpec) -> BNInception:
    """Returns the named contestant's network."""
    return BNInception(
        classes=spec.classes,
        width=spec.width,
        stem_stride=spec.stem_stride,
        dtype=jnp.dtype(spec.dtype),
        **NETWORKS[name],
    )


def initial_variables(model: BNInception, spec: StepSpec) -> dict[str, Any]:
    """Returns parameters and statistics before the first step, the same at every call.

    NumPy draws them: compiling the network's own initialization takes as long as its step.
    """
    random = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "kernel":  # its last axis holds the outputs
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(random.normal(0, deviation, leaf.shape), leaf.dtype)
        return jnp.full(leaf.shape, 1 if name in ("scale", "var") else 0, leaf.dtype)

    init = partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), make_batch(spec)[0])
    return jax.tree_util.tree_map_with_path(draw, shapes)
