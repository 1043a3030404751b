"""The end of all training steps: from a gradient to the next state."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bnjax.normalization.meshes import mapped_names
from bnjax.normalization.versions import as_varying, typed_axes
from bnjax.training.divergence import keep_finite
from bnjax.training.objectives import Metrics
from bnjax.training.state import TrainState

Tree = Any
AxisName = str | Sequence[str] | None
"""Mapped axes of the devices that share a batch; None where a program sees all of it."""


def step_keys(state: TrainState) -> tuple[jax.Array, ...]:
    """Returns this step's PRNG key, from the run's key and the step; nothing for a run without."""
    return () if state.key is None else (jax.random.fold_in(state.key, state.step),)


def as_each_devices(tree: Tree, axis_name: AxisName) -> Tree:
    """Returns values that all devices share, as each one's own: a gradient by them is its own too.

    `shard_map` with types (`check_vma`, JAX's default) sums a gradient by what devices share, and
    `sum_over_devices` would sum it again.
    """
    typed = typed_axes(mapped_names(axis_name))
    return jax.tree.map(lambda leaf: as_varying(leaf, typed), tree) if typed else tree


def sum_over_devices(tree: Tree, axis_name: AxisName) -> Tree:
    """Returns the leaves' sums over mapped axes; XLA makes one all-reduce for each dtype."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


def update(
    state: TrainState,
    tx: optax.GradientTransformation,
    gradient: Tree,
    batch_stats: Tree,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """Returns the state after a step, and its metrics; a watched run stays at a finite state.

    Args:
        state: the state before the step.
        tx: the optimizer.
        gradient: that of the mean loss over all examples of all devices, as `jax.grad` has it.
        batch_stats: the new running statistics.
        metrics: sums over all examples of all devices.
    """
    # By a complex parameter, JAX's gradient is the conjugate of the way up; real ones stay.
    uphill = jax.tree.map(jnp.conj, gradient)
    updates, opt_state = tx.update(uphill, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = state._replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
    )
    return keep_finite(state, new, gradient, metrics)
