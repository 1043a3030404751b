"""Each kind of network at a rate of its own: the best of a few, by digits held out of training.

Rates that are best differ from kind to kind; at one rate for all, the rate would decide.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.data.order import permutation
from bnjax.training.state import TrainState
from experiments.why_it_works.side_by_side import Digits, accuracies, orders, start, training


class Kind(NamedTuple):
    """A kind of network, and how it is trained.

    Attributes:
        model: the network.
        tx: an optimizer whose state has a `learning_rate`.
        batch_size: examples.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    batch_size: int


class Reached(NamedTuple):
    """What a kind comes to at the rate that is best for it.

    Attributes:
        accuracy: mean on the test set, per cent.
        rate: the one that was chosen.
        state: of the networks; leaves `[networks, ...]`.
    """

    accuracy: float
    rate: float
    state: TrainState


def compared(
    kinds: Mapping[str, Kind],
    rates: Sequence[float],
    digits: Digits,
    held_out: Digits,
    test: Digits,
    seeds: Sequence[int],
    *,
    steps: int,
) -> dict[str, Reached]:
    """Trains networks of each kind at its best rate; arguments are those of the next."""
    found = {}
    for name, (model, tx, batch_size) in kinds.items():
        rate, state = trained_at_best_rate(
            model, tx, rates, digits, held_out, seeds, steps=steps, batch_size=batch_size
        )
        found[name] = Reached(100 * float(accuracies(model, state, test).mean()), rate, state)
    return found


def accuracies_and_rates(found: Mapping[str, Reached]) -> dict[str, float]:
    """Returns what the page tells of a comparison."""
    return {f"accuracy, {name}": each.accuracy for name, each in found.items()} | {
        f"rate, {name}": each.rate for name, each in found.items()
    }


def at_an_end(found: Mapping[str, Reached], rates: Sequence[float]) -> dict[str, float]:
    """Returns of how many kinds the best rate may lie beyond those that were tried, ascending."""
    ends = (rates[0], rates[-1])
    return {"best at the least or largest rate": float(sum(e.rate in ends for e in found.values()))}


def hold_out(digits: Digits, count: int, seed: int) -> tuple[Digits, Digits]:
    """Returns all but `count` digits, and those, drawn by the seed."""
    rows = permutation(seed, 0, len(digits.labels))
    held, kept = (Digits(digits.images[own], digits.labels[own]) for own in np.split(rows, [count]))
    return kept, held


def trained_at_best_rate(
    model: nn.Module,
    tx: optax.GradientTransformation,
    rates: Sequence[float],
    digits: Digits,
    held_out: Digits,
    seeds: Sequence[int],
    *,
    steps: int,
    batch_size: int,
) -> tuple[float, TrainState]:
    """Trains networks at each rate, side by side; returns the best rate, and the networks at it.

    Args:
        model: the network.
        tx: an optimizer whose state has a `learning_rate`, such as `bnjax.training.optimizers.sgd`.
        rates: to choose from. All see the same weights and examples.
        digits: to train on.
        held_out: those whose mean accuracy, by running statistics, chooses; of equals the first.
        seeds: of the networks at each rate.
        steps: of training.
        batch_size: examples.
    """
    every = [seed for _ in rates for seed in seeds]
    state = start(model, tx, every, digits)
    each = jnp.repeat(jnp.asarray(rates, jnp.float32), len(seeds))
    state = state._replace(opt_state=optax.tree_utils.tree_set(state.opt_state, learning_rate=each))
    order = orders(every, 0, steps, batch_size, len(digits.labels))
    state, _ = training(model, tx)(state, digits, order)
    reached = accuracies(model, state, held_out).reshape(len(rates), len(seeds)).mean(1)
    best = int(np.argmax(reached))
    own = slice(best * len(seeds), (best + 1) * len(seeds))
    return rates[best], jax.tree.map(lambda leaf: leaf[own], state)
