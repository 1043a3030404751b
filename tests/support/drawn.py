"""Initial variables drawn by NumPy: compiling an initialization takes longer than most tests."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def drawn(model, images, *, gain=1.0):
    """He's variables of a network: `gain` times his deviation; no running average has moved."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            deviation = gain * np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(rng.normal(0, deviation, leaf.shape), leaf.dtype)
        return jnp.full(leaf.shape, 1 if name in ("scale", "var") else 0, leaf.dtype)

    init = partial(model.init, train=False)
    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0), images))
