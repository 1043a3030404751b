"""Small networks with batch normalization, and variables for them that no initialization gives."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnjax.linen import BatchNorm

KEY = jax.random.key(0)

norm = functools.partial(BatchNorm, use_running_average=True)
conv = functools.partial(nn.Conv, features=4, kernel_size=(3, 3))
IMAGES = (2, 6, 6, 3)
ROWS = (4, 7)

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
"""Two float32 computations with sums of up to 100 terms of size one; an addend that is missing,
or a bias that is not scaled, is off by 0.1 and more."""


class Net(nn.Module):
    """A model from a function that makes layers and calls them."""

    body: Callable

    @nn.compact
    def __call__(self, x):
        return self.body(x)


def trained(model, *args, **kwargs):
    """Variables with statistics, scale and bias far from 0 and 1."""
    rng = np.random.default_rng(1)

    def value(path, leaf):
        if path[-1].key in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape) / 2, leaf.dtype)

    shapes = jax.eval_shape(lambda: nn.meta.unbox(model.init(KEY, *args, **kwargs)))
    return jax.tree.map_with_path(value, shapes)


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(2).normal(size=shape), dtype)


class Block(nn.Module):
    """Layer, normalization, nonlinearity."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(norm(name="norm")(nn.Dense(7, use_bias=False, name="dense")(x)))


def residual(x):
    """Two branches of convolutions, normalized, that meet."""
    y = nn.relu(norm(name="n1")(conv(use_bias=False, name="c1")(x)))
    y = norm(name="n2")(conv(use_bias=False, name="c2")(y))
    shortcut = norm(name="n3")(nn.Conv(4, (1, 1), use_bias=False, name="c3")(x))
    return nn.relu(y + shortcut)
