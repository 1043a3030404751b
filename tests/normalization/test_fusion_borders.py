"""Fusion borders: what XLA's CPU backend computes once for all its readers, counted in its HLO."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import bnjax
from bnjax.models.pooling import average_pool, max_pool

SHAPE = (32, 16, 16, 24)


def count(f, instruction, *shapes) -> int:
    """How often the compiled program has an instruction, of a whole array or of a slice."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(f).lower(*arguments).compile().as_text().count(f" {instruction}(")


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_a_gradient_is_computed_once_for_all_who_read_it(activation):
    """Red if a pad, or a product that wants it transposed, computes its own."""
    layer = partial(bnjax.batch_transform, params=bnjax.init_params(24), activation=activation)

    def gradient(x, dy):
        return jax.vjp(lambda x: layer(x)[0], x)[1](dy)[0]

    def readers(x, dy):
        dx = gradient(x, dy)
        return jnp.pad(dx, ((0, 0), (1, 1), (1, 1), (0, 0))), jnp.einsum("nhwc,nhwd->cd", x, dx)

    assert count(readers, "subtract", SHAPE, SHAPE) == count(gradient, "subtract", SHAPE, SHAPE)


@pytest.mark.parametrize("pool", [max_pool, average_pool])
def test_a_pool_computes_its_input_once(pool):
    """Red if each of its nine slices does."""

    def network(x):
        return pool(abs(x), (3, 3), (1, 1), "SAME")

    assert count(network, "abs", SHAPE) == 1
