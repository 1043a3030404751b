"""Initial weights of all convolutions from one draw."""

import math
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any

_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal cut at -2 and 2."""


def draw_kernels(params: Tree, key: jax.Array, *, scale: float = 1.0) -> Tree:
    """Parameters with new convolution kernels, by the rule of He et al. 2015.

    A truncated normal of variance `scale`^2 * 2 / (h * w * in), as `nn.initializers.he_normal`
    draws. All kernels are parts of one draw: a generator for each of a network's 70 takes XLA's CPU
    compiler minutes.

    Args:
        params: what is of rank 4 is a kernel `[h, w, in, out]`; the rest stays.
        key: decides the values.
        scale: factor on all of them.
    """
    leaves, structure = jax.tree.flatten(params)
    kernels = [leaf.size if leaf.ndim == 4 else 0 for leaf in leaves]
    values = jax.random.truncated_normal(key, -2, 2, (sum(kernels),), jnp.float32)
    drawn, first = [], 0
    for leaf, size in zip(leaves, kernels, strict=True):
        if size:
            std = scale * math.sqrt(2 / math.prod(leaf.shape[:3])) / _TRUNCATED_STD
            part = values[first : first + size].reshape(leaf.shape)
            leaf = (std * part).astype(leaf.dtype)
            first += size
        drawn.append(leaf)
    return jax.tree.unflatten(structure, drawn)
