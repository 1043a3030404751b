"""The memory that a training step keeps for its backward pass, in bytes an element of the input.

Counted in the pullback that `jax.vjp` returns, which is a tree of the arrays that it needs.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bnjax
from bnjax.linen import BatchNorm

SHAPE = (32, 8, 8, 16)
FEATURES_KEPT = 8 * 4 * 16
"""Up to eight float32 numbers for each of 16 features."""


def bytes_kept(f, dtype, *others) -> tuple[int, int]:
    """Returns the bytes that the pullback of `f` keeps, and the elements of its input."""
    x = jax.ShapeDtypeStruct(SHAPE, dtype)
    pullback = jax.eval_shape(lambda *arguments: jax.vjp(f, *arguments)[1], x, *others)
    kept = jax.tree.leaves(pullback)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept), x.size


def ours(x, params, **settings):
    return bnjax.batch_transform(x, params, **settings)[0]


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_nothing_but_the_input_is_kept(dtype, activation):
    """Two bytes an element in bfloat16: red if the output, or where it is positive, is kept."""
    params = jax.eval_shape(lambda: bnjax.init_params(16))
    kept, elements = bytes_kept(lambda *a: ours(*a, activation=activation), dtype, params)
    width = jnp.dtype(dtype).itemsize
    assert width * elements <= kept <= width * elements + FEATURES_KEPT


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_mask_adds_a_byte(activation):
    mask = jnp.ones((32, 1, 1, 1), bool)
    kept, elements = bytes_kept(lambda x: ours(x, {}, mask=mask, activation=activation), "bfloat16")
    assert kept <= 3 * elements + FEATURES_KEPT


def test_groups_add_numbers_of_features_alone():
    """Here of four groups."""
    kept, elements = bytes_kept(lambda x: ours(x, {}, batch=8, activation="relu"), "bfloat16")
    assert kept <= 2 * elements + 4 * FEATURES_KEPT


def test_autodiff_and_flax_keep_several_times_as_much():
    """Which is what the closed form is for. Flax relies on implicit promotion."""
    kept, elements = bytes_kept(lambda x: ours(x, {}, impl="autodiff"), "bfloat16")
    assert kept >= 8 * elements

    def through(layer, activate):
        def f(x, params):
            variables = {"params": params, "batch_stats": stats}
            y, _ = layer.apply(variables, x, False, mutable=["batch_stats"])
            return activate(y)

        params = jax.eval_shape(lambda: bnjax.init_params(16))
        stats = bnjax.init_stats(16)
        return bytes_kept(f, "bfloat16", params)[0] / elements

    with jax.numpy_dtype_promotion("standard"):
        flax = through(nn.BatchNorm(dtype=jnp.bfloat16), nn.relu)
    module = through(BatchNorm(dtype=jnp.bfloat16, activation="relu"), lambda y: y)
    print(f"Bytes an element: Flax {flax:.1f}, bnjax {module:.1f}.")
    assert module < 2.1
    assert flax > 3 * module
