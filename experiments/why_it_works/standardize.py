"""Batch normalization as the theorems mean it: without scale and bias, and without an epsilon."""

import jax

from bnjax import init_params, init_stats, normalize_batch

TINY = 1e-300
"""An epsilon that float64 does not see."""


def standardize(x: jax.Array, *, epsilon: float = TINY) -> jax.Array:
    """Returns `x` `[examples, features]` with mean zero and variance one over the batch."""
    features = x.shape[-1]
    none = init_params(features, use_scale=False, use_bias=False)
    return normalize_batch(x, none, init_stats(features, dtype=x.dtype), epsilon=epsilon)[0]
