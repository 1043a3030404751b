"""Networks of digits, several of a seed trained side by side: what an observation is made on.

They differ by their initial weights and the order of the examples. In float32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.data import ArraySplit
from bnjax.data.order import batch_indices
from bnjax.models import MLP, apply_train
from bnjax.models.norms import Norm
from bnjax.training.objectives import Metrics, classification_metrics
from bnjax.training.state import TrainState
from bnjax.training.steps import make_train_step, scan_steps

Advance = Callable[[TrainState, "Digits", jax.Array], tuple[TrainState, Metrics]]
"""`(states, digits, order) -> (states, metrics)`, with the metrics summed over the steps."""


class Digits(NamedTuple):
    """Examples on the device.

    Attributes:
        images: float32 `[n, height, width, 1]`, from 0 to 1.
        labels: int32 `[n]`.
    """

    images: jax.Array
    labels: jax.Array

    @classmethod
    def of(cls, split: ArraySplit) -> "Digits":
        """Returns those of a split in memory."""
        return cls(jnp.asarray(split.images, jnp.float32) / 255, jnp.asarray(split.labels))


def perceptron(widths: tuple[int, ...], norm: Norm | str | None) -> MLP:
    """Returns a network with ReLUs and He's weights; arguments as `bnjax.models.MLP` has them."""
    return MLP(widths, norm=norm, activation=nn.relu, kernel_init=nn.initializers.he_normal())


def seeds_of(seed: int, networks: int) -> range:
    """Returns the networks' own seeds: no two seeds share one."""
    return range(seed * networks, (seed + 1) * networks)


def start(
    model: nn.Module, tx: optax.GradientTransformation, seeds: Sequence[int], digits: Digits
) -> TrainState:
    """Returns the states of networks that were only drawn; leaves `[networks, ...]`."""

    def one(seed: jax.Array) -> TrainState:
        key, dropout = jax.random.split(jax.random.key(seed))
        variables = model.init(key, digits.images[:2], train=False)
        params, stats = variables["params"], variables.get("batch_stats", {})
        return TrainState(jnp.int32(0), params, stats, tx.init(params), dropout)

    return jax.jit(jax.vmap(one))(jnp.asarray(seeds, jnp.uint32))


def orders(seeds: Sequence[int], first: int, steps: int, batch_size: int, size: int) -> jax.Array:
    """Returns which examples of `size` the networks see, int32 `[networks, steps, batch_size]`."""
    return jnp.asarray(
        np.stack([batch_indices(s, first, steps, batch_size=batch_size, size=size) for s in seeds])
    )


def training(
    model: nn.Module | Callable[[jax.Array], nn.Module], tx: optax.GradientTransformation
) -> Advance:
    """Makes what trains.

    Args:
        model: or the model as a function of the step, with the same variables at each.
        tx: the optimizer.
    """

    def one(state: TrainState, digits: Digits, order: jax.Array) -> tuple[TrainState, Metrics]:
        def step(state: TrainState, rows: jax.Array) -> tuple[TrainState, Metrics]:
            now = model if isinstance(model, nn.Module) else model(state.step)
            take = make_train_step(partial(apply_train, now), tx)
            return take(state, (digits.images[rows], digits.labels[rows]))

        return scan_steps(step)(state, order)

    return jax.jit(jax.vmap(one, in_axes=(0, None, 0)))


def tested(
    model: nn.Module,
    advance: Advance,
    state: TrainState,
    train: Digits,
    test: Digits,
    order: jax.Array,
    tests: int,
) -> tuple[TrainState, np.ndarray]:
    """Trains, and tests by running statistics after each of `tests` stretches.

    Args:
        model: the network in inference.
        advance: from `training`.
        state: of the networks before.
        train: to train on.
        test: to test on.
        order: int32 `[networks, steps, batch_size]`; as many steps as divide into `tests`.
        tests: how many.

    Returns:
        The states at the end, and the accuracies `[tests, networks]`, fractions.
    """
    reached = []
    for stretch in jnp.split(order, tests, axis=1):
        state, _ = advance(state, train, stretch)
        reached.append(accuracies(model, state, test))
    return state, np.stack(reached)


def trained(
    model: nn.Module,
    tx: optax.GradientTransformation,
    digits: Digits,
    seeds: Sequence[int],
    *,
    steps: int,
    batch_size: int,
) -> TrainState:
    """Returns the states of networks after so many steps."""
    order = orders(seeds, 0, steps, batch_size, len(digits.labels))
    return training(model, tx)(start(model, tx, seeds, digits), digits, order)[0]


def accuracies(
    model: nn.Module, state: TrainState, digits: Digits, batch_stats: Any = None
) -> np.ndarray:
    """Returns each network's accuracy by its running statistics, or by others; a fraction."""

    def one(params: Any, stats: Any, digits: Digits) -> Metrics:
        variables = {"params": params, "batch_stats": stats}
        logits: Any = model.apply(variables, digits.images, train=False)
        return classification_metrics(logits, digits.labels)

    stats = state.batch_stats if batch_stats is None else batch_stats
    found = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))(state.params, stats, digits)
    return np.asarray(found.correct) / np.asarray(found.examples)
