"""Pools against float64 and, where values tie or are NaN, against XLA's own windows."""

from functools import partial

import flax.linen as nn
import inception_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.models.pooling import average_pool, max_pool

EXACT = {"rtol": 1e-12, "atol": 1e-12}
RNG = np.random.default_rng(0)
MAX_POOLS = [  # window, strides, padding: all that the networks have, and one that is not square
    ((3, 3), (1, 1), "SAME"),
    ((3, 3), (2, 2), "SAME"),
    ((3, 3), (2, 2), "VALID"),
    ((3, 3), (2, 2), [(0, 1), (0, 0)]),
    ((2, 2), (2, 2), [(0, 1), (0, 1)]),
    ((2, 3), (2, 1), "SAME"),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (1, 4, 4, 1)])
@pytest.mark.parametrize(("window", "strides"), [(3, 1), (3, 2), (5, 3), (2, 2)])
@pytest.mark.parametrize(
    ("padding", "count"), [("VALID", False), ("SAME", False), ("SAME", True)], ids=str
)
def test_average_pool_against_float64(shape, window, strides, padding, count):
    x = np.random.default_rng(0).normal(size=shape)
    if padding == "VALID" and window > min(shape[1:3]):
        shape = (shape[0], 7, 6, shape[3])
        x = np.random.default_rng(0).normal(size=shape)
    y = average_pool(
        jnp.asarray(x), (window,) * 2, (strides,) * 2, padding, count_include_pad=count
    )
    expected = inception_reference.average_pool(
        x, window, strides, padding, count_include_pad=count
    )
    np.testing.assert_allclose(y, expected, **EXACT)


def test_average_pool_of_ones_shows_the_border_rule():
    """TensorFlow and Keras average the image's own values, torch counts the zeros around it."""
    ones = jnp.ones((1, 4, 4, 1))
    real = average_pool(ones, (3, 3), (1, 1), "SAME")
    counted = average_pool(ones, (3, 3), (1, 1), "SAME", count_include_pad=True)
    np.testing.assert_array_equal(real, ones)
    np.testing.assert_allclose(counted[0, 0, :, 0], [4 / 9, 6 / 9, 6 / 9, 4 / 9], rtol=1e-6)
    np.testing.assert_allclose(counted[0, 1, :, 0], [6 / 9, 1, 1, 6 / 9], rtol=1e-6)


@pytest.mark.parametrize("count", [False, True])
def test_average_pool_keeps_bfloat16(count):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, 3)), jnp.bfloat16)
    y = average_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=count)
    assert y.dtype == jnp.bfloat16
    expected = inception_reference.average_pool(
        np.asarray(x, np.float64), 3, 1, "SAME", count_include_pad=count
    )
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0, atol=2**-6)


@pytest.mark.parametrize("pool", MAX_POOLS, ids=str)
@pytest.mark.parametrize("kind", ["ties", "nan", "minus infinity"])
def test_max_pool_and_its_gradient_are_those_of_windows(pool, kind):
    """To the bit: half of the values are zeros, as after ReLU; the first of equal ones counts."""
    x = np.maximum(np.float32(RNG.integers(-2, 4, size=(2, 7, 8, 3))), 0)
    if kind == "nan":
        x[RNG.random(x.shape) < 0.05] = np.nan
    elif kind == "minus infinity":
        x[:, :4] = -np.inf
    (y, pull), (expected, expected_pull) = (
        jax.vjp(lambda x, f=f: f(x, *pool), jnp.asarray(x)) for f in (max_pool, nn.max_pool)
    )
    np.testing.assert_array_equal(y, expected)
    if kind == "nan":
        return
    weights = jnp.asarray(RNG.integers(-8, 8, size=y.shape), jnp.float32)  # sums are exact
    np.testing.assert_array_equal(pull(weights)[0], expected_pull(weights)[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pool", MAX_POOLS[:3], ids=str)
def test_max_pool_against_float64(pool):
    x = RNG.normal(size=(2, 7, 8, 3))
    window, strides, padding = pool
    y = max_pool(jnp.asarray(x), *pool)
    expected = inception_reference.max_pool(x, window[0], strides[0], padding)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_pools_have_derivatives_of_every_kind():
    """Forward, and twice: a pool is linear where its maximum stays in place."""
    x, dx = (jnp.asarray(RNG.normal(size=(1, 5, 6, 2))) for _ in range(2))
    for pool in (
        partial(max_pool, window=(3, 3), strides=(2, 2), padding="SAME"),
        partial(average_pool, window=(3, 3), strides=(1, 1), padding="SAME"),
    ):
        y, dy = jax.jvp(pool, (x,), (dx,))
        step = 1e-6
        np.testing.assert_allclose(dy, (pool(x + step * dx) - y) / step, rtol=1e-6, atol=1e-6)
        hessian = jax.hessian(lambda x, pool=pool: jnp.sum(pool(x) ** 2) / 2)(x).reshape(60, 60)
        slope = jax.jacobian(pool)(x).reshape(-1, 60)
        np.testing.assert_allclose(hessian, slope.T @ slope, **EXACT)
