"""What is given to our Flax layers and to Flax's own, and how close they come: Linen and NNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnjax.linen import BatchNorm

KEY = jax.random.key(0)
CLOSE = {"rtol": 2e-6, "atol": 2e-6}
"""Two float32 computations near zero; a biased for an unbiased variance is off by 1e-2, an update
that is lost or doubled by 1e-3 and more."""

GRADIENTS = {"rtol": 1e-5, "atol": 1e-5}

MASKS = {  # of inputs [6, 4, 5]
    "features": (5,),
    "examples": (6, 1, 1),
    "positions": (4, 1),
    "positions and features": (4, 5),
    "whole": (6, 4, 5),
    "one": (1,),
    "scalar": (),
}


def inputs(shape=(6, 5), dtype=jnp.float32, *, seed=4) -> jax.Array:
    return jnp.asarray(0.5 + 2 * np.random.default_rng(seed).normal(size=shape), dtype)


def batches(shape, steps=3, dtype=jnp.float32) -> list[jax.Array]:
    """Inputs of steps, whose means and deviations grow."""
    rng = np.random.default_rng(4)
    return [jnp.asarray(t / 2 + (1 + t / 4) * rng.normal(size=shape), dtype) for t in range(steps)]


def complex_inputs(shape) -> jax.Array:
    """The parts are unequal, and correlated."""
    real = inputs(shape)
    return jax.lax.complex(real, 0.3 * real + inputs(shape, seed=5))


def weights(x) -> jax.Array:
    """Random ones of the outputs, for gradients."""
    return jnp.asarray(np.random.default_rng(9).normal(size=x.shape), jnp.float32)


def mask_of(shape) -> jax.Array:
    flags = np.random.default_rng(1).random(shape) < 0.6
    return jnp.asarray(flags if flags.size > 1 else np.ones(shape, bool))


def pair(**settings):
    """The same Linen layer, ours and Flax's."""
    return BatchNorm(**settings), nn.BatchNorm(use_fast_variance=False, **settings)
