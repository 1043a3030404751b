"""The batch over two mapped axes at once."""

import jax
import jax.numpy as jnp
import numpy as np

import bnjax


def test_two_vmaps_are_one_batch():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (2, 4, 2, 8)), "float32")

    def train(x, axis_name=None):
        return bnjax.normalize_batch(x, {}, bnjax.init_stats(8), axis_name=axis_name)[0]

    inner = jax.vmap(lambda x: train(x, ("a", "b")), axis_name="b")
    y = jax.vmap(inner, axis_name="a")(x)
    np.testing.assert_allclose(y.reshape(16, 8), train(x.reshape(16, 8)), rtol=1e-5, atol=1e-5)
