"""The Linen module in the place of Flax's: what Flax's layer accepts and does, call by call.

Values are compared with Flax's at use_fast_variance=False, and with float64.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tolerances import assert_close, assert_trees_close

import bnjax
from bnjax.linen import BatchNorm

KEY = jax.random.key(0)
CLOSE = {"rtol": 2e-6, "atol": 2e-6}
"""Two float32 computations near zero; a biased for an unbiased variance is off by 1e-2."""


@pytest.fixture
def promotion():
    """Flax itself relies on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def inputs(shape, seed=4) -> jax.Array:
    return jnp.asarray(0.5 + 2 * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pair(**settings):
    """The same layer, ours and Flax's."""
    return BatchNorm(**settings), nn.BatchNorm(use_fast_variance=False, **settings)


# --- initialization ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"axis": 1},
        {"axis_name": "data"},
        {"axis_name": "data", "axis_index_groups": [[0], [1]]},
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("running", [False, True])
def test_initialization_normalizes_as_flaxs(settings, masked, running):
    """The batch is what is given, whatever axis is named; nothing moves."""
    x = inputs((6, 4, 5))
    mask = jnp.arange(6)[:, None, None] < 4 if masked else None
    (y, variables), (expected, theirs) = (
        layer.init_with_output(KEY, x, running, mask=mask) for layer in pair(**settings)
    )
    assert_close(y, np.float64(expected), CLOSE)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs)
    if not running:
        axis = settings.get("axis", -1)
        assert_close(y, reference.forward(x, None, None, axis=axis, mask=mask).y, CLOSE)


@pytest.mark.parametrize("batch", ["all", "device", 4])
def test_initialization_takes_the_given_examples_for_the_batch(batch):
    x = inputs((5, 3))
    layer = BatchNorm(use_running_average=False, axis_name="data", batch=batch)
    assert_close(layer.init_with_output(KEY, x)[0], reference.forward(x, None, None).y, CLOSE)


def test_initialization_does_not_repeat_an_update():
    """A layer that is called twice in init sees its own output, which is normalized already."""

    class Twice(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x):
            norm = self.layer(use_running_average=False, axis_name="data", name="norm")
            y = norm(x)
            return y, norm(y)

    x = inputs((4, 3, 2))
    results = [Twice(layer).init_with_output(KEY, x) for layer in (BatchNorm, nn.BatchNorm)]
    assert_trees_close(results[0], jax.tree.map(np.float64, results[1]), CLOSE)
    (once, twice), _ = results[0]
    assert_close(twice, np.float64(once), {"rtol": 1e-4, "atol": 1e-4})


@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 1, 5), (0, 5)])
def test_initialization_by_one_value_per_feature(shape):
    """Flax's output would be `bias`, whatever `x`: ours is that of the initial statistics."""
    x = 3 + jnp.ones(shape)
    y, variables = BatchNorm(use_running_average=False).init_with_output(KEY, x)
    assert_close(y, reference.population(x, None, None, np.zeros(5), np.ones(5)), CLOSE)
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], bnjax.init_stats(5))


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
    variables = theirs.init(KEY, x, False)
    (y, updates), (expected, expected_updates) = (
        layer.apply(variables, x, False, mask=mask, mutable=["batch_stats"])
        for layer in (ours, theirs)
    )
    counted = np.broadcast_to(mask, x.shape).any((0, 1))  # elsewhere Flax's mean is NaN
    assert counted.sum() >= 2
    assert_close(y[..., counted], np.float64(expected[..., counted]), CLOSE)
    assert_close(y, reference.forward(x, None, None, mask=mask).y, CLOSE)
    for key, leaf in updates["batch_stats"].items():
        expected = np.where(counted, expected_updates["batch_stats"][key], key == "var")
        assert_close(leaf, np.float64(expected), CLOSE)


@pytest.mark.parametrize("shape", [(6,), (6, 4), (1, 6, 4, 5)])
def test_masks_that_do_not_broadcast_are_refused(shape):
    x = inputs((6, 4, 5))
    layer = BatchNorm(use_running_average=False)
    with pytest.raises(ValueError, match=r"\(top\): mask of shape .* does not broadcast to x"):
        layer.apply(layer.init(KEY, x), x, mask=jnp.ones(shape, bool), mutable=["batch_stats"])
