"""NNX layers of both makes, their states, and `nnx.view`, also for Flax 0.11, which has none."""

from flax import nnx

from bnjax.nnx import BatchNorm

FLAX_12 = hasattr(nnx, "view")
"""Flax 0.11's layer has fewer arguments, and its statistics do not widen the output."""


def pair(features=5, **settings):
    """The same layer, ours and Flax's."""
    return (
        BatchNorm(features, rngs=nnx.Rngs(0), **settings),
        nnx.BatchNorm(features, rngs=nnx.Rngs(0), use_fast_variance=False, **settings),
    )


def pure(state):
    """Nested dicts of arrays."""
    return nnx.to_pure_dict(state)


def stats_of(layer):
    return pure(nnx.state(layer, nnx.BatchStat))


def view(layer, **settings):
    """The layer with other settings; a copy where Flax cannot share the variables."""
    if FLAX_12:
        return nnx.view(layer, **settings)
    copy = nnx.clone(layer)
    copy.set_attributes(**settings)
    return copy
