"""The NNX module in the place of Flax's: what Flax's layer accepts and does, call by call.

Values are compared with Flax's at use_fast_variance=False, and with float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from tolerances import assert_close

from bnjax.nnx import BatchNorm

CLOSE = {"rtol": 2e-6, "atol": 2e-6}
"""Two float32 computations near zero; a biased for an unbiased variance is off by 1e-2."""


@pytest.fixture
def promotion():
    """Flax itself relies on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def inputs(shape, seed=4) -> jax.Array:
    return jnp.asarray(0.5 + 2 * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pair(features=5, **settings):
    """The same layer, ours and Flax's."""
    return (
        BatchNorm(features, rngs=nnx.Rngs(0), **settings),
        nnx.BatchNorm(features, rngs=nnx.Rngs(0), use_fast_variance=False, **settings),
    )


# --- masks ------------------------------------------------------------------------------------

MASKS = {
    "features": (5,),
    "examples": (6, 1, 1),
    "positions": (4, 1),
    "positions and features": (4, 5),
    "whole": (6, 4, 5),
    "one": (1,),
    "scalar": (),
}


def mask_of(shape):
    flags = np.random.default_rng(1).random(shape) < 0.6
    return jnp.asarray(flags if flags.size > 1 else np.ones(shape, bool))


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_masks_broadcast_as_flaxs(shape):
    x, mask = inputs((6, 4, 5)), mask_of(shape)
    ours, theirs = pair()
    y, expected = ours(x, mask=mask), theirs(x, mask=mask)
    counted = np.broadcast_to(mask, x.shape).any((0, 1))  # elsewhere Flax's mean is NaN
    assert counted.sum() >= 2
    assert_close(y[..., counted], np.float64(expected[..., counted]), CLOSE)
    assert_close(y, reference.forward(x, None, None, mask=mask).y, CLOSE)
    for key in ("mean", "var"):
        expected = np.where(counted, getattr(theirs, key)[...], key == "var")
        assert_close(getattr(ours, key)[...], np.float64(expected), CLOSE)


@pytest.mark.parametrize("shape", [(6,), (6, 4), (1, 6, 4, 5)])
def test_masks_that_do_not_broadcast_are_refused(shape):
    x = inputs((6, 4, 5))
    with pytest.raises(ValueError, match=r"5 features: mask of shape .* does not broadcast to x"):
        pair()[0](x, mask=jnp.ones(shape, bool))
