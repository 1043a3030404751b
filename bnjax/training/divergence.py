"""Runs that reach infinity stop at their last finite state; the error names step and layer.

A run is watched if its state says so, `start_watch(state)`. Every step then asks whether loss,
gradient, statistics and new parameters are finite: one boolean in the compiled program, the same on
all devices, without a collective. From the first step on where they are not, the state stays what
it was and steps count nothing, however many the host has dispatched meanwhile. The host looks when
it fetches metrics anyway::

    state, metrics = train(state, batch)
    raise_if_diverged(state)

That the paper's Inception "reached machine infinity" at five times its learning rate is a result:
catch `Diverged` and record it.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.training.averaging import is_inexact
from bnjax.training.objectives import Metrics
from bnjax.training.state import TrainState

Tree = Any
What = Literal["parameter", "statistics", "gradient", "loss", "update"]
"""The first that was not finite: a parameter before the step; the running statistics after it; a
gradient; the loss; a parameter after the step."""


class Diverged(Exception):
    """A run is not finite any more.

    Attributes:
        step: number of the step that failed, from one; the state is the one after `step - 1` steps.
        layer: path of the first layer, in the order of paths, as in `"conv1/norm"`; None for the
            loss alone.
        leaf: name of its array that was not finite, as in `"kernel"`; None for the loss alone.
        what: see `What`.
    """

    def __init__(self, step: int, layer: str | None, leaf: str | None, what: What) -> None:
        where = "" if layer is None else f" of {leaf} in {layer or '(top)'}"
        name = {"parameter": "value", "statistics": "new value", "update": "new value"}
        super().__init__(f"step {step}: {name.get(what, what)}{where} is not finite")
        self.step = step
        self.layer = layer
        self.leaf = leaf
        self.what = what

    def facts(self) -> dict[str, Any]:
        """Returns the attributes, as a record has them."""
        return {"step": self.step, "layer": self.layer, "leaf": self.leaf, "what": self.what}


def start_watch(state: TrainState) -> TrainState:
    """Returns the state of a run that is watched from here on."""
    return state._replace(fault=jnp.int32(0))


def keep_finite(
    old: TrainState, new: TrainState, gradient: Tree, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """Returns `new` and the metrics, or `old` and zero metrics from the first fault on.

    Args:
        old: state before the step; if it is not watched, nothing is checked.
        new: state after the step.
        gradient: the gradient that the step used.
        metrics: those of the step; the floating ones must be finite.
    """
    if old.fault is None:
        return new, metrics
    checks = _checks(old, new, gradient, metrics)
    # The old parameters, which come first, only help to name the fault: where they are not finite,
    # neither are the new ones.
    sound = jnp.stack([_is_finite(leaf) for leaf in checks[_parameters(old) :]]).all()

    def first() -> jax.Array:  # 1 + position in the list of checks; computed only at a fault
        finite = jnp.stack([_is_finite(leaf) for leaf in checks])
        return 1 + jnp.argmin(finite).astype(jnp.int32)

    found = jax.lax.cond(sound, lambda: jnp.int32(0), first)
    fault = jnp.where(old.fault == 0, found, old.fault)
    fine = fault == 0

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(fine, new, old)

    # Without the key, which no step changes.
    kept = jax.tree.map(choose, new._replace(key=None), old._replace(key=None))
    counted = jax.tree.map(choose, metrics, jax.tree.map(jnp.zeros_like, metrics))
    return kept._replace(key=old.key, fault=fault), counted


def raise_if_diverged(state: TrainState) -> None:
    """Fetches one number and checks that a watched run is still finite.

    Args:
        state: the state of the run, on devices or host.

    Raises:
        Diverged: if it is not. The state is the last finite one.
        ValueError: if the run is not watched.
    """
    if state.fault is None:
        raise ValueError("state.fault is None, so that nothing was looked at: use start_watch.")
    fault = _number(state.fault)
    if fault == 0:
        return
    what, path = _names(state)[fault - 1]
    layer, _, leaf = path.rpartition("/")
    step = _number(state.step) + 1
    raise Diverged(step, None, None, what) if what == "loss" else Diverged(step, layer, leaf, what)


def _checks(old: TrainState, new: TrainState, gradient: Tree, metrics: Metrics) -> list[Any]:
    """Returns the leaves that must be finite, in the order of `_names`; the metrics as one."""
    return [
        *jax.tree.leaves((old.params, new.batch_stats, gradient)),
        jax.tree.leaves(metrics),
        *jax.tree.leaves(new.params),
    ]


def _names(state: TrainState) -> list[tuple[What, str]]:
    def paths(tree: Tree) -> list[str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]

    params, statistics = paths(state.params), paths(state.batch_stats)
    return [
        *(("parameter", path) for path in params),
        *(("statistics", path) for path in statistics),
        *(("gradient", path) for path in params),
        ("loss", ""),
        *(("update", path) for path in params),
    ]


def _parameters(state: TrainState) -> int:
    return len(jax.tree.leaves(state.params))


def _is_finite(tree: Tree) -> jax.Array:
    floats = filter(is_inexact, jax.tree.leaves(tree))
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats] or [jnp.bool_(True)]).all()


def _number(value: jax.Array | np.ndarray) -> int:
    """Returns a scalar that all devices of all hosts have."""
    return int(value.addressable_data(0) if isinstance(value, jax.Array) else value)
